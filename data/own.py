"""A user's own reward, grader, step scorer and step splitter, behind the seams of data.protocols.

    OwnGrader("mymodule:grade")(problem, response)                # Verdict
    reward_problems(OwnReward("mymodule:reward"), problems, prompts, responses)

What a plug-in returns is checked where it is called: the number of values, and that they are finite numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data.errors import UserError
from data.plugins import Call, load_plugin, made
from data.protocols import ResponseScorer
from data.schema import Problem, Verdict

PROBLEM_NAMES = ("problem", "answer", "solution", "id", "source", "level", "subject", "meta")
"""What a plug-in may ask of a problem: the record itself, and its fields."""
REWARD_NAMES = ("prompts", "responses", "completions", "problems", "answers")


class OwnReward:
    """A function of the user's that pays whole responses, called with a batch.

    prompts, responses (as `completions` too), problems (the records), answers, and the columns of the
    problems: their fields and what else their rows hold. So a reward function written for TRL,
    f(prompts, completions, **columns), works as it is; completions are messages where the problems' prompts
    are. It returns one number a response, None for one that it cannot judge.
    """

    def __init__(self, name: str, plugin: Any = None) -> None:
        self.call = Call(
            *(name, "reward", plugin or load_plugin(name, "reward"), REWARD_NAMES),
            needs=("responses", "completions"),
            open_ended=True,
        )

    def score_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """Rewards where nothing is known of the problems but the prompts."""
        return self.score_problems(
            [Problem(id=p[:40], text=p, answer="") for p in prompts], prompts, responses
        )

    def score_problems(
        self, problems: Sequence[Problem], prompts: Sequence[str], responses: Sequence[str]
    ) -> list[float | None]:
        """Return one reward a response; raises UserError with the problem that it failed on."""
        if not responses:
            return []
        try:
            rewards = self._ask(problems, prompts, responses)
        except UserError:
            if len(responses) == 1:
                raise
            for row in range(len(responses)):  # which of them was it?
                self._ask(problems[row : row + 1], prompts[row : row + 1], responses[row : row + 1])
            raise
        return [
            number(value, self.call, _about(problem))
            for value, problem in zip(rewards, problems, strict=True)
        ]

    def _ask(
        self, problems: Sequence[Problem], prompts: Sequence[str], responses: Sequence[str]
    ) -> list[Any]:
        messages = [problem.meta.get("messages") for problem in problems]
        is_chat = all(messages)
        names = dict.fromkeys(name for problem in problems for name in problem.meta if name != "messages")
        values: dict[str, Any] = {name: [p.meta.get(name) for p in problems] for name in names}
        for name in ("answer", "solution", "id", "source", "level", "subject"):
            # A row's own column wins: `answer` is then as the data set has it.
            values.setdefault(name, [getattr(p, name) for p in problems])
        values |= {
            "prompts": messages if is_chat else list(prompts),
            "responses": list(responses),
            "completions": [[{"role": "assistant", "content": r}] for r in responses]
            if is_chat
            else list(responses),
            "problems": list(problems),
            "answers": [p.answer for p in problems],
        }
        about = _about(problems[0]) if len(problems) == 1 else f"{len(problems)} responses"
        return listed(self.call(values, about), len(problems), self.call, about)


def reward_problems(
    model: ResponseScorer, problems: Sequence[Problem], prompts: Sequence[str], responses: Sequence[str]
) -> list[float | None]:
    """Return a reward a response; a user's function sees the problem beside prompt and response."""
    if isinstance(model, OwnReward):
        return model.score_problems(problems, prompts, responses)
    return model.score_responses(prompts, responses)


class OwnGrader:
    """A function of the user's that judges one response: a Verdict, true or false (also 1 or 0), or None for
    one that it cannot judge. It takes response, problem (the record) and the problem's fields by name."""

    def __init__(self, name: str, plugin: Any = None) -> None:
        self.call = Call(
            *(name, "grader", plugin or load_plugin(name, "grader"), ("response", *PROBLEM_NAMES)),
            needs=("response",),
        )

    def __call__(self, problem: Problem, response: str) -> Verdict:
        values = {name: problem if name == "problem" else getattr(problem, name) for name in PROBLEM_NAMES}
        found = self.call(values | {"response": response}, _about(problem))
        if isinstance(found, Verdict):
            return found
        if found is None:
            return Verdict("unjudged", f"{self.call.name} says nothing")
        if number(found, self.call, _about(problem)) not in (0.0, 1.0):
            raise UserError(
                f"grader '{self.call.name}' returned {found!r} for {_about(problem)}; "
                "return true, false, None, or data.schema.Verdict with a credit"
            )
        return Verdict("correct" if found else "wrong")


