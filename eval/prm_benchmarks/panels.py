"""The numbers behind the pictures of a run: computed once, drawn by `plots`, kept in result.json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from data.aggregation import Aggregation
from eval.metrics import auc_interval, solution_metrics
from eval.prm_benchmarks.curves import (
    ReliabilityBin,
    ThresholdPoint,
    best_of_n_curve,
    localisation,
    reliability_bins,
    solution_pools,
    threshold_sweep,
)
from eval.prm_benchmarks.items import Item
from eval.prm_benchmarks.result import Table, finite

BEST_OF = ("min", "prod", "last", "mean")
"""Ways to make a solution's score of its steps' for best-of-N."""


@dataclass(frozen=True, slots=True)
class Panels:
    """What every benchmark shows beside its own metric. Neutral ratings (0.5) count as right here."""

    steps: dict[str, float]
    """`eval.metrics.step_metrics`, step_auc_low and _high (95 %, whole solutions resampled), counts."""
    reliability: list[ReliabilityBin]
    """Empty where scores are no probabilities."""
    sweep: list[ThresholdPoint]
    localisation: dict[str, float]
    best_of_n: dict[str, dict[int, float]]
    """Aggregation -> n -> accuracy; empty without problems that have several solutions of known outcome."""
    num_pools: int
    threshold: float

    def to_dict(self) -> dict[str, Any]:
        return finite(asdict(self))

    def tables(self) -> list[Table]:
        """Return the same as tables."""
        names = {
            "step_auc": "step AUC",
            "step_auc_low": "step AUC, low",
            "step_auc_high": "step AUC, high",
            "ece": "ECE",
            "step_accuracy": "step accuracy",
            "majority_accuracy": "majority class",
            "balanced_accuracy": "balanced accuracy",
            "num_steps": "steps",
            "unscored_steps": "steps without a score",
        }
        counts = ("num_steps", "unscored_steps")
        steps = tuple(
            (label, int(self.steps[name]) if name in counts else self.steps[name])
            for name, label in names.items()
            if name in self.steps
        )
        where = tuple((name.replace("_", " "), value) for name, value in self.localisation.items())
        found = [
            Table(f"All steps, threshold {self.threshold:.4g}, %", ("number", "value"), steps),
            Table("Where the first step called wrong lies, % of wrong solutions", ("place", "share"), where),
        ]
        if self.best_of_n:
            ns = list(next(iter(self.best_of_n.values())))
            rows = tuple((how, *curve.values()) for how, curve in self.best_of_n.items())
            found.append(
                Table(f"Best of N, {self.num_pools} problems, %", ("aggregation", *map(str, ns)), rows)
            )
        return found


def make_panels(items: Sequence[Item], threshold: float) -> Panels:
    """Return the panels of scored items."""
    labels = [[1.0 if label == 0.5 else label for label in item.solution.labels] for item in items]
    scores = [item.scores for item in items]
    first_errors = [item.solution.first_error for item in items]
    steps = {
        name: value
        for name, value in solution_metrics(labels, scores, threshold).items()
        # Where steps before the first wrong one may be unrated, it need not be the first error.
        if not name.startswith("first_error")
    }
    steps["step_auc_low"], steps["step_auc_high"] = auc_interval(labels, scores, num_resamples=300)
    pairs = [
        (label, score)
        for label_row, row in zip(labels, scores, strict=True)
        for label, score in zip(label_row, row, strict=True)
        if label is not None and score is not None
    ]
    are_probabilities = all(0 <= score <= 1 for _, score in pairs)
    if not are_probabilities:
        steps["ece"] = float("nan")
    problems = [item.solution.problem for item in items]
    outcomes = [item.solution.answer_correct for item in items]
    best: dict[str, dict[int, float]] = {}
    num_pools = 0
    for how in (way for way in get_args(Aggregation) if way in BEST_OF):
        pools = solution_pools(problems, scores, outcomes, how)
        if pools:
            # Each n is a mean over the same problems: beyond the smallest pool they would change.
            smallest = min(map(len, pools))
            ns = sorted({2**k for k in range(smallest.bit_length()) if 2**k <= smallest} | {smallest})
            best[how], num_pools = best_of_n_curve(pools, ns), len(pools)
    return Panels(
        steps=steps,
        reliability=reliability_bins([y for y, _ in pairs], [s for _, s in pairs])
        if pairs and are_probabilities
        else [],
        sweep=threshold_sweep(labels, first_errors, scores),
        localisation=dict(localisation(first_errors, scores, threshold)),
        best_of_n=best,
        num_pools=num_pools,
        threshold=threshold,
    )
