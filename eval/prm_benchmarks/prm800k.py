"""PRM800K's step labels: AUC and accuracy under three readings of its neutral rating. arXiv:2305.20050.

Not the paper's best-of-1860, which needs its sampled solutions: give those to `eval.prm_benchmarks.curves`.
"""

from collections.abc import Mapping, Sequence

from eval.metrics import solution_metrics
from eval.prm_benchmarks.items import Item
from eval.prm_benchmarks.result import BenchmarkResult, Table

READINGS: Mapping[str, float | None] = {"positive": 1.0, "negative": 0.0, "left out": None}
"""What a neutral rating (read as 0.5) counts as. Positive is how the authors score."""


def measure_prm800k(items: Sequence[Item], threshold: float) -> BenchmarkResult:
    """Return step AUC, accuracy and calibration for each reading of "neutral"."""
    scores = [item.scores for item in items]
    metrics = {}
    for reading, value in READINGS.items():
        labels = [[value if label == 0.5 else label for label in i.solution.labels] for i in items]
        numbers = solution_metrics(labels, scores, threshold)
        # Its first error is the first step *rated* wrong: in a record with one rating, that one.
        metrics[reading] = {k: v for k, v in numbers.items() if not k.startswith("first_error")}
    names = ("num_steps", "share_correct", "step_auc", "balanced_accuracy", "step_accuracy", "ece")
    rows = tuple(
        (reading, int(numbers["num_steps"]), *(numbers[name] for name in names[1:]))
        for reading, numbers in metrics.items()
    )
    notes = ["the published figure, best-of-1860, needs the authors' samples: not this number"]
    files = sorted({item.subset for item in items})
    if len(files) > 1:
        notes.append(f"several files were put together, ratings they share count again: {', '.join(files)}")
    columns = ("neutral is", "steps", "right", "step AUC", "balanced acc.", "accuracy", "ECE")
    return BenchmarkResult(
        benchmark="prm800k",
        headline=("step AUC, neutral positive", metrics["positive"]["step_auc"]),
        tables=(Table("PRM800K step labels, %", columns, rows),),
        notes=tuple(notes),
        metrics=metrics,
    )
