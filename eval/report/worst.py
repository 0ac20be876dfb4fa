"""Which samples a reader should see first: those whose verdict and scores disagree most."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.aggregation import aggregate
from data.protocols import StepScorer
from data.steps import Splitter, step_texts
from eval.report.read import Evaluation
from eval.result import Row

MOST_SCORED = 500
"""Samples of one evaluation that a reward model reads for a report, evenly spread over it."""


@dataclass(frozen=True, slots=True)
class Worst:
    """One sample with its steps and their scores."""

    id: str
    problem: str
    steps: list[str]
    scores: list[float | None]
    score: float | None
    """The lowest of its steps'."""
    is_correct: bool


def worst_samples(
    evaluation: Evaluation, *, count: int, scorer: StepScorer | None, splitter: Splitter = "newline"
) -> list[Worst]:
    """Return the `count` samples whose verdict and score are furthest apart: wrong with every step scored
    high, or correct with one scored low. Without scores the first wrong ones.

    Scores recorded by a search are taken as they are; `scorer` reads the rest, where the problems are known.
    """
    rows = [(name, row) for name, group in evaluation.rows.items() for row in group]
    rows = [(name, row) for name, row in rows if row["verdict"] != "unjudged"]
    texts = {name: p.text for name, p in (evaluation.problems or {}).items()}
    if evaluation.is_search:
        found = [_make(name, texts.get(name, ""), row, splitter, _recorded(row)) for name, row in rows]
    elif scorer is not None and texts:
        stride = -(-len(rows) // MOST_SCORED)
        rows = [(name, row) for name, row in rows[:: max(1, stride)] if name in texts]
        steps = [step_texts(row["response"], splitter) for _, row in rows]
        scores = scorer.score([texts[name] for name, _ in rows], steps)
        found = [
            _make(name, texts[name], row, splitter, values)
            for (name, row), values in zip(rows, scores, strict=True)
        ]
    else:
        found = [_make(name, texts.get(name, ""), row, splitter, []) for name, row in rows]
    found = [one for one in found if one.steps]
    return sorted(found, key=_agreement)[:count]


def _agreement(one: Worst) -> float:
    """From 0, verdict and score flatly disagree, to 1; unscored samples by their verdict alone."""
    if one.score is None:
        return 2.0 + one.is_correct
    return one.score if one.is_correct else 1 - one.score


def _recorded(row: Row) -> Sequence[float | None]:
    """The chosen candidate's scores."""
    for one in row.get("candidates", ()):
        if one["text"] == row["response"]:
            return one["step_scores"]
    return []


def _make(name: str, problem: str, row: Row, splitter: Splitter, scores: Sequence[float | None]) -> Worst:
    steps = step_texts(row["response"], splitter)
    kept: list[float | None] = list(scores) if len(scores) == len(steps) else [None] * len(steps)
    return Worst(name, problem, steps, kept, aggregate(kept, "min"), row["verdict"] == "correct")
