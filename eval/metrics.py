"""Numbers about answers and about steps, with intervals. numpy and the standard library, nothing else.

Answers: pass@k, maj@k and the 95% intervals of a mean. Steps: AUC, calibration, and ProcessBench's F1 of the
first wrong step. A *label* is in [0, 1] and counts as "correct step" from 0.5 on; a *score* is a model's
probability of "correct", and says "wrong" below the threshold. None is a step without label or score.
A metric that is not defined (an AUC of one class, the mean of nothing) is NaN, never 0.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

import numpy as np

NAN = float("nan")
Ragged = Sequence[Sequence[float | None]]

# --- answers ---------------------------------------------------------------------------------------------


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the chance that at least one of k samples, drawn without repetition, is correct.

    Unbiased: 1 - C(n - c, k) / C(n, k), arXiv:2107.03374 Eq. 1; exact integers, so no overflow.
    """
    assert 1 <= k <= num_samples, (k, num_samples)
    assert 0 <= num_correct <= num_samples, (num_correct, num_samples)
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_index(answers: Sequence[str | None]) -> int | None:
    """Return the index of the first sample that gave the most frequent answer, None when none gave any.

    A tie goes to the answer seen first; None does not vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None
    # Counter keeps the order of first appearance, and max returns the first of equals.
    return list(answers).index(max(votes, key=votes.__getitem__))


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Return 1.0 when the majority answer of the first k samples is correct, else 0.0."""
    assert len(answers) == len(correct) and 1 <= k <= len(answers), (len(answers), len(correct), k)
    index = majority_index(answers[:k])
    return float(index is not None and correct[index])


def best_of_n(scores: Sequence[float | None], correct: Sequence[bool], k: int) -> float:
    """Return 1.0 when the highest scored of the first k samples is correct, else 0.0.

    A tie goes to the sample seen first; a sample without score is chosen last.
    """
    assert len(scores) == len(correct) and 1 <= k <= len(scores), (len(scores), len(correct), k)
    return float(correct[best_index(scores[:k])])


def best_index(scores: Sequence[float | None]) -> int:
    """Return the index of the highest score, the first of equals."""
    known = [-math.inf if score is None else score for score in scores]
    return known.index(max(known))


def weighted_vote_index(answers: Sequence[str | None], scores: Sequence[float | None]) -> int | None:
    """Return the index of the first sample with the answer whose scores sum highest, None without answers.

    Scores are weights: probabilities, not logits. Source: arXiv:2206.02336 Eq. 4. Ties as in a majority vote.
    """
    weights: dict[str, float] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            weights[answer] = weights.get(answer, 0.0) + (score or 0.0)
    if not weights:
        return None
    return list(answers).index(max(weights, key=weights.__getitem__))


def weighted_vote(
    answers: Sequence[str | None], scores: Sequence[float | None], correct: Sequence[bool], k: int
) -> float:
    """Return 1.0 when the answer with the highest sum of scores in k samples is correct, else 0.0."""
    assert len(answers) == len(scores) == len(correct) and 1 <= k <= len(answers)
    index = weighted_vote_index(answers[:k], scores[:k])
    return float(index is not None and correct[index])


# --- intervals -------------------------------------------------------------------------------------------


