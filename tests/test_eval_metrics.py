"""Metrics against hand-worked cases, scikit-learn, brute force and published numbers."""

import math
from itertools import combinations
from random import Random

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from eval.metrics import (
    auc,
    auc_interval,
    best_threshold,
    bootstrap_interval,
    ece,
    first_error,
    first_error_accuracies,
    first_error_f1,
    harmonic_mean,
    maj_at_k,
    majority_index,
    mean_interval,
    pass_at_k,
    solution_metrics,
    step_metrics,
    wilson_interval,
)

# (accuracy on solutions with an error, on correct ones, F1) in %, arXiv:2412.06559: six models, four subsets.
PROCESS_BENCH = [
    *[(32.4, 91.7, 47.9), (18.0, 82.0, 29.5), (15.0, 71.1, 24.8), (14.2, 73.0, 23.8)],
    *[(33.8, 99.0, 50.4), (21.7, 72.2, 33.4), (8.2, 43.1, 13.8), (9.6, 45.2, 15.8)],
    *[(24.2, 98.4, 38.8), (21.4, 80.0, 33.8), (10.1, 51.0, 16.9), (10.1, 51.9, 16.9)],
    *[(50.2, 71.5, 59.0), (37.9, 65.3, 48.0), (15.4, 26.0, 19.3), (13.6, 32.8, 19.2)],
    *[(61.8, 82.9, 70.8), (43.8, 69.2, 53.6), (17.9, 31.9, 22.9), (14.0, 41.9, 21.0)],
    *[(53.1, 95.3, 68.2), (48.0, 90.1, 62.6), (35.7, 87.3, 50.7), (29.8, 86.3, 44.3)],
]


@pytest.mark.parametrize(("wrong", "correct", "f1"), PROCESS_BENCH)
def test_the_published_f1_follows_from_the_published_accuracies(wrong, correct, f1):
    assert harmonic_mean(wrong, correct) == pytest.approx(f1, abs=0.05)


def test_f1_of_nothing_right_is_zero():
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(0.0, 1.0) == 0.0


# --- answers ---------------------------------------------------------------------------------------------


def test_pass_at_k_equals_the_share_of_subsets_with_a_correct_sample():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    # 1 - (99/100 * 98/99 * ... ) telescopes: one correct of n, k drawn: k / n.
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, rel=1e-9)


def test_the_majority_is_the_most_frequent_answer_and_a_tie_goes_to_the_first_seen():
    assert majority_index(["3", "5", "5"]) == 1
    assert majority_index(["3", "5", "5", "3"]) == 0
    assert majority_index([None, None, None, "7"]) == 3  # no answer does not vote
    assert majority_index([None, None]) is None
    assert majority_index([]) is None


def test_maj_at_k_looks_at_the_first_k_samples():
    answers, correct = ["3", "5", "5", "3", "3"], [False, True, True, False, False]
    assert [maj_at_k(answers, correct, k) for k in (1, 3, 4, 5)] == [0.0, 1.0, 0.0, 0.0]


# --- intervals -------------------------------------------------------------------------------------------


def test_wilson_by_hand():
    # z = 1.959964, z^2 = 3.841459; 8 of 10: centre (0.8 + 0.1920729) / 1.3841459 = 0.716740, half
    # 1.959964 / 1.3841459 * sqrt(0.016 + 0.0096036) = 0.226578.
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.490162, abs=2e-6)
    assert high == pytest.approx(0.943318, abs=2e-6)


def test_wilson_is_not_empty_at_the_ends_and_is_symmetric():
    low, high = wilson_interval(0, 20)
    assert low == 0.0 and high == pytest.approx(3.841459 / 23.841459, abs=1e-6)
    assert wilson_interval(20, 20) == pytest.approx((1 - high, 1.0))
    assert all(map(math.isnan, wilson_interval(0, 0)))


def test_wilson_of_lower_confidence_lies_inside():
    narrow, wide = wilson_interval(30, 100, 0.8), wilson_interval(30, 100, 0.99)
    assert wide[0] < narrow[0] < 0.3 < narrow[1] < wide[1]


def test_the_bootstrap_agrees_with_the_normal_interval_of_many_values():
    values = np.random.default_rng(0).beta(2, 3, size=2000)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    low, high = bootstrap_interval(values.tolist(), num_resamples=4000)
    assert low == pytest.approx(values.mean() - half, abs=half * 0.1)
    assert high == pytest.approx(values.mean() + half, abs=half * 0.1)


def test_the_bootstrap_depends_on_its_seed_only():
    values = [0.0, 0.25, 1.0, 0.5]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval([0.5] * 9) == (0.5, 0.5)
    assert all(map(math.isnan, bootstrap_interval([])))


