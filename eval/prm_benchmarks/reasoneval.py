"""ReasonEval's meta-evaluation: AUC and macro F1 of invalid and of redundant steps. arXiv:2404.05692.

Rules follow the authors' code (GAIR-NLP/ReasonEval, codes/mr-math_eval.py): a solution's score is the least
of its steps'; steps behind the first error are left out; a step is valid with P(neutral) + P(useful), and
redundant with P(neutral). A model with one number a step is taken at that number for both.
"""

from collections.abc import Sequence
from typing import Any

from eval.metrics import NAN, Ragged, auc, first_error
from eval.prm_benchmarks.counts import StepCounts, count_steps, total_counts
from eval.prm_benchmarks.items import Item, Scores
from eval.prm_benchmarks.result import BenchmarkResult, Table, mean

REDUNDANCY_THRESHOLD = 0.15
"""P(neutral) above which a step is redundant, for models with three classes."""
PUBLISHED_COUNTS = {"reasoneval_invalid": 159, "reasoneval_redundant": 300, "reasoneval_perturbation": 1064}


def measure_reasoneval(items: Sequence[Item], threshold: float) -> BenchmarkResult:
    """Return the numbers of the files at hand; the headline is the solution AUC of invalid errors."""
    by_file = {name: [item for item in items if item.subset == name] for name in PUBLISHED_COUNTS}
    rows: list[tuple[Any, ...]] = []
    metrics: dict[str, Any] = {}
    for name, group in by_file.items():
        if not group or name == "reasoneval_perturbation":
            continue
        is_invalid = name == "reasoneval_invalid"
        numbers = validity_metrics(group, threshold) if is_invalid else redundancy_metrics(group, threshold)
        metrics[name] = numbers
        rows.append((name.removeprefix("reasoneval_") + " errors", len(group), *numbers.values()))
    columns = ("file", "solutions", "solution AUC", "solution macro F1", "step AUC", "step macro F1")
    tables = [Table("ReasonEval, MR-MATH, %", columns, tuple(rows))] if rows else []
    if by_file["reasoneval_perturbation"]:
        kinds = perturbation_metrics(by_file["reasoneval_perturbation"], threshold)
        metrics["reasoneval_perturbation"] = kinds
        tables.append(
            Table(
                "ReasonEval, perturbations (this table is not published), %",
                ("error type", "solutions", "first error named", "step macro F1"),
                tuple((kind, *numbers.values()) for kind, numbers in kinds.items()),
            )
        )
    headline = metrics.get("reasoneval_invalid", {}).get("solution_auc", NAN)
    partial = [
        f"{name.removeprefix('reasoneval_')} {len(group)} of {PUBLISHED_COUNTS[name]}"
        for name, group in by_file.items()
        if len(group) != PUBLISHED_COUNTS[name]
    ]
    notes = [f"not the published rows, so not comparable with published numbers: {', '.join(partial)}"]
    return BenchmarkResult(
        benchmark="reasoneval",
        headline=("solution AUC, invalid errors", headline),
        tables=tuple(tables),
        notes=tuple(notes if partial else ()),
        metrics=metrics,
    )


def validity_metrics(group: Sequence[Item], threshold: float) -> dict[str, float]:
    """Return solution and step AUC and macro F1 of first errors. Right solutions and steps are positive."""
    truths = [[float(item.solution.first_error == -1)] for item in group]
    return _both_levels(
        truths, [item.solution.labels for item in group], [i.scores for i in group], threshold
    )


def redundancy_metrics(group: Sequence[Item], threshold: float) -> dict[str, float]:
    """Return the same of redundant steps: useful ones, and solutions of useful ones only, are positive."""
    ratings = [[float(rating) for rating in item.solution.meta["ratings"]] for item in group]
    if all(item.neutral is not None for item in group):
        # The authors threshold -P(neutral) at -0.15; negated so that "higher is better" holds here as well.
        scores = [[None if p is None else -p for p in item.neutral or ()] for item in group]
        threshold = -REDUNDANCY_THRESHOLD
    else:
        scores = [list(item.scores) for item in group]
    return _both_levels([[min(row)] for row in ratings], ratings, scores, threshold)


def perturbation_metrics(group: Sequence[Item], threshold: float) -> dict[str, dict[str, float]]:
    """Return, by error type, the share of known first errors named exactly, and the step macro F1."""
    kinds: dict[str, list[Item]] = {}
    for item in group:
        kinds.setdefault(item.solution.meta["error_type"], []).append(item)
    return {
        kind: {
            "num_solutions": len(members),
            "first_error_accuracy": mean(
                [
                    float(first_error(item.scores, threshold) == item.solution.first_error)
                    for item in members
                    if item.solution.first_error is not None
                ]
            ),
            "step_macro_f1": total_counts(
                count_steps(item.solution.labels, item.scores, threshold) for item in members
            ).macro_f1,
        }
        for kind, members in kinds.items()
    }


def _both_levels(
    solution_truths: Sequence[Sequence[float]],
    step_truths: Sequence[Sequence[float | None]],
    scores: Sequence[Scores | list[float | None]],
    threshold: float,
) -> dict[str, float]:
    least = [[min((s for s in row if s is not None), default=None)] for row in scores]
    return {
        "solution_auc": _auc(solution_truths, least),
        "solution_macro_f1": total_counts(map_counts(solution_truths, least, threshold)).macro_f1,
        "step_auc": _auc(step_truths, scores),
        "step_macro_f1": total_counts(map_counts(step_truths, scores, threshold)).macro_f1,
    }


def map_counts(truths: Ragged, scores: Ragged, threshold: float) -> list[StepCounts]:
    """Return the counts of each solution's steps."""
    return [count_steps(truth, row, threshold) for truth, row in zip(truths, scores, strict=True)]


def _auc(truths: Sequence[Sequence[float | None]], scores: Sequence[Sequence[float | None]]) -> float:
    pairs = [
        (truth, score)
        for truth_row, row in zip(truths, scores, strict=True)
        for truth, score in zip(truth_row, row, strict=True)
        if truth is not None and score is not None
    ]
    return auc([truth for truth, _ in pairs], [score for _, score in pairs]) if pairs else NAN
