"""Pairs to prefer between: what a Bradley-Terry PRM learns from.

A pair needs more than a step-labelled solution says by itself: two continuations of *one* prefix, one better.
Here they come out of several labelled solutions of a problem: siblings (same steps before, then one right
step and one wrong), as tree search and PRM800K's alternatives give them, or whole solutions with a right and
a wrong answer. Steps of unlike prefixes are never compared: their difference would speak of the prefix too.

    pairs = find_pairs(solutions, "steps")
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data.errors import UserError
from data.schema import StepSolution
from prm.config import PairKind
from prm.losses import VALUE_KINDS, is_right


@dataclass(frozen=True, slots=True)
class StepPair:
    """Two continuations of problem and prefix; `chosen` is the better one."""

    problem: str
    prefix: tuple[str, ...]
    """Steps that both share, all right."""
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    id: str = ""


def find_pairs(
    solutions: Sequence[StepSolution], kind: PairKind, *, most_per_prefix: int = 8
) -> list[StepPair]:
    """Return the pairs that labelled solutions of the same problem contain, at most so many a prefix.

    steps: right and wrong siblings of one prefix of right steps; a label that one solution has counts for
    every solution of the problem that begins alike. In values of rollouts only 0 is wrong. solutions: right
    and wrong answers of one problem (`answer_correct`). Raises UserError when there is none.
    """
    pairs = list(iterate_pairs(solutions, kind, most_per_prefix=most_per_prefix))
    if not pairs:
        raise UserError(
            f"objective bradley_terry found no pair of {kind} among {len(solutions)} solutions; "
            + (
                "it needs a right and a wrong step after the same steps of the same problem: "
                "several solutions a problem, or set pairs: solutions"
                if kind == "steps"
                else 'it needs a right and a wrong answer to the same problem ("answer_correct")'
            )
        )
    return pairs


def iterate_pairs(
    solutions: Sequence[StepSolution], kind: PairKind, *, most_per_prefix: int = 8
) -> Iterator[StepPair]:
    """Yield what `find_pairs` returns; there may be nothing."""
    groups = _siblings(solutions) if kind == "steps" else _answers(solutions)
    for (problem, prefix), (right, wrong) in groups.items():
        # Diagonals: each right one meets a different wrong one before any of them is used again.
        met = sorted(
            ((i, j) for i in range(len(right)) for j in range(len(wrong))),
            key=lambda ij: (abs(ij[0] - ij[1]), ij),
        )
        for i, j in met[:most_per_prefix]:
            name = f"{problem[:40]} after step {len(prefix)}"
            yield StepPair(problem, prefix, right[i], wrong[j], name)


Groups = dict[tuple[str, tuple[str, ...]], tuple[list[tuple[str, ...]], list[tuple[str, ...]]]]


def _siblings(solutions: Sequence[StepSolution]) -> Groups:
    groups: Groups = {}
    known = _known_prefixes(solutions)
    for solution in solutions:
        for prefix, step, right in _judged_steps(solution, known):
            sides = groups.setdefault((solution.problem, prefix), ([], []))
            side = sides[0 if right else 1]
            if (step,) not in side:
                side.append((step,))
    return groups


Known = dict[tuple[str, tuple[str, ...]], bool]


def _known_prefixes(solutions: Sequence[StepSolution]) -> Known:
    """Whether each labelled prefix of each problem is right; the first label of a prefix counts.

    A search of rollouts leaves prefixes out: one before a value above 0 is right as well.
    """
    known: Known = {}
    for s in solutions:
        alive = max((k for k, y in enumerate(s.labels) if y and s.label_kind in VALUE_KINDS), default=-1)
        for k, label in enumerate(s.labels):
            if k < alive:
                known[s.problem, s.steps[: k + 1]] = True
            elif label is not None:
                known.setdefault((s.problem, s.steps[: k + 1]), is_right(label, s.label_kind))
    return known


def _judged_steps(solution: StepSolution, known: Known) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    for k, (step, label) in enumerate(zip(solution.steps, solution.labels, strict=True)):
        if label is None:
            right = known.get((solution.problem, solution.steps[: k + 1]))
        else:
            right = is_right(label, solution.label_kind)
        if right is None:
            return  # whether the prefix is right is unknown from here on
        yield solution.steps[:k], step, right
        if not right:
            return


def _answers(solutions: Sequence[StepSolution]) -> Groups:
    groups: Groups = {}
    for solution in solutions:
        if solution.answer_correct is not None and solution.steps:
            sides = groups.setdefault((solution.problem, ()), ([], []))
            side = sides[0 if solution.answer_correct else 1]
            if solution.steps not in side:
                side.append(solution.steps)
    return groups