def test_the_interval_over_seeds_by_hand():
    # mean 2, standard deviation 1, t(2) = 4.3027: half = 4.3027 / sqrt(3) = 2.48416
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.48416, 2 + 2.48416), abs=1e-4)
    assert all(map(math.isnan, mean_interval([1.0])))


@pytest.mark.parametrize(("df", "t"), [(1, 12.7062), (9, 2.2622), (30, 2.0423), (40, 2.0211), (120, 1.9799)])
def test_the_quantile_of_student_by_degrees_of_freedom(df, t):
    # Published table values; beyond 30 an expansion takes over.
    values = [float(k % 2) for k in range(df + 1)]
    low, high = mean_interval(values)
    half = t * np.std(values, ddof=1) / math.sqrt(df + 1)
    assert (high - low) / 2 == pytest.approx(half, rel=1e-4)


# --- steps -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auc_equals_scikit_learns_also_with_ties(levels):
    rng = Random(levels)
    labels = [float(rng.random() < 0.3) for _ in range(300)]
    scores = [rng.randrange(levels) / levels for _ in labels]
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_by_hand_and_where_it_is_undefined():
    # Pairs (right, wrong): 0.9>0.4, 0.9>0.6, 0.4=0.4 (half), 0.4<0.6: 2.5 of 4.
    assert auc([1, 0, 1, 0], [0.9, 0.4, 0.4, 0.6]) == 0.625
    assert math.isnan(auc([1, 1], [0.2, 0.3]))
    assert math.isnan(auc([], []))


def test_the_auc_interval_resamples_whole_solutions():
    rng = Random(3)
    labels, scores = [], []
    for _ in range(60):
        labels.append([float(rng.random() < 0.6) for _ in range(4)])
        scores.append([0.3 * label + rng.random() for label in labels[-1]])
    flat = [sum(rows, []) for rows in (labels, scores)]
    low, high = auc_interval(labels, scores)
    assert low < auc(*flat) < high
    assert auc_interval(labels, scores) == (low, high)
    # Ten copies of each step inside its solution say nothing new; as steps of their own they would
    # narrow the interval by sqrt(10).
    copied = auc_interval([row * 10 for row in labels], [row * 10 for row in scores])
    assert copied == pytest.approx((low, high), abs=1e-12)


def test_the_auc_interval_equals_a_slow_bootstrap():
    labels = [[1.0, 0.0], [1.0], [0.0, 0.0, 1.0], [1.0, None, 0.0]]
    scores = [[0.9, 0.2], [0.6], [0.5, 0.7, None], [0.4, 0.1, 0.4]]
    rng = np.random.default_rng(5)
    values = []
    for _ in range(200):
        drawn = rng.integers(4, size=4)
        pairs = [
            (label, score)
            for k in drawn
            for label, score in zip(labels[k], scores[k], strict=True)
            if label is not None and score is not None
        ]
        if len({label for label, _ in pairs}) == 2:
            values.append(roc_auc_score(*zip(*pairs, strict=True)))
    expected = np.quantile(values, [0.025, 0.975])
    assert auc_interval(labels, scores, num_resamples=200, seed=5) == pytest.approx(
        tuple(expected), abs=1e-12
    )


def test_ece_by_hand():
    # 15 bins of 1/15: 0.50 and 0.51 share bin 7 (mean score 0.505, mean label 0.5), 1.0 is in the last bin
    # (label 0, gap 1), 0.9 in bin 13 (label 1, gap 0.1): (2 * 0.005 + 1 * 1 + 1 * 0.1) / 4.
    assert ece([1, 0, 0, 1], [0.50, 0.51, 1.0, 0.9]) == pytest.approx((0.01 + 1 + 0.1) / 4)


def test_ece_is_zero_for_scores_that_say_the_soft_label():
    labels = [0.1, 0.35, 0.7, 1.0]
    assert ece(labels, labels) == pytest.approx(0.0)
    assert math.isnan(ece([], []))


def test_step_metrics_by_hand():
    # Said correct, wrong, correct, wrong, correct: 2 of 3 correct steps and 1 of 2 wrong ones are hit.
    labels, scores = [1.0, 0.0, 0.0, 1.0, 1.0], [0.9, 0.1, 0.8, 0.3, 0.6]
    metrics = step_metrics(labels, scores, 0.6)
    assert metrics["step_accuracy"] == pytest.approx(3 / 5)
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    said = [score >= 0.6 for score in scores]
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, said))
    assert metrics["majority_accuracy"] == pytest.approx(3 / 5)
    assert metrics["share_correct"] == pytest.approx(3 / 5)
    assert metrics["step_auc"] == pytest.approx(4 / 6)
    assert metrics["ece"] == pytest.approx(ece(labels, scores))
    assert list(metrics) == list(step_metrics([], [], 0.5))


