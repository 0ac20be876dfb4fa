"""ProcessBench: which step is the first wrong one? arXiv:2412.06559.

A solution's prediction is its first step scored below the threshold, else "none". Accuracy on solutions with
an error counts only the exact step; F1 is the harmonic mean of the accuracies on solutions with and without
an error; the benchmark's number is the plain mean of the four subsets' F1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.metrics import NAN, best_threshold, first_error_accuracies, harmonic_mean
from eval.prm_benchmarks.items import Item
from eval.prm_benchmarks.result import BenchmarkResult, Table, mean

PUBLISHED_COUNTS = {
    "gsm8k": (207, 193),
    "math": (594, 406),
    "olympiadbench": (661, 339),
    "omnimath": (759, 241),
}
"""Subset -> solutions with and without an error, Table 1 and the official evaluation script."""

CHOSEN_ON = "gsm8k"
"""Subset on which a scalar model's threshold is chosen; the others are then reported with it (Sec. 4.1)."""


def measure_processbench(items: Sequence[Item], threshold: float | str) -> BenchmarkResult:
    """Return the F1s. `threshold` is a number; "gsm8k": the one with the best F1 there, for all subsets, as
    published for models without a natural one; "best": each subset's own, an upper bound and no result.
    """
    subsets = {name: [item for item in items if item.subset == name] for name in _ordered(items)}
    chosen = best_threshold(*_columns(subsets[CHOSEN_ON]))[0] if threshold == "gsm8k" else threshold
    rows: list[tuple[Any, ...]] = []
    metrics: dict[str, dict[str, float]] = {}
    for name, group in subsets.items():
        first_errors, scores = _columns(group)
        used = best_threshold(first_errors, scores)[0] if chosen == "best" else float(chosen)
        wrong, right = first_error_accuracies(first_errors, scores, used)
        num_wrong = sum(label >= 0 for label in first_errors)
        f1 = harmonic_mean(wrong, right)
        metrics[name] = {
            "error_accuracy": wrong,
            "correct_accuracy": right,
            "f1": f1,
            "threshold": used,
            "num_error": num_wrong,
            "num_correct": len(group) - num_wrong,
        }
        rows.append((name, num_wrong, len(group) - num_wrong, wrong, right, f1, f"{used:.4g}"))
    average = mean([numbers["f1"] for numbers in metrics.values()])
    rows.append(("mean of subsets", None, None, NAN, NAN, average, ""))
    columns = ("subset", "with error", "correct", "error acc.", "correct acc.", "F1", "threshold")
    return BenchmarkResult(
        benchmark="processbench",
        headline=("F1, mean of subsets", average),
        tables=(Table("ProcessBench, %", columns, tuple(rows)),),
        notes=tuple(_notes(metrics, chosen, threshold)),
        metrics={"subsets": metrics, "average_f1": average},
    )


def _columns(group: Sequence[Item]) -> tuple[list[int], list[Sequence[float | None]]]:
    first_errors = [item.solution.first_error for item in group if item.solution.first_error is not None]
    assert len(first_errors) == len(group), "the reader gives every solution its first error"
    return first_errors, [item.scores for item in group]


def _ordered(items: Sequence[Item]) -> list[str]:
    found = dict.fromkeys(item.subset for item in items)
    return [
        *(name for name in PUBLISHED_COUNTS if name in found),
        *(n for n in found if n not in PUBLISHED_COUNTS),
    ]


def _notes(metrics: Mapping[str, Any], chosen: float | str, threshold: float | str) -> list[str]:
    notes = []
    absent = [name for name in PUBLISHED_COUNTS if name not in metrics]
    if absent:
        notes.append(f"the mean is over {len(metrics)} of 4 subsets; not in the data: {', '.join(absent)}")
    partial = [
        f"{name} {numbers['num_error'] + numbers['num_correct']} of {sum(PUBLISHED_COUNTS[name])}"
        for name, numbers in metrics.items()
        if name in PUBLISHED_COUNTS
        and (numbers["num_error"], numbers["num_correct"]) != PUBLISHED_COUNTS[name]
    ]
    if partial:
        notes.append(f"not the published rows, so not comparable with published F1s: {', '.join(partial)}")
    if threshold == "gsm8k":
        notes.append(
            f"threshold {chosen:.4g} was chosen on the gsm8k subset itself: its own F1 is optimistic"
        )
    if threshold == "best":
        notes.append("thresholds were chosen on the reported data: an upper bound, not a result")
    return notes