def wilson_interval(num_correct: int, num_total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return (low, high) of a proportion by Wilson's score method; never empty, also at 0% and 100%."""
    if num_total == 0:
        return NAN, NAN
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_correct / num_total
    scale = 1 + z * z / num_total
    centre = (share + z * z / (2 * num_total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / num_total + z * z / (4 * num_total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return (low, high) of the mean by the percentile bootstrap over `values`, one value a problem.

    The same seed gives the same interval. NaN for fewer than two values: of one every resample is the same.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return NAN, NAN
    rng = np.random.default_rng(seed)
    # One resample at a time: all of them at once would need num_resamples * len(values) integers.
    means = [array[rng.integers(array.size, size=array.size)].mean() for _ in range(num_resamples)]
    return _percentiles(means, confidence)


def paired_interval(
    first: Sequence[float], second: Sequence[float], *, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95% bootstrap interval (low, high) of mean(second - first), resampling whole problems.

    Narrower than two intervals side by side: what makes a problem hard for both runs cancels.
    """
    assert len(first) == len(second), (len(first), len(second))
    differences = [b - a for a, b in zip(first, second, strict=True)]
    return bootstrap_interval(differences, num_resamples=num_resamples, seed=seed)


def sign_test(num_better: int, num_worse: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: ups and downs were equally likely."""
    total = num_better + num_worse
    if total == 0:
        return 1.0
    tail = sum(math.comb(total, k) for k in range(min(num_better, num_worse) + 1))
    return min(1.0, 2 * tail / 2**total)


# Student's t, 97.5% quantile, for 1..30 degrees of freedom.
_T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval (low, high) of the mean of a few repeated runs, one value a seed (Student's t).

    NaN for fewer than two values: one run says nothing about the spread.
    """
    if len(values) < 2:
        return NAN, NAN
    df = len(values) - 1
    if df <= len(_T_975):
        quantile = _T_975[df - 1]
    else:  # expansion around the normal quantile, right to 1e-4 beyond the table
        z = NormalDist().inv_cdf(0.975)
        quantile = z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
    mean = fmean(values)
    half = quantile * stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def _percentiles(values: Sequence[float], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


# --- steps -----------------------------------------------------------------------------------------------


def auc(labels: Sequence[float], scores: Sequence[float]) -> float:
    """Return the chance that a correct step outscores a wrong one, ties half; NaN when a class is absent."""
    return _weighted_auc(*_sorted_groups(labels, scores), np.ones(len(labels)))


def auc_interval(
    labels: Ragged, scores: Ragged, *, confidence: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap interval (low, high) of the AUC, resampling whole solutions.

    Steps of one solution resemble each other; resampling steps would make the interval too narrow. Steps
    without label or score are left out, as are resamples in which a class is absent.
    """
    flat_labels, flat_scores, owners = _flatten(labels, scores)
    order, positive, group_starts = _sorted_groups(flat_labels, flat_scores)
    owner = np.asarray(owners, dtype=np.int64)
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(num_resamples if owners else 0):
        drawn = np.bincount(rng.integers(len(labels), size=len(labels)), minlength=len(labels))
        value = _weighted_auc(order, positive, group_starts, drawn[owner].astype(np.float64))
        if not math.isnan(value):
            results.append(value)
    return _percentiles(results, confidence) if results else (NAN, NAN)


def ece(labels: Sequence[float], scores: Sequence[float], num_bins: int = 15) -> float:
    """Return the expected calibration error: mean |score - label| over equal-width bins, weighted by size.

    Source: arXiv:1706.04599 Eq. 3. Labels may be soft; a score of 1 belongs to the last bin.
    """
    if len(labels) == 0:
        return NAN
    label, score = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    bins = np.clip((score * num_bins).astype(np.int64), 0, num_bins - 1)
    gaps = np.bincount(bins, weights=score - label, minlength=num_bins)
    return float(np.abs(gaps).sum() / label.size)


def step_metrics(
    labels: Sequence[float], scores: Sequence[float], threshold: float = 0.5
) -> dict[str, float]:
    """Return step_auc, step_accuracy, balanced_accuracy, majority_accuracy, ece and share_correct of N steps.

    majority_accuracy is what always giving the commoner answer would reach: accuracy means nothing beside it.
    balanced_accuracy is the mean of the accuracies on correct and on wrong steps (NaN without one of them).
    """
    assert len(labels) == len(scores), (len(labels), len(scores))
    if len(labels) == 0:
        names = ("step_auc", "step_accuracy", "balanced_accuracy", "majority_accuracy", "ece")
        return dict.fromkeys((*names, "share_correct"), NAN)
    correct = np.asarray(labels, dtype=np.float64) >= 0.5
    hit = (np.asarray(scores, dtype=np.float64) >= threshold) == correct
    share = float(correct.mean())
    both = bool(correct.any() and not correct.all())
    return {
        "step_auc": auc(labels, scores),
        "step_accuracy": float(hit.mean()),
        "balanced_accuracy": float((hit[correct].mean() + hit[~correct].mean()) / 2) if both else NAN,
        "majority_accuracy": max(share, 1 - share),
        "ece": ece(labels, scores),
        "share_correct": share,
    }


# --- the first wrong step --------------------------------------------------------------------------------


def first_error(scores: Sequence[float | None], threshold: float = 0.5) -> int:
    """Return the index of the first step scored below the threshold, -1 when none is; None is passed over."""
    return next((k for k, score in enumerate(scores) if score is not None and score < threshold), -1)


def harmonic_mean(a: float, b: float) -> float:
    """Return 2ab / (a + b), 0 when both are 0."""
    return 0.0 if a == b == 0 else 2 * a * b / (a + b)


def first_error_accuracies(
    first_errors: Sequence[int], scores: Ragged, threshold: float = 0.5
) -> tuple[float, float]:
    """Return the accuracy on solutions with an error (exactly its first step named) and on correct ones."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for label, row in zip(first_errors, scores, strict=True):
        hits[label >= 0].append(first_error(row, threshold) == label)
    wrong, correct = (fmean(hits[key]) if hits[key] else NAN for key in (True, False))
    return wrong, correct


def first_error_f1(first_errors: Sequence[int], scores: Ragged, threshold: float = 0.5) -> float:
    """Return ProcessBench's F1 in [0, 1], arXiv:2412.06559: harmonic mean of the two accuracies.

    `first_errors` holds 0-based indices, -1 for a correct solution. NaN when either kind is absent.
    """
    return harmonic_mean(*first_error_accuracies(first_errors, scores, threshold))


def best_threshold(first_errors: Sequence[int], scores: Ragged) -> tuple[float, float]:
    """Return (threshold, F1) with the highest ProcessBench F1; of equals the lowest threshold.

    Exact, not a grid: a solution with its first error at e is right for thresholds in
    (score_e, lowest score before e], a correct one for those up to its lowest score. To be chosen on one set
    and reported on another. (0.5, NaN) when either kind of solution is absent.
    """
    opens, closes, lowest = [], [], []  # (opens, closes] of wrong solutions, (-inf, lowest] of correct ones
    num_wrong = 0
    for label, row in zip(first_errors, scores, strict=True):
        before = min((s for s in (row if label < 0 else row[:label]) if s is not None), default=math.inf)
        if label < 0:
            lowest.append(before)
            continue
        num_wrong += 1
        at = row[label] if label < len(row) else None
        if at is not None and at < before:
            opens.append(at)
            closes.append(before)
    if not num_wrong or not lowest:
        return 0.5, NAN
    ends = np.unique([value for value in (*opens, *closes, *lowest) if math.isfinite(value)])
    if ends.size == 0:
        return 0.5, first_error_f1(first_errors, scores, 0.5)
    # F1 is constant on (ends[i-1], ends[i]]; one more candidate stands for everything above the last end.
    candidates = np.append(ends, ends[-1] + max(1e-6, abs(ends[-1]) * 1e-6))
    hit_wrong = np.searchsorted(np.sort(opens), candidates) - np.searchsorted(np.sort(closes), candidates)
    acc_wrong = hit_wrong / num_wrong
    acc_correct = 1 - np.searchsorted(np.sort(lowest), candidates) / len(lowest)
    f1 = [harmonic_mean(a, b) for a, b in zip(acc_wrong.tolist(), acc_correct.tolist(), strict=True)]
    best = int(np.argmax(f1))
    threshold = float(candidates[best])
    if best > 0:  # the middle of the interval carries over to other data better than its end
        middle = float(candidates[best - 1] + candidates[best]) / 2
        threshold = middle if middle > candidates[best - 1] else threshold
    return threshold, f1[best]


def solution_metrics(labels: Ragged, scores: Ragged, threshold: float = 0.5) -> dict[str, float]:
    """Return step_metrics of the steps that have both, and ProcessBench's numbers of the solutions.

    Adds first_error_f1, first_error_acc_wrong, first_error_acc_correct, num_solutions (with any label),
    num_steps (with label and score) and unscored_steps (with a label only). The first error is the first
    step labelled below 0.5.
    """
    flat_labels, flat_scores, _ = _flatten(labels, scores)
    rated = [k for k, row in enumerate(labels) if any(label is not None for label in row)]
    first_errors = [first_error(labels[k], 0.5) for k in rated]
    acc_wrong, acc_correct = first_error_accuracies(first_errors, [scores[k] for k in rated], threshold)
    num_labels = sum(label is not None for row in labels for label in row)
    return {
        **step_metrics(flat_labels, flat_scores, threshold),
        "first_error_f1": harmonic_mean(acc_wrong, acc_correct),
        "first_error_acc_wrong": acc_wrong,
        "first_error_acc_correct": acc_correct,
        "num_solutions": float(len(rated)),
        "num_steps": float(len(flat_labels)),
        "unscored_steps": float(num_labels - len(flat_labels)),
    }


def _flatten(labels: Ragged, scores: Ragged) -> tuple[list[float], list[float], list[int]]:
    """Labels, scores and index of the solution, of every step that has both."""
    flat_labels: list[float] = []
    flat_scores: list[float] = []
    owners: list[int] = []
    for owner, (label_row, score_row) in enumerate(zip(labels, scores, strict=True)):
        for label, score in zip(label_row, score_row, strict=True):
            if label is not None and score is not None:
                flat_labels.append(label)
                flat_scores.append(score)
                owners.append(owner)
    return flat_labels, flat_scores, owners


def _sorted_groups(
    labels: Sequence[float], scores: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order by score (N,), is-correct in that order (N,), start of each run of equal scores."""
    score = np.asarray(scores, dtype=np.float64)
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if score.size else np.zeros(0, int)
    return order, np.asarray(labels, dtype=np.float64)[order] >= 0.5, starts


def _weighted_auc(
    order: np.ndarray, positive: np.ndarray, group_starts: np.ndarray, weights: np.ndarray
) -> float:
    """Mann-Whitney's U over the number of pairs, each step counted `weights` times."""
    if order.size == 0:
        return NAN
    weight = weights[order]
    up = np.add.reduceat(np.where(positive, weight, 0.0), group_starts)
    down = np.add.reduceat(np.where(positive, 0.0, weight), group_starts)
    pairs = up.sum() * down.sum()
    if pairs == 0:
        return NAN
    below = np.cumsum(down) - down
    return float((up * (below + down / 2)).sum() / pairs)
