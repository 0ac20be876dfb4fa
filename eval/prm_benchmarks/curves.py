"""What every benchmark shows beside its own numbers: calibration, thresholds, localisation, best-of-N."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.aggregation import Aggregation, aggregate
from eval.metrics import Ragged, first_error, first_error_accuracies, harmonic_mean
from eval.prm_benchmarks.counts import count_steps, total_counts


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Steps whose scores fall into [low, high)."""

    low: float
    high: float
    num_steps: int
    mean_score: float
    share_right: float


def reliability_bins(
    labels: Sequence[float], scores: Sequence[float], num_bins: int = 15
) -> list[ReliabilityBin]:
    """Return the non-empty equal-width bins of [0, 1], the ones `eval.metrics.ece` sums over."""
    label, score = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    index = np.clip((score * num_bins).astype(np.int64), 0, num_bins - 1)
    bins = []
    for k in range(num_bins):
        inside = index == k
        if inside.any():
            bins.append(
                ReliabilityBin(
                    k / num_bins,
                    (k + 1) / num_bins,
                    int(inside.sum()),
                    float(score[inside].mean()),
                    float(label[inside].mean()),
                )
            )
    return bins


@dataclass(frozen=True, slots=True)
class ThresholdPoint:
    """What one threshold gives: shares, NaN where a class is absent."""

    threshold: float
    first_error_f1: float
    error_accuracy: float
    correct_accuracy: float
    prm_score: float
    """Mean of the step F1s of right and of wrong steps."""


def threshold_sweep(
    labels: Ragged, first_errors: Sequence[int | None], scores: Ragged, num_points: int = 41
) -> list[ThresholdPoint]:
    """Return the numbers at evenly spaced quantiles of the scores, and at 0.5 where they are in [0, 1].

    Solutions whose first error is unknown (None) count in the step numbers only.
    """
    known = np.asarray([s for row in scores for s in row if s is not None], dtype=np.float64)
    if not known.size:
        return []
    points = set(np.quantile(known, np.linspace(0, 1, num_points)).tolist())
    if known.min() >= 0 and known.max() <= 1:
        points |= {0.5}
    rated = [(first, row) for first, row in zip(first_errors, scores, strict=True) if first is not None]
    sweep = []
    for threshold in sorted(points):
        wrong, right = first_error_accuracies(
            [first for first, _ in rated], [row for _, row in rated], threshold
        )
        counts = total_counts(count_steps(a, b, threshold) for a, b in zip(labels, scores, strict=True))
        sweep.append(ThresholdPoint(threshold, harmonic_mean(wrong, right), wrong, right, counts.macro_f1))
    return sweep


def localisation(first_errors: Sequence[int | None], scores: Ragged, threshold: float) -> Mapping[str, float]:
    """Return where the first step called wrong lies, as shares of the solutions that have an error.

    exact, early (before the error), late (behind it), missed (nothing called wrong), within_one (exact or a
    neighbour), and false_alarm: the share of *correct* solutions with a step called wrong.
    """
    said = [
        (truth, first_error(row, threshold))
        for truth, row in zip(first_errors, scores, strict=True)
        if truth is not None
    ]
    wrong = [(truth, guess) for truth, guess in said if truth >= 0]
    right = [guess for truth, guess in said if truth < 0]

    def share(hits: int) -> float:
        return hits / len(wrong) if wrong else math.nan

    return {
        "exact": share(sum(guess == truth for truth, guess in wrong)),
        "early": share(sum(0 <= guess < truth for truth, guess in wrong)),
        "late": share(sum(guess > truth for truth, guess in wrong)),
        "missed": share(sum(guess < 0 for _, guess in wrong)),
        "within_one": share(sum(guess >= 0 and abs(guess - truth) <= 1 for truth, guess in wrong)),
        "false_alarm": sum(guess >= 0 for guess in right) / len(right) if right else math.nan,
    }


def best_of_n_curve(
    pools: Sequence[Sequence[tuple[float, bool]]], ns: Sequence[int], *, pool_size: int | None = None
) -> dict[int, float]:
    """Return n -> chance that the best-scored of n samples is right, averaged over problems.

    A pool holds one problem's (score, is right) samples. The mean over all subsets of n is exact, no drawing;
    ties share their chance. With `pool_size` (PRM800K: 1860) every pool is filled up with samples without an
    answer, which never win and leave a problem wrong where nothing else was drawn. Sizes no pool reaches are
    left out; pools smaller than n count with all they have.
    """
    curve = {}
    for n in ns:
        if n < 1 or (pool_size or max(map(len, pools), default=0)) < n:
            continue
        curve[n] = math.fsum(_win_rate(pool, n, pool_size or len(pool)) for pool in pools) / len(pools)
    return curve


def solution_pools(
    problems: Sequence[str],
    scores: Ragged,
    correct: Sequence[bool | None],
    how: Aggregation,
) -> list[list[tuple[float, bool]]]:
    """Return the pools of the problems with two or more scored solutions of known outcome."""
    pools: dict[str, list[tuple[float, bool]]] = {}
    for problem, row, is_right in zip(problems, scores, correct, strict=True):
        value = aggregate(row, how)
        if value is not None and is_right is not None:
            pools.setdefault(problem, []).append((value, is_right))
    return [pool for pool in pools.values() if len(pool) > 1]


def _win_rate(pool: Sequence[tuple[float, bool]], n: int, size: int) -> float:
    """Chance that the best of n, drawn without repetition from `size` samples, is right."""
    n = min(n, size)
    total = math.comb(size, n)
    rate, below = 0.0, size
    for value in sorted({score for score, _ in pool}, reverse=True):
        tied = [is_right for score, is_right in pool if score == value]
        # Subsets whose best value is this one: none from above it, at least one of the tied.
        subsets = math.comb(below, n) - math.comb(below - len(tied), n)
        rate += subsets / total * sum(tied) / len(tied)
        below -= len(tied)
    return rate
