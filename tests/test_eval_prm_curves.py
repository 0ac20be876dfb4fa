"""Calibration bins, threshold sweeps, localisation and best-of-N, against slow versions."""

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prm_bench_cases import item

from data.errors import UserError
from eval.metrics import ece, first_error_f1
from eval.prm_benchmarks.curves import (
    best_of_n_curve,
    localisation,
    reliability_bins,
    solution_pools,
    threshold_sweep,
)
from eval.prm_benchmarks.items import attach_scores, read_scores


def test_reliability_bins_by_hand_sum_to_the_calibration_error() -> None:
    labels, scores = [1, 0, 1, 1, 0], [0.05, 0.05, 0.95, 1.0, 0.5]
    bins = reliability_bins(labels, scores, num_bins=10)
    assert [(b.low, b.num_steps, b.mean_score, b.share_right) for b in bins] == [
        (0.0, 2, 0.05, 0.5),
        (0.5, 1, 0.5, 0.0),
        (0.9, 2, pytest.approx(0.975), 1.0),
    ]
    gaps = sum(b.num_steps * abs(b.mean_score - b.share_right) for b in bins) / 5
    assert gaps == pytest.approx(ece(labels, scores, num_bins=10))


def test_a_threshold_sweep_holds_the_metrics_at_each_threshold() -> None:
    rng = random.Random(0)
    items = [item([rng.random() for _ in range(4)], rng.choice([-1, 0, 2, 3])) for _ in range(30)]
    first = [i.solution.first_error for i in items]
    scores = [i.scores for i in items]
    sweep = threshold_sweep([i.solution.labels for i in items], first, scores, num_points=9)
    assert [p.threshold for p in sweep] == sorted(p.threshold for p in sweep)
    assert 0.5 in [p.threshold for p in sweep]
    for point in sweep:
        assert point.first_error_f1 == pytest.approx(first_error_f1(first, scores, point.threshold))
    # An unknown first error leaves the step numbers alone and the localisation out.
    sweep = threshold_sweep([[1.0]], [None], [[0.7]])
    assert math.isnan(sweep[0].error_accuracy)


def test_localisation_by_hand() -> None:
    rows = [
        ([0.9, 0.1, 0.9], 1),  # exact
        ([0.1, 0.9, 0.9], 2),  # two early
        ([0.9, 0.9, 0.1], 1),  # one late
        ([0.9, 0.9, 0.9], 0),  # missed
        ([0.9, 0.1, 0.9], -1),  # false alarm
        ([0.9, None, 0.9], -1),
        ([0.1], None),  # unknown: nowhere
    ]
    scores, first = [row for row, _ in rows], [label for _, label in rows]
    assert localisation(first, scores, 0.5) == {
        "exact": 0.25, "early": 0.25, "late": 0.25, "missed": 0.25, "within_one": 0.5, "false_alarm": 0.5,
    }  # fmt: skip


def brute_force(pool: list[tuple[float, bool]], n: int, size: int) -> float:
    """The outcome of the best of every subset, one by one; a subset of fillers only is wrong."""
    filled = [*pool, *[(-math.inf, False)] * (size - len(pool))]
    subsets = list(itertools.combinations(filled, n))
    return sum(max(subset)[1] for subset in subsets) / len(subsets)


POOLS = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.9]), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(pool=POOLS, extra=st.integers(0, 2))
def test_best_of_n_is_the_mean_over_all_subsets_and_over_all_ways_to_break_ties(pool, extra) -> None:
    size = len(pool) + extra
    orders = list(itertools.permutations(range(len(pool))))
    for n, value in best_of_n_curve([pool], range(1, size + 1), pool_size=size).items():
        broken = [[(s + 1e-6 * order[k], right) for k, (s, right) in enumerate(pool)] for order in orders]
        slow = [brute_force(one, n, size) for one in broken]
        assert value == pytest.approx(sum(slow) / len(slow))