class OwnScorer:
    """A StepScorer over a function (problem, steps) -> P(right) of every step, [0, 1] or None; or over a
    StepScorer of the user's."""

    def __init__(self, name: str, plugin: Any = None) -> None:
        plugin = made(name, "scorer", plugin or load_plugin(name, "scorer"))
        self.is_whole = hasattr(plugin, "score")
        if self.is_whole:
            self.call = Call(name, "scorer", plugin.score, (), open_ended=True)
        else:
            self.call = Call(name, "scorer", plugin, ("problem", "steps"), needs=("steps",))

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        """Return what the user's code says of every step; raises UserError with the problem it failed on."""
        abouts = [f"the problem {problem[:60]!r}" for problem in problems]
        if self.is_whole:
            about = f"{len(problems)} solutions"
            found = listed(self.call.run(about, problems, solutions), len(problems), self.call, about)
        else:
            found = [
                self.call({"problem": problem, "steps": list(steps)}, about)
                for problem, steps, about in zip(problems, solutions, abouts, strict=True)
            ]
        return [
            self._checked(scores, len(steps), about)
            for scores, steps, about in zip(found, solutions, abouts, strict=True)
        ]

    def _checked(self, found: Any, count: int, about: str) -> list[float | None]:
        scores = [number(value, self.call, about) for value in listed(found, count, self.call, about)]
        for score in scores:
            if score is not None and not 0 <= score <= 1:
                raise UserError(
                    f"scorer '{self.call.name}' returned {score:g} for {about}; scores lie in [0, 1]"
                )
        return scores


def own_spans(name: str, text: str) -> list[tuple[int, int]]:
    """Return the character spans that a splitter of the user's finds: it returns (start, end) pairs, or the
    steps themselves, which are looked up in the text in their order."""
    call = Call(name, "splitter", load_plugin(name, "splitter"), ("text",), needs=("text",))
    about = f"the text {text[:60]!r}"
    spans, at = [], 0
    for step in listed(call({"text": text}, about), None, call, about):
        if isinstance(step, str):
            start = text.find(step, at)
            span = (start, start + len(step))
        else:
            span = (int(step[0]), int(step[1])) if _is_pair(step) else (-1, -1)
        if not at <= span[0] < span[1] <= len(text):
            raise UserError(
                f"splitter '{name}' returned {step!r} for {about}; return steps of the text in their order, "
                "as strings or as (start, end)"
            )
        spans.append(span)
        at = span[1]
    return spans


def own_joiner(name: str) -> str:
    """Return what stands between a user's steps: the splitter's attribute `joiner`, else a line break."""
    return str(getattr(load_plugin(name, "splitter"), "joiner", "\n"))


def listed(found: Any, count: int | None, call: Call, about: str) -> list[Any]:
    """Return a plug-in's list, tuple, array or tensor as a list of `count`, else raise UserError."""
    found = found.tolist() if hasattr(found, "tolist") else found
    if isinstance(found, str | bytes | Mapping) or not hasattr(found, "__iter__"):
        raise UserError(
            f"{call.kind} '{call.name}' returned {type(found).__name__} for {about}; return a list"
        )
    values = list(found)
    if count is not None and len(values) != count:
        raise UserError(
            f"{call.kind} '{call.name}' returned {len(values)} values for {about}; expected {count}, one each"
        )
    return values


def number(value: Any, call: Call, about: str) -> float | None:
    """Return a plug-in's value as a float, None as it is. Raises UserError where it is no finite number."""
    if value is None:
        return None
    try:
        read = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        read = math.nan
    if not math.isfinite(read):
        raise UserError(
            f"{call.kind} '{call.name}' returned {value!r} for {about}; return a finite number or None"
        )
    return read


def _is_pair(step: Any) -> bool:
    return isinstance(step, tuple | list) and len(step) == 2 and all(isinstance(at, int) for at in step)


def _about(problem: Problem) -> str:
    return f"problem '{problem.id}'"
