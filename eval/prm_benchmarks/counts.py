"""Step verdicts counted against step labels, and the F1s that PRMBench and ReasonEval make of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.metrics import NAN, harmonic_mean


@dataclass(frozen=True, slots=True)
class StepCounts:
    """Steps by verdict and truth. "Right" is the positive class."""

    tp: int = 0
    """Right steps called right."""
    fp: int = 0
    """Wrong steps called right."""
    tn: int = 0
    """Wrong steps called wrong."""
    fn: int = 0
    """Right steps called wrong."""

    def __add__(self, other: "StepCounts") -> "StepCounts":
        return StepCounts(self.tp + other.tp, self.fp + other.fp, self.tn + other.tn, self.fn + other.fn)

    @property
    def f1(self) -> float:
        """F1 with right steps as the positive class; 0 where it finds none, NaN without a right step."""
        return _f1(self.tp, self.fp, self.fn)

    @property
    def negative_f1(self) -> float:
        """F1 with wrong steps as the positive class; NaN without a wrong step."""
        return _f1(self.tn, self.fn, self.fp)

    @property
    def macro_f1(self) -> float:
        """Mean of both: PRMBench calls it PRMScore, ReasonEval macro F1. NaN where one of them is."""
        return 0.5 * self.f1 + 0.5 * self.negative_f1

    @property
    def accuracy(self) -> float:
        """Share of all steps called what they are; NaN without a step."""
        return _share(self.tp + self.tn, self.total)

    @property
    def accuracy_right(self) -> float:
        """Share of the right steps called right."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def accuracy_wrong(self) -> float:
        """Share of the wrong steps called wrong."""
        return _share(self.tn, self.tn + self.fp)

    @property
    def total(self) -> int:
        """Steps counted."""
        return self.tp + self.fp + self.tn + self.fn


def count_steps(
    labels: Sequence[float | None], scores: Sequence[float | None], threshold: float
) -> StepCounts:
    """Return the counts of the steps that have both label and score; a score below the threshold is "wrong".

    Labels count as right from 0.5 on.
    """
    tp = fp = tn = fn = 0
    for label, score in zip(labels, scores, strict=True):
        if label is None or score is None:
            continue
        match label >= 0.5, score >= threshold:
            case True, True:
                tp += 1
            case False, True:
                fp += 1
            case False, False:
                tn += 1
            case True, False:
                fn += 1
    return StepCounts(tp, fp, tn, fn)


def total_counts(counts: Iterable[StepCounts]) -> StepCounts:
    """Return the sum of all counts."""
    return sum(counts, StepCounts())


def matthews(counts: StepCounts) -> float:
    """Return Matthews' correlation of verdict and truth in [-1, 1]; 0 where a margin is empty."""
    tp, fp, tn, fn = counts.tp, counts.fp, counts.tn, counts.fn
    scale = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / scale**0.5 if scale else 0.0


def _f1(hits: int, false_alarms: int, misses: int) -> float:
    """Harmonic mean of precision and recall of one class."""
    if hits + misses == 0:
        return NAN
    return harmonic_mean(_share(hits, hits + false_alarms) if hits else 0.0, _share(hits, hits + misses))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else NAN
