"""MR-GSM8K and BIG-Bench-Mistake: is the solution right, and where is its first mistake?

arXiv:2312.17080 (rules of dvlab-research/MR-GSM8K, scripts/calculate_mr_score.py) and arXiv:2311.08516.
"""

from collections.abc import Sequence

from eval.metrics import first_error
from eval.prm_benchmarks.counts import StepCounts, matthews
from eval.prm_benchmarks.items import Item
from eval.prm_benchmarks.reasoneval import validity_metrics
from eval.prm_benchmarks.result import BenchmarkResult, Table, mean

MR_WEIGHTS = (0.2, 0.3, 0.5)
"""Of Matthews' correlation, of the first step's and of the reason's accuracy in the MR-Score."""
MR_GSM8K_COUNTS = (1573, 1427)
"""Published solutions with and without an error."""


def measure_mr_gsm8k(items: Sequence[Item], threshold: float) -> BenchmarkResult:
    """Return first-step accuracy (of the wrong solutions), Matthews' correlation and the MR-Score without
    its third part: step scores give no reason, so it cannot exceed 0.5. By question type as well."""
    kinds = dict.fromkeys(str(item.solution.meta.get("question_type", "")) for item in items)
    groups = {
        kind: [item for item in items if str(item.solution.meta.get("question_type", "")) == kind]
        for kind in sorted(kinds)
    }
    by_kind = {kind: mr_metrics(group, threshold) for kind, group in groups.items() if kind}
    overall = mr_metrics(items, threshold)
    levels = validity_metrics(items, threshold)
    columns = ("question type", "wrong", "right", "first step acc.", "Matthews", "MR-Score, no reasons")
    rows = [(kind, *numbers.values()) for kind, numbers in by_kind.items()]
    rows.append(("all", *overall.values()))
    tables = (
        Table("MR-GSM8K, %", columns, tuple(rows)),
        Table(
            "MR-GSM8K by ReasonEval's rules, %",
            ("solution AUC", "solution macro F1", "step AUC", "step macro F1"),
            (tuple(levels.values()),),
        ),
    )
    notes = [
        "the MR-Score's third part (0.5 x accuracy of the stated reason) needs a model that gives reasons"
    ]
    counts = (overall["num_wrong"], overall["num_right"])
    if counts != MR_GSM8K_COUNTS:
        notes.append(
            f"{counts[0]} wrong and {counts[1]} right solutions, published {MR_GSM8K_COUNTS[0]} and "
            f"{MR_GSM8K_COUNTS[1]}: not comparable with published numbers"
        )
    if not counts[1]:
        notes.append("no right solution in the data: Matthews' correlation is 0 whatever the scores")
    return BenchmarkResult(
        benchmark="mr_gsm8k",
        headline=("accuracy of the first wrong step", overall["first_step_accuracy"]),
        tables=tables,
        notes=tuple(notes),
        metrics={"all": overall, "question_types": by_kind, "reasoneval_rules": levels},
    )


def mr_metrics(items: Sequence[Item], threshold: float) -> dict[str, float]:
    """Return num_wrong, num_right, first_step_accuracy, matthews (right is positive) and the MR-Score's first
    two parts, 0.2 max(0, matthews) + 0.3 first_step_accuracy."""
    tp = fp = tn = fn = 0
    hits = []
    for item in items:
        truth, said = item.solution.first_error, first_error(item.scores, threshold)
        tp += truth == -1 and said == -1
        fn += truth == -1 and said != -1
        fp += truth != -1 and said == -1
        tn += truth != -1 and said != -1
        if truth != -1:
            hits.append(float(said == truth))
    correlation, accuracy = matthews(StepCounts(tp, fp, tn, fn)), mean(hits)
    located = MR_WEIGHTS[1] * accuracy if hits else 0.0
    return {
        "num_wrong": fp + tn,
        "num_right": tp + fn,
        "first_step_accuracy": accuracy,
        "matthews": correlation,
        "mr_score_without_reasons": MR_WEIGHTS[0] * max(0.0, correlation) + located,
    }


def measure_bigbench_mistake(items: Sequence[Item], threshold: float) -> BenchmarkResult:
    """Return the mistake location accuracy: the exact first mistake named, or rightly none, by task.

    Traces with a wrong and a right answer apart, as published; the headline is the plain mean of the tasks.
    """
    tasks = {name: [i for i in items if i.subset == name] for name in sorted({i.subset for i in items})}
    metrics = {name: location_metrics(group, threshold) for name, group in tasks.items()}
    average = mean([numbers["accuracy"] for numbers in metrics.values()])
    columns = (
        "task", "traces", "accuracy", "with a mistake", "without", "answer right", "answer wrong",
    )  # fmt: skip
    rows = [(name, *numbers.values()) for name, numbers in metrics.items()]
    rows.append(("mean of tasks", len(items), average, None, None, None, None))
    return BenchmarkResult(
        benchmark="bigbench_mistake",
        headline=("mistake location accuracy, mean of tasks", average),
        tables=(Table("BIG-Bench-Mistake, %", columns, tuple(rows)),),
        notes=(
            () if len(items) == 2186 else (f"{len(items)} of the published 2,186 traces: not comparable",)
        ),
        metrics={"tasks": metrics, "average": average},
    )


def location_metrics(items: Sequence[Item], threshold: float) -> dict[str, float]:
    """Return num_traces and the location accuracy of all, of those with and without a mistake, and of those
    whose final answer is right and wrong."""
    hits = [(float(first_error(i.scores, threshold) == i.solution.first_error), i.solution) for i in items]
    return {
        "num_traces": len(items),
        "accuracy": mean([hit for hit, _ in hits]),
        "accuracy_mistake": mean([hit for hit, s in hits if s.first_error != -1]),
        "accuracy_no_mistake": mean([hit for hit, s in hits if s.first_error == -1]),
        "accuracy_answer_right": mean([hit for hit, s in hits if s.answer_correct]),
        "accuracy_answer_wrong": mean([hit for hit, s in hits if s.answer_correct is False]),
    }
