"""Labels for given solutions from the values of their prefixes: every prefix, or a binary search.

    search = label_every_prefix(problem, solution_steps, answer_correct=False)     # a coroutine
    labelled, = run_searches(completer, [(problem, search)])

A step is right while the policy still gets from it to the right answer: "hard" when any of K continuations
does, "soft" the share of them (Math-Shepherd, arXiv:2312.08935). The last step of a finished solution needs
no rollout: its value is the verdict on the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from prm.labelling.completer import Estimate, Prefix, Search

LabelKind = Literal["hard", "soft"]


@dataclass(frozen=True, slots=True)
class PrefixValues:
    """What is known of a solution's prefixes."""

    steps: Prefix
    values: tuple[float | None, ...]
    """Entry k: value of the prefix that ends with step k; None where it was not estimated."""
    first_error: int | None
    """Index of the first step after which no continuation was right, -1: none, None: unknown."""
    evaluations: int
    answer_correct: bool | None


def label_every_prefix(steps: Sequence[str], answer_correct: bool | None) -> Search:
    """Search that estimates all T - 1 prefixes but the last, which the answer's verdict labels."""
    steps = tuple(steps)
    estimates: Sequence[Estimate] = []
    if len(steps) > 1:
        estimates = yield [steps[:k] for k in range(1, len(steps))]
    last = None if answer_correct is None else float(answer_correct)
    values = (*[estimate.value for estimate in estimates], last) if steps else ()
    dead = next((k for k, value in enumerate(values) if value == 0), len(values))
    first_error: int | None = dead if dead < len(values) else -1
    if None in values[:dead]:
        first_error = None  # it may as well stand at the unjudged prefix
    return PrefixValues(steps, values, first_error, len(estimates), answer_correct)


def find_first_error(steps: Sequence[str], answer_correct: bool | None) -> Search:
    """Search that halves a wrong solution until its first error is found: ceil(log2 T) evaluations.

    A prefix with a right continuation holds no error, a prefix without one does; the whole solution, whose
    answer is wrong, does. A solution with a right answer takes none: each of its prefixes has a right
    continuation, itself. (OmegaPRM's search, arXiv:2406.06592, section 3.3)
    """
    steps = tuple(steps)
    values: list[float | None] = [None] * len(steps)
    if not steps or answer_correct is None:
        return PrefixValues(steps, tuple(values), None, 0, answer_correct)
    values[-1] = float(answer_correct)
    if answer_correct:
        return PrefixValues(steps, tuple(values), -1, 0, True)
    good, bad, evaluations = 0, len(steps), 0  # lengths of a prefix without an error, and of one with
    while bad - good > 1:
        middle = (good + bad) // 2
        (estimate,) = yield [steps[:middle]]
        evaluations += 1
        values[middle - 1] = estimate.value
        if estimate.value is None:  # nothing judged: the search cannot go on
            return PrefixValues(steps, tuple(values), None, evaluations, False)
        if estimate.value > 0:
            good = middle
        else:
            bad = middle
    return PrefixValues(steps, tuple(values), good, evaluations, False)


def revive(found: Sequence[PrefixValues]) -> list[PrefixValues]:
    """Return one problem's solutions with value 1 where a value is 0 or missing though a right continuation
    is known: one of a longer prefix, in the same solution or another.

    The first error moves behind them; it is None where the prefixes after were never estimated.
    """
    alive = {
        values.steps[: k + 1]
        for values in found
        for k in range(max((k for k, value in enumerate(values.values) if value), default=-1) + 1)
    }
    return [_revive(values, alive) for values in found]


def _revive(found: PrefixValues, alive: set[Prefix]) -> PrefixValues:
    revived = tuple(
        1.0 if not value and found.steps[: k + 1] in alive else value for k, value in enumerate(found.values)
    )
    if revived == found.values:
        return found
    last = max(k for k in range(len(revived)) if found.steps[: k + 1] in alive)
    first_error = found.first_error
    if first_error is not None and first_error <= last:
        dead = next((k for k in range(last + 1, len(revived)) if revived[k] == 0), None)
        first_error = -1 if last == len(revived) - 1 else dead
        if None in revived[last + 1 : dead]:
            first_error = None
    return replace(found, values=revived, first_error=first_error)


def to_labels(found: PrefixValues, kind: LabelKind) -> tuple[float | None, ...]:
    """Return one label a step.

    hard: 1 where a right continuation is known, 0 where there was none; a prefix that was not estimated
    inherits 1 from any longer one with a right continuation, which continues it too. soft: the values
    themselves, None where there is none. What a search never visited behind the first error stays None.
    """
    if kind == "soft":
        return found.values
    alive = max((k for k, value in enumerate(found.values) if value), default=-1)
    labels: list[float | None] = []
    for k, value in enumerate(found.values):
        if value is not None:
            labels.append(float(value > 0))
        else:
            labels.append(1.0 if k < alive else None)
    return tuple(labels)