def test_step_metrics_without_one_class_are_not_a_number_rather_than_zero():
    metrics = step_metrics([1.0, 1.0], [0.9, 0.2], 0.5)
    assert math.isnan(metrics["step_auc"]) and math.isnan(metrics["balanced_accuracy"])
    assert metrics["step_accuracy"] == 0.5 and metrics["majority_accuracy"] == 1.0
    assert step_metrics([0.0, 0.0, 1.0], [0.1] * 3, 0.5)["majority_accuracy"] == pytest.approx(2 / 3)
    assert all(map(math.isnan, step_metrics([], [], 0.5).values()))


# --- the first wrong step --------------------------------------------------------------------------------


def test_the_first_error_is_below_the_threshold_and_unscored_steps_are_passed_over():
    assert first_error([0.9, 0.5, 0.2], 0.5) == 2  # 0.5 itself is not below
    assert first_error([None, 0.4, None, 0.1], 0.5) == 1
    assert first_error([0.9, None], 0.5) == -1
    assert first_error([], 0.5) == -1


def test_f1_by_hand():
    scores = [[0.9, 0.2, 0.9], [0.9, 0.9], [0.1, 0.9], [0.8, 0.9]]
    # Errors at 1 (found), at 1 (missed), at 1 (0 named: wrong place); the last is correct.
    assert first_error_accuracies([1, 1, 1, -1], scores, 0.5) == pytest.approx((1 / 3, 1.0))
    assert first_error_f1([1, 1, 1, -1], scores, 0.5) == pytest.approx(2 * (1 / 3) / (4 / 3))


def test_f1_of_a_scorer_that_always_says_correct_is_zero():
    assert first_error_f1([1, -1, 0], [[1.0, 1.0]] * 3, 0.5) == 0.0


def test_f1_without_one_kind_of_solution_is_not_a_number():
    assert math.isnan(first_error_f1([-1, -1], [[0.9], [0.9]], 0.5))
    assert math.isnan(first_error_f1([], [], 0.5))


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_beats_every_other(seed):
    rng = Random(seed)
    scores = [[round(rng.random(), 2) for _ in range(rng.randint(1, 6))] for _ in range(80)]
    scores[3][0] = None
    errors = [rng.randrange(-1, len(row)) for row in scores]
    threshold, f1 = best_threshold(errors, scores)
    assert f1 == pytest.approx(first_error_f1(errors, scores, threshold), abs=1e-12)
    # All scores are hundredths, so thresholds between them cover every case.
    best = max(first_error_f1(errors, scores, t / 200) for t in range(-1, 204))
    assert f1 == pytest.approx(best, abs=1e-12)


def test_the_best_threshold_lies_in_the_middle_of_its_interval():
    assert best_threshold([1, -1], [[0.9, 0.2], [0.8, 0.7]]) == (pytest.approx(0.45), 1.0)
    threshold, f1 = best_threshold([0, 0], [[0.1], [0.2]])
    assert threshold == 0.5 and math.isnan(f1)


def test_solution_metrics_by_hand():
    labels = [[1.0, 0.0, 0.0], [1.0, 1.0], [1.0, None, 0.0], [None]]
    scores = [[0.9, 0.2, None], [0.9, 0.7], [0.8, 0.1, 0.3], [0.4]]
    metrics = solution_metrics(labels, scores, 0.5)
    # First errors 1, -1, 2, and none known; named: 1, -1, 1 (the unrated step counts as named).
    assert metrics["first_error_acc_wrong"] == 0.5
    assert metrics["first_error_acc_correct"] == 1.0
    assert metrics["first_error_f1"] == pytest.approx(2 / 3)
    assert (metrics["num_solutions"], metrics["num_steps"], metrics["unscored_steps"]) == (3, 6, 1)
    flat = step_metrics([1, 0, 1, 1, 1, 0], [0.9, 0.2, 0.9, 0.7, 0.8, 0.3], 0.5)
    assert {name: metrics[name] for name in flat} == flat


def test_metrics_do_not_depend_on_the_order_of_solutions():
    rng = Random(9)
    labels = [[float(rng.random() < 0.7) for _ in range(rng.randint(1, 5))] for _ in range(40)]
    scores = [[rng.random() for _ in row] for row in labels]
    order = rng.sample(range(40), 40)
    shuffled = solution_metrics([labels[k] for k in order], [scores[k] for k in order], 0.5)
    assert shuffled == pytest.approx(solution_metrics(labels, scores, 0.5), abs=1e-12)
