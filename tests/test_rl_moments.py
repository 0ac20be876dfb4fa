"""Running moments, value normalisation and KL controllers: worked numbers, merging, ranks, exact resume."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from rl_cases import in_ranks

from reasoning_rl.moments import AdaptiveKL, FixedKL, RunningMoments, ValueNormalizer

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def through_json(state: dict) -> dict:
    return json.loads(json.dumps(state))


# --- RunningMoments ---


def test_moments_of_one_to_six_in_two_batches() -> None:
    moments = RunningMoments()
    moments.update(torch.tensor([1.0, 2.0]))
    moments.update(torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    assert (moments.count, moments.mean) == (6, 3.5)
    assert moments.squares / moments.count == pytest.approx(2.916667, rel=1e-6)
    assert moments.std == pytest.approx(1.870829, rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_batches_of_any_size_give_the_moments_of_everything(offset: float) -> None:
    torch.manual_seed(0)
    values = torch.randn(1000) + offset
    moments = RunningMoments()
    for piece in values.split([1, 0, 7, 500, 492]):
        moments.update(piece)
    assert moments.count == 1000
    assert moments.mean == pytest.approx(float(values.double().mean()), rel=1e-12, abs=1e-12)
    assert moments.std == pytest.approx(float(values.double().std()), rel=1e-9)


def test_ranks_share_one_history_even_when_one_has_no_values() -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 10)
    alone = RunningMoments()
    ranks = [RunningMoments() for _ in range(3)]
    for row in values:
        alone.update(row)
        shards = [(ranks[0], row[:7]), (ranks[1], row[7:]), (ranks[2], row[:0])]
        in_ranks(lambda moments, x, total, _: moments.update(x, total), shards)
    assert ranks[0].state_dict() == ranks[1].state_dict() == ranks[2].state_dict()
    assert ranks[0].state_dict() == pytest.approx(alone.state_dict(), rel=1e-12)


def test_normalising_by_hand() -> None:
    moments = RunningMoments()
    moments.update(torch.tensor([2.0, 4.0]))  # mean 3, std sqrt(2)
    x = torch.tensor([3.0, 5.0, -9.0])
    root = math.sqrt(2)
    torch.testing.assert_close(
        moments.normalise(x, "standardise"), torch.tensor([0.0, root, -6 * root]), **CLOSE
    )
    torch.testing.assert_close(
        moments.normalise(x, "standardise", clip=0.8), torch.tensor([0.0, 0.8, -0.8]), **CLOSE
    )
    torch.testing.assert_close(moments.normalise(x, "scale"), x / root, **CLOSE)
    assert torch.equal(moments.normalise(x, "off"), x)
    assert torch.equal(moments.normalise(x, "off", clip=4.0), torch.tensor([3.0, 4.0, -4.0]))


@pytest.mark.parametrize("history", [[], [0.7], [0.7] * 50])
def test_without_any_spread_nothing_is_blown_up(history: list[float]) -> None:
    moments = RunningMoments()
    moments.update(torch.tensor(history))
    assert moments.std == 1.0
    torch.testing.assert_close(moments.normalise(torch.tensor([0.7]), "scale"), torch.tensor([0.7]), **CLOSE)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_reward_is_refused_before_it_spoils_the_history(bad: float) -> None:
    for state in (RunningMoments(), ValueNormalizer()):
        state.update(torch.tensor([1.0, 2.0]))
        before = state.state_dict()
        with pytest.raises(AssertionError, match="non-finite"):
            state.update(torch.tensor([1.0, bad]))
        assert state.state_dict() == before


@pytest.mark.parametrize("make", [RunningMoments, ValueNormalizer])
def test_a_resumed_history_goes_on_bit_for_bit(make: Callable) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 33)
    whole, before, after = make(), make(), make()
    whole.update(first)
    before.update(first)
    after.load_state_dict(through_json(before.state_dict()))
    for state in (whole, after):
        state.update(second)
    assert whole.state_dict() == after.state_dict()
    assert (whole.mean, whole.std) == (after.mean, after.std)


# --- ValueNormalizer ---


def test_the_first_batch_is_normalised_by_its_own_moments() -> None:
    normalizer = ValueNormalizer()
    values = torch.tensor([1.0, 3.0, 5.0])  # mean 3, variance 8/3
    normalizer.update(values)
    assert normalizer.mean == pytest.approx(3.0, rel=1e-9)
    assert normalizer.std == pytest.approx(math.sqrt(8 / 3), rel=1e-6)
    torch.testing.assert_close(normalizer.normalise(values), (values - 3) / math.sqrt(8 / 3), **CLOSE)
    assert float(normalizer.normalise(torch.tensor(1e6), clip=5.0)) == 5.0


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99995])
def test_moments_are_the_exponentially_weighted_means_of_the_batches(beta: float) -> None:
    torch.manual_seed(1)
    batches = [torch.randn(20, dtype=torch.float64) * 3 + k for k in range(6)]
    normalizer = ValueNormalizer(beta)
    for batch in batches:
        normalizer.update(batch)
    weights = [beta ** (5 - k) for k in range(6)]
    mean = sum(w * float(b.mean()) for w, b in zip(weights, batches, strict=True)) / sum(weights)
    square = sum(w * float(b.square().mean()) for w, b in zip(weights, batches, strict=True)) / sum(weights)
    assert normalizer.mean == pytest.approx(mean, rel=1e-9)
    assert normalizer.std == pytest.approx(math.sqrt(square - mean**2), rel=1e-9)


def test_denormalising_undoes_normalising() -> None:
    torch.manual_seed(0)
    normalizer = ValueNormalizer()
    values = torch.randn(50) * 4 + 7
    assert torch.equal(normalizer.normalise(values), values)  # the identity until the first update
    normalizer.update(values)
    torch.testing.assert_close(normalizer.denormalise(normalizer.normalise(values)), values, **CLOSE)


def test_constant_returns_meet_the_variance_floor() -> None:
    normalizer = ValueNormalizer()
    normalizer.update(torch.full((10,), 2.0))
    assert normalizer.std == pytest.approx(0.1)
    torch.testing.assert_close(
        normalizer.normalise(torch.tensor([2.1])), torch.tensor([1.0]), rtol=1e-4, atol=0
    )


def test_a_batch_without_returns_counts_for_nothing() -> None:
    normalizer = ValueNormalizer()
    normalizer.update(torch.tensor([1.0, 2.0]))
    before = normalizer.state_dict()
    normalizer.update(torch.tensor([]))
    assert normalizer.state_dict() == before


def test_normalizers_on_ranks_agree_with_one_alone() -> None:
    torch.manual_seed(0)
    values = torch.randn(9)
    alone, ranks = ValueNormalizer(), [ValueNormalizer(), ValueNormalizer()]
    alone.update(values)
    in_ranks(lambda n, x, total, _: n.update(x, total), [(ranks[0], values[:2]), (ranks[1], values[2:])])
    assert ranks[0].state_dict() == ranks[1].state_dict()
    assert ranks[0].state_dict() == pytest.approx(alone.state_dict(), rel=1e-12)


# --- KL controllers ---


def test_the_adaptive_coefficient_by_hand() -> None:
    controller = AdaptiveKL(0.1, target=6.0, horizon=1000)
    # (6.6 - 6) / 6 = .1 over 100 of 1000 rollouts: 1 % up
    assert controller.update(6.6, 100) == pytest.approx(0.1 * 1.01)
    # far too little and far too much count as 20 % off
    assert controller.update(0.0, 100) == pytest.approx(0.1 * 1.01 * 0.98)
    assert controller.update(600.0, 100) == pytest.approx(0.1 * 1.01 * 0.98 * 1.02)
    assert controller.update(6.0, 100) == controller.coef == pytest.approx(0.1 * 1.01 * 0.98 * 1.02)


def test_the_adaptive_coefficient_finds_the_target() -> None:
    controller = AdaptiveKL(0.01, target=6.0, horizon=1000)
    kl = 20.0
    for _ in range(600):
        kl = 1.2 / controller.update(kl, 128)  # a policy whose KL falls as the coefficient rises
    assert kl == pytest.approx(6.0, rel=1e-3)


def test_the_adaptive_coefficient_stays_positive_whatever_the_batch() -> None:
    controller = AdaptiveKL(0.1, horizon=100)
    assert 0 < controller.update(0.0, 100_000) < 0.1


def test_a_broken_kl_stops_the_controller() -> None:
    with pytest.raises(AssertionError, match="nan"):
        AdaptiveKL(0.1).update(math.nan, 10)


def test_controllers_resume() -> None:
    a, b = AdaptiveKL(0.1), AdaptiveKL(0.3)
    a.update(9.0, 512)
    b.load_state_dict(through_json(a.state_dict()))
    assert b.update(2.0, 512) == a.update(2.0, 512)


def test_a_fixed_coefficient_stays_and_follows_the_config_on_resume() -> None:
    old, new = FixedKL(0.05), FixedKL(0.02)
    assert old.update(100.0, 512) == 0.05
    new.load_state_dict(through_json(old.state_dict()))
    assert new.coef == new.update(0.0, 512) == 0.02
