"""Runs the plans of many problems at once: few calls of the generator and one of the scorer a round.

    outcomes = run_plans(problems, rules, models, seed=0)

A call takes all requests of one kind (same limit, same number of copies of a prompt), so that the generator
reads a shared prefix once. Every call has a random stream of its own, made from `seed` and its number: what
is found depends on the seed and on which problems run together, on nothing else.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from data.aggregation import aggregate
from data.schema import Problem, Sample, Sampling
from data.steps import step_texts
from eval.search.plans import Plan, make_plan
from eval.search.rules import Candidate, Models, Request, Rules, State

Kind = tuple[int, bool, int]
"""(limit, to the end, copies) of a prefix: what one call of the generator has in common."""


@dataclass(slots=True)
class Outcome:
    """What the search of one problem found, and what it took."""

    candidates: list[Candidate] = field(default_factory=list)
    tokens: int = 0
    """Generated tokens, those of dropped candidates included."""
    read_tokens: int = 0
    """Tokens of the prompts and prefixes read, each once a call."""
    num_scored: int = 0
    """Distinct texts that the scorer read: one forward of the reward model each."""
    num_rounds: int = 0


@dataclass(slots=True)
class _Search:
    """The plan of one problem under way."""

    problem: Problem
    plan: Plan
    request: Request | None
    outcome: Outcome
    continuations: dict[Candidate, list[Candidate]]
    """Of this round: prefix -> what followed it."""
    scores: dict[str, tuple[float | None, ...]]
    """Text -> the scores of its steps: no text is scored twice."""


def run_plans(problems: Sequence[Problem], rules: Rules, models: Models, *, seed: int) -> list[Outcome]:
    """Return the outcome of each problem, in order."""
    assert models.scorer is not None or not rules.needs_scores, "these rules need a scorer"
    searches = []
    for problem in problems:
        plan = make_plan(rules)
        searches.append(_Search(problem, plan, next(plan), Outcome(), {}, {}))
    number = 0
    while active := [search for search in searches if search.request is not None]:
        for kind, members in _by_kind(active).items():
            _generate(kind, members, rules, models, _seed(seed, number))
            number += 1
        if rules.needs_scores:
            _score(active, rules, models)
        for search in active:
            _advance(search, rules)
    return [search.outcome for search in searches]


def _by_kind(active: Sequence[_Search]) -> dict[Kind, list[tuple[_Search, Candidate]]]:
    kinds: dict[Kind, list[tuple[_Search, Candidate]]] = {}
    for search in active:
        assert search.request is not None
        for prefix, copies in Counter(search.request.prefixes).items():
            kind = search.request.limit, search.request.to_end, copies
            kinds.setdefault(kind, []).append((search, prefix))
    return kinds


def _generate(
    kind: Kind, members: Sequence[tuple[_Search, Candidate]], rules: Rules, models: Models, seed: int
) -> None:
    """Draw the continuations of all prefixes of one kind."""
    limit, to_end, copies = kind
    sampling = Sampling(
        max_new_tokens=limit,
        temperature=rules.temperature,
        top_p=rules.top_p,
        n=copies,
        stop=models.stop if to_end else (rules.separator, *models.stop),
        seed=seed,
    )
    prompts = [models.render(search.problem.text) + prefix.text for search, prefix in members]
    drawn = models.generator.generate(prompts, sampling)
    for (search, prefix), samples in zip(members, drawn, strict=True):
        search.outcome.read_tokens += len(samples[0].prompt_ids)
        search.outcome.tokens += sum(len(sample.token_ids) for sample in samples)
        search.continuations[prefix] = [_append(prefix, s, rules, models, to_end) for s in samples]


def _append(prefix: Candidate, sample: Sample, rules: Rules, models: Models, to_end: bool) -> Candidate:
    """The prefix with one sample after it."""
    state: State = "ended"
    text = prefix.text + sample.text
    tokens = prefix.tokens + len(sample.token_ids)
    # A stop string may begin in one step and end in the next, where no sample shows it whole.
    stops = [place for stop in models.stop if (place := text.find(stop)) >= 0]
    if stops:
        text = text[: min(stops)]
    elif models.has_ended(sample):
        pass
    elif sample.finish_reason == "length":
        state = "cut"
    elif not to_end:
        state = "open" if tokens < rules.max_new_tokens else "cut"
        text += rules.separator
    return Candidate(text, state, tokens)


def _score(active: Sequence[_Search], rules: Rules, models: Models) -> None:
    """Let the scorer read every text that it has not read yet."""
    assert models.scorer is not None
    wanted: list[tuple[_Search, str, list[str]]] = []
    for search in active:
        new = [one.text for group in search.continuations.values() for one in group]
        for text in dict.fromkeys(new):
            if text not in search.scores:
                search.scores[text] = ()
                if steps := step_texts(text, rules.splitter):
                    wanted.append((search, text, steps))
    if not wanted:
        return
    scores = models.scorer.score([s.problem.text for s, _, _ in wanted], [steps for _, _, steps in wanted])
    for (search, text, _), row in zip(wanted, scores, strict=True):
        search.scores[text] = tuple(row)
        search.outcome.num_scored += 1


def _advance(search: _Search, rules: Rules) -> None:
    """Hand the plan its scored continuations in the order of its prefixes, and take its next request."""
    assert search.request is not None
    for group in search.continuations.values():
        for k, one in enumerate(group):
            row = search.scores.get(one.text, ())
            group[k] = replace(one, step_scores=row, score=aggregate(row, rules.aggregation))
    new = [search.continuations[prefix].pop(0) for prefix in search.request.prefixes]
    search.continuations = {}
    search.outcome.num_rounds += 1
    try:
        search.request = search.plan.send(new)
    except StopIteration as end:
        search.request = None
        search.outcome.candidates = end.value


def _seed(seed: int, number: int) -> int:
    """A stream a call: 31 bits, which every framework takes."""
    digest = hashlib.sha256(f"search {seed} {number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
