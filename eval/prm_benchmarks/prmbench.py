"""PRMBench: are planted errors of nine kinds found, step by step? arXiv:2501.03124.

PRMScore is the mean of F1 and negative F1 over steps. The controls (untouched solutions) enter the similarity
only. Rules follow the authors' evaluation code (ssmisya/PRMBench, mr_eval/tasks/prmtest_classified/task.py).
"""

from collections.abc import Sequence
from typing import Any

from eval.prm_benchmarks.counts import StepCounts, count_steps, total_counts
from eval.prm_benchmarks.items import CONTROL, Item
from eval.prm_benchmarks.result import BenchmarkResult, Table, mean

SHORT = {
    "redundency": "NR",
    "circular": "NCL",
    "counterfactual": "ES",
    "step_contradiction": "SC",
    "domain_inconsistency": "DC",
    "confidence": "CI",
    "missing_condition": "PS",
    "deception": "DR",
    "multi_solutions": "MS",
}
"""Class -> its name in the leaderboard; "redundency" is the files' spelling."""
CATEGORIES = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
PUBLISHED_SIZE = 6_211
"""Published rows without repeats and without controls."""
REDUNDANCY_THRESHOLD = 0.15
"""P(neutral) above which ReasonEval calls a step redundant; used for NR and NCL of three-class models."""


def measure_prmbench(items: Sequence[Item], threshold: float) -> BenchmarkResult:
    """Return PRMScore overall and by class and category, with the authors' other step numbers."""
    controls = {
        item.solution.meta["idx"]: rate
        for item in items
        if item.subset == CONTROL and (rate := _right_rate(_verdicts(item, threshold))) is not None
    }
    reported = [item for item in items if item.subset != CONTROL]
    names = [name for name in SHORT if any(item.subset == name for item in reported)]
    names += sorted({item.subset for item in reported} - set(names))
    classes = {
        name: _numbers([item for item in reported if item.subset == name], controls, threshold)
        for name in names
    }
    overall = _numbers(reported, controls, threshold)
    for name, numbers in classes.items():
        numbers["prm_score"] = class_score(name, numbers["counts"])
    overall["prm_score"] = overall["counts"].macro_f1
    categories = {
        kind: mean([classes[name]["prm_score"] for name in members])
        for kind, members in CATEGORIES.items()
        if all(name in classes for name in members)
    }
    columns = (
        "class", "short", "solutions", "PRMScore", "F1", "negative F1", "step acc.", "right steps",
        "wrong steps", "first error", "similarity",
    )  # fmt: skip
    rows = [_row(name, SHORT.get(name, ""), numbers) for name, numbers in classes.items()]
    rows.append(_row("all classes", "", overall))
    tables = [Table("PRMBench, %", columns, tuple(rows))]
    if categories:
        tables.append(
            Table(
                "PRMBench by category: mean of the classes, %",
                ("category", "PRMScore"),
                tuple(categories.items()),
            )
        )
    return BenchmarkResult(
        benchmark="prmbench",
        headline=("PRMScore", overall["prm_score"]),
        tables=tuple(tables),
        notes=tuple(_notes(items, reported, controls)),
        metrics={
            "overall": _plain(overall),
            "classes": {name: _plain(numbers) for name, numbers in classes.items()},
            "categories": categories,
        },
    )


def class_score(name: str, counts: StepCounts) -> float:
    """Return a class's leaderboard column: PRMScore, but F1 for multi_solutions, which has no error."""
    return counts.f1 if name == "multi_solutions" else counts.macro_f1


def _verdicts(item: Item, threshold: float) -> list[float | None]:
    """1 (called right), 0 or None a step."""
    if item.neutral is not None and item.subset in CATEGORIES["simplicity"]:
        return [None if p is None else float(p <= REDUNDANCY_THRESHOLD) for p in item.neutral]
    return [None if score is None else float(score >= threshold) for score in item.scores]


def _numbers(group: Sequence[Item], controls: dict[str, float], threshold: float) -> dict[str, Any]:
    verdicts = [_verdicts(item, threshold) for item in group]
    counts = total_counts(
        count_steps(item.solution.labels, row, 0.5) for item, row in zip(group, verdicts, strict=True)
    )
    first_hits, similarity = [], []
    for item, row in zip(group, verdicts, strict=True):
        first = item.solution.first_error
        if first is not None and first >= 0 and row[first] is not None:
            first_hits.append(float(row[first] == 0.0))
        rate, control = _right_rate(row), controls.get(item.solution.meta["idx"])
        # A control none of whose steps was called right is passed over, as in the authors' code.
        if rate is not None and control:
            similarity.append(abs(rate - control))
    return {
        "counts": counts,
        "num_solutions": len(group),
        "first_error_accuracy": mean(first_hits),
        "similarity": mean(similarity),
    }


def _right_rate(verdicts: Sequence[float | None]) -> float | None:
    known = [verdict for verdict in verdicts if verdict is not None]
    return mean(known) if known else None


def _row(name: str, short: str, numbers: dict[str, Any]) -> tuple[Any, ...]:
    counts: StepCounts = numbers["counts"]
    return (
        name, short, numbers["num_solutions"], numbers["prm_score"], counts.f1, counts.negative_f1,
        counts.accuracy, counts.accuracy_right, counts.accuracy_wrong, numbers["first_error_accuracy"],
        numbers["similarity"],
    )  # fmt: skip


def _plain(numbers: dict[str, Any]) -> dict[str, Any]:
    counts: StepCounts = numbers["counts"]
    return {key: value for key, value in numbers.items() if key != "counts"} | {
        "f1": counts.f1,
        "negative_f1": counts.negative_f1,
        "step_accuracy": counts.accuracy,
        "accuracy_right": counts.accuracy_right,
        "accuracy_wrong": counts.accuracy_wrong,
        "tp": counts.tp,
        "fp": counts.fp,
        "tn": counts.tn,
        "fn": counts.fn,
    }


def _notes(items: Sequence[Item], reported: Sequence[Item], controls: dict[str, float]) -> list[str]:
    notes = []
    if len(reported) != PUBLISHED_SIZE:
        notes.append(
            f"{len(reported)} of the published {PUBLISHED_SIZE} rows: not comparable with published PRMScores"
        )
    if not controls:
        notes.append('no controls (they come with the rows of class "redundency"): no similarity')
    if any(item.neutral is not None for item in items):
        notes.append(f"NR and NCL go by P(neutral) > {REDUNDANCY_THRESHOLD}, as for ReasonEval")
    if any("prm_train_p1" in str(item.solution.meta["idx"]) for item in reported):
        notes.append("rows prm_train_p1 use PRM800K phase 1 training problems: seen by models trained on it")
    return notes