def test_best_of_n_by_hand() -> None:
    pools = [[(0.9, True), (0.1, False)], [(0.9, False), (0.1, True)]]
    # n = 1: half of each; n = 2: the first is right, the second wrong.
    assert best_of_n_curve(pools, [1, 2, 4]) == {1: 0.5, 2: 0.5}
    pools = [[(0.9, True), (0.5, False), (0.1, False)]]
    assert best_of_n_curve(pools, [1, 2, 3]) == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0})
    # Filled up to 4: of 6 pairs 3 hold the right one.
    assert best_of_n_curve(pools, [2], pool_size=4) == {2: 0.5}


def test_pools_hold_problems_with_several_known_outcomes() -> None:
    pools = solution_pools(
        ["a", "a", "b", "a", "b"],
        [[0.9, 0.5], [0.4], [0.3], [None], [0.2]],
        [True, False, True, True, None],
        "min",
    )
    assert pools == [[(0.5, True), (0.4, False)]]


# --- score files -----------------------------------------------------------------------------


def items_for(*ids: str, steps: int = 2, **meta):
    return [item([None] * steps, -1, id=name, meta=meta) for name in ids]


def write(path, text):
    path.write_text(text)
    return path


def test_scores_are_matched_by_id_or_by_order(tmp_path) -> None:
    by_id = write(
        tmp_path / "a.jsonl",
        '{"id": "y", "scores": [1, null]}\n{"id": "other", "scores": []}\n{"id": "x", "scores": [0.5, 0]}\n',
    )
    scored = attach_scores(items_for("x", "y"), read_scores(by_id))
    assert [one.scores for one in scored] == [(0.5, 0.0), (1.0, None)]
    plain = write(tmp_path / "b.jsonl", '{"scores": [0.5, 0]}\n{"scores": [1, 0.25]}\n')
    scored = attach_scores(items_for("x", "y"), read_scores(plain))
    assert [one.scores for one in scored] == [(0.5, 0.0), (1.0, 0.25)]
    numbered = write(tmp_path / "n.jsonl", '{"id": 7, "scores": [0.5, 0]}\n{"id": 8, "scores": [1, 0.25]}\n')
    assert attach_scores(items_for("x", "y"), read_scores(numbered)) == scored  # numbers are no names
    twice = write(tmp_path / "d.jsonl", '{"id": "x", "scores": [1, 1]}\n{"id": "x", "scores": [0, 0]}\n')
    assert attach_scores(items_for("x"), read_scores(twice))[0].scores == (1, 1)


def test_three_classes_give_validity_and_neutral_and_lines_fold_to_steps(tmp_path) -> None:
    rows = write(tmp_path / "t.jsonl", '{"scores": [[0.25, 0.5, 0.25], [0.5, 0.25, 0.25], [1, 0, 0]]}\n')
    (one,) = attach_scores(items_for("x", steps=2, lines_per_step=[2, 1]), read_scores(rows))
    assert (one.scores, one.neutral) == ((0.5, 0.0), (0.5, 0.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "x", "scores": [1, 1]}\n', "no scores for 1 of 2 solutions, first 'y'"),
        ('{"scores": [1, 1]}\n', "1 lines for 2 solutions and no id that fits; give each line .*'x'"),
        ('{"scores": [1, 1]}\n{"scores": [1]}\n', ":2: 1 scores for the 2 steps of 'y'"),
        (
            '{"id": "a", "scores": [1, 1]}\n{"id": "b", "scores": [1, 1]}\n',
            ":1: id 'a' is none of the benchmark's, nor is any other; expected ids such as 'x'",
        ),
        ('{"scores": 1}\n', ":1: field 'scores' must be a list"),
        ('{"scores": [1, NaN]}\n', r":1: field 'scores\[1\]' must be a number, null or three"),
        ('{"scores": [true]}\n', r":1: field 'scores\[0\]' must be a number"),
        ('{"scores": [[0.5, 0.5]]}\n', r":1: field 'scores\[0\]' must be a number"),
        ("", "holds no scores"),
    ],
)
def test_a_broken_score_file_is_named_with_its_line(tmp_path, text, message) -> None:
    path = write(tmp_path / "s.jsonl", text)
    with pytest.raises(UserError, match=message):
        attach_scores(items_for("x", "y"), read_scores(path))
