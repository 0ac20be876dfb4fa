"""Every aggregation against a case worked by hand, and against plain versions on random scores."""

import math
from random import Random
from typing import get_args

import pytest
import torch

from data.aggregation import Aggregation, aggregate, softmin
from data.errors import UserError
from reasoning_rl.shaping import shape_step_rewards

SCORES = [0.9, 0.2, 0.8]


@pytest.mark.parametrize(
    ("how", "expected"),
    [("min", 0.2), ("prod", 0.144), ("last", 0.8), ("mean", 1.9 / 3), ("max", 0.9), ("sum", 1.9)],
)
def test_hand_worked(how, expected) -> None:
    assert aggregate(SCORES, how) == pytest.approx(expected, rel=1e-12)


def test_softmin_by_hand() -> None:
    # Weights of 0 and ln 3 at temperature 1 are 1 and 1/3: (0 + ln 3 / 3) / (4/3) = ln 3 / 4.
    assert aggregate([math.log(3), 0.0], "softmin", temperature=1.0) == pytest.approx(math.log(3) / 4)


def test_softmin_against_the_definition_in_torch() -> None:
    random = Random(0)
    for _ in range(50):
        values = [random.uniform(-1, 1) for _ in range(random.randint(1, 9))]
        temperature = random.uniform(0.02, 2)
        row = torch.tensor(values, dtype=torch.float64)
        expected = float((torch.softmax(-row / temperature, 0) * row).sum())
        assert aggregate(values, "softmin", temperature=temperature) == pytest.approx(expected, rel=1e-9)


def test_softmin_lies_between_min_and_mean_and_reaches_both() -> None:
    assert softmin(SCORES, 1e-4) == pytest.approx(0.2)
    assert softmin(SCORES, 1e6) == pytest.approx(1.9 / 3, rel=1e-5)
    assert 0.2 < softmin(SCORES, 0.1) < 1.9 / 3
    assert softmin([-1e5, 1e5], 1e-3) == -1e5  # no overflow


def test_the_min_form_of_the_rewards_adds_up_to_softmin() -> None:
    """The policy is paid, in all, what the aggregation calls the solution's score."""
    scores = torch.tensor([[0.9, 0.2, 0.8, 0.5]])
    rewards = shape_step_rewards(scores, torch.ones(1, 4, dtype=torch.bool), form="min", temperature=0.1)
    signed = [2 * p - 1 for p in scores[0].tolist()]
    assert float(rewards.sum()) == pytest.approx(aggregate(signed, "softmin", temperature=0.1), rel=1e-5)


@pytest.mark.parametrize("how", get_args(Aggregation))
def test_one_step_is_its_own_score_and_a_gap_or_nothing_is_none(how) -> None:
    assert aggregate([0.25], how) == pytest.approx(0.25)
    assert aggregate([], how) is None
    assert aggregate([0.25, None], how) is None
    assert aggregate([None], how) is None


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="'softmax' is unknown; did you mean 'softmin'"):
        aggregate(SCORES, "softmax")
    with pytest.raises(UserError, match="temperature must be above 0"):
        aggregate(SCORES, "softmin", temperature=0)
    with pytest.raises(UserError, match="not a number"):
        aggregate([0.5, float("nan")], "min")
