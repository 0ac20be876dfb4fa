"""How good is a prefix? Sample its continuations, grade their answers: the share that is right is its value.

A value says whether the policy can still get there, which is not whether the prefix is right: luck and
recovery raise it, a weak policy lowers it. docs/labelling.md measures both against an exact oracle.

    completer = Completer(generator, grader, prompt=render, sampling=Sampling(n=8), splitter="newline")
    completer.evaluate([(problem, ("Bob has 12 - 5 = 7",))])[0].value      # 0.875
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from data.grading import grade_all
from data.protocols import Grader, TextGenerator
from data.schema import Problem, Sampling, Verdict
from data.steps import Splitter, joiner_of, step_texts

Prefix = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Continuation:
    """One sampled continuation of a prefix."""

    steps: Prefix
    """Its steps, without those of the prefix."""
    is_correct: bool | None
    """The grader's verdict on the whole answer; None: unjudged. A truncated one is never correct."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the continuations of a prefix came to."""

    continuations: tuple[Continuation, ...]

    @property
    def correct(self) -> int:
        """Continuations that are right."""
        return sum(c.is_correct is True for c in self.continuations)

    @property
    def judged(self) -> int:
        """Continuations that the grader could judge."""
        return sum(c.is_correct is not None for c in self.continuations)

    @property
    def value(self) -> float | None:
        """Share of the judged continuations that are right; None when none was judged."""
        return self.correct / self.judged if self.judged else None


@dataclass
class Cost:
    """What labelling took."""

    evaluations: int = 0
    """Prefixes whose value was estimated."""
    rollouts: int = 0
    """Continuations (and first solutions) sampled."""
    tokens: int = 0
    """Tokens sampled."""
    unjudged: int = 0
    """Rollouts that the grader could not judge; they count neither way."""
    judge_calls: int = 0
    judge_tokens: int = 0

    def add(self, other: "Cost") -> None:
        """Add what something else took."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


Search = Generator[Sequence[Prefix], Sequence[Estimate], Any]
"""A labelling method for one problem: yields prefixes, is sent their estimates, returns its result."""


@dataclass
class Completer:
    """Estimates values of prefixes, many at once. sampling.n is K, the continuations of each."""

    generator: TextGenerator
    grader: Grader
    prompt: Callable[[str], str]
    """Problem text -> the policy's prompt."""
    sampling: Sampling
    splitter: Splitter = "newline"
    cost: Cost = field(default_factory=Cost)
    calls: int = 0

    @property
    def joiner(self) -> str:
        """What stands between two steps."""
        return joiner_of(self.splitter)

    def evaluate(self, queries: Sequence[tuple[Problem, Prefix]]) -> list[Estimate]:
        """Return an estimate for each (problem, prefix), in order, from one call of the generator."""
        self.cost.evaluations += len(queries)
        return [Estimate(tuple(drawn)) for drawn in self.sample(queries, self.sampling.n)]

    def sample(self, queries: Sequence[tuple[Problem, Prefix]], count: int) -> list[list[Continuation]]:
        """Return `count` graded continuations for each (problem, prefix)."""
        if not queries:
            return []
        prompts = [self.prompt(problem.text) + self.as_text(prefix) for problem, prefix in queries]
        seed = self.sampling.seed
        # Each call draws from a stream of its own: what was sampled before does not change it.
        sampling = replace(self.sampling, n=count, seed=None if seed is None else seed + self.calls)
        self.calls += 1
        drawn = self.generator.generate(prompts, sampling)
        texts = [
            (problem, self.as_text(prefix) + sample.text)
            for (problem, prefix), samples in zip(queries, drawn, strict=True)
            for sample in samples
        ]
        verdicts = map(_is_correct, grade_all(self.grader, *zip(*texts, strict=True)))
        results = []
        for samples in drawn:
            row = []
            for sample in samples:
                verdict = next(verdicts)
                if sample.finish_reason == "length":
                    verdict = False
                steps = tuple(step_texts(sample.text, self.splitter))
                row.append(Continuation(steps, verdict, len(sample.token_ids)))
                self.cost.unjudged += verdict is None
                self.cost.tokens += len(sample.token_ids)
            self.cost.rollouts += len(row)
            results.append(row)
        return results

    def grade(self, problem: Problem, prefix: Prefix, continuation: str = "") -> bool | None:
        """Return whether the answer of prefix and continuation is right; None when unjudged."""
        return _is_correct(self.grader(problem, self.as_text(prefix) + continuation))

    def as_text(self, prefix: Prefix) -> str:
        """Return the steps as the policy continues them."""
        return "".join(step + self.joiner for step in prefix)


def _is_correct(verdict: Verdict) -> bool | None:
    """None when unjudged."""
    return None if verdict.status == "unjudged" else verdict.status == "correct"


def run_searches(completer: Completer, searches: Sequence[tuple[Problem, Search]]) -> list[Any]:
    """Run one search a problem in lockstep, all their open questions in one batch; return their results.

    The same prefix of the same problem is estimated once, whichever searches ask for it.
    """
    results: list[Any] = [None] * len(searches)
    known: dict[tuple[str, Prefix], Estimate] = {}
    waiting: dict[int, Sequence[Prefix]] = {}

    def advance(index: int, answer: Sequence[Estimate] | None) -> None:
        try:
            search = searches[index][1]
            waiting[index] = next(search) if answer is None else search.send(answer)
        except StopIteration as stop:
            results[index] = stop.value
            waiting.pop(index, None)

    for index in range(len(searches)):
        advance(index, None)
    while waiting:
        asked = {
            (searches[index][0].text, prefix): searches[index][0]
            for index, prefixes in waiting.items()
            for prefix in prefixes
        }
        fresh = [key for key in asked if key not in known]
        estimates = completer.evaluate([(asked[key], key[1]) for key in fresh])
        known |= dict(zip(fresh, estimates, strict=True))
        for index, prefixes in list(waiting.items()):
            advance(index, [known[searches[index][0].text, prefix] for prefix in prefixes])
    return results
