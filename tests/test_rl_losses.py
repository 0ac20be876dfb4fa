"""PPO's losses against hand-worked numbers, slow float64 references and what a trainer relies on."""

import math
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from rl_cases import batch, in_ranks
from torch import Tensor

from reasoning_rl.functional import next_token_loss, policy_loss, token_logprobs, value_loss

NAN = float("nan")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
EXACT = {"rtol": 1e-12, "atol": 1e-12}


# --- policy loss ---


@pytest.mark.parametrize(
    ("advantage", "ratio", "dual_clip", "expected"),
    [
        (1.0, 1.5, None, -1.2),
        (-1.0, 0.5, None, 0.8),
        (-1.0, 4.0, None, 4.0),
        (-1.0, 4.0, 3.0, 3.0),
        (1.0, 0.5, 3.0, -0.5),  # a good token that became rarer is not held back
        (-1.0, 2.0, 3.0, 2.0),
        (1.0, 4.0, 3.0, -1.2),  # dual clip is about negative advantages only
    ],
)
def test_policy_loss_of_one_token(
    advantage: float, ratio: float, dual_clip: float | None, expected: float
) -> None:
    loss, _ = policy_loss(
        torch.tensor([[math.log(ratio)]]),
        torch.zeros(1, 1),
        torch.tensor([[advantage]]),
        torch.ones(1, 1, dtype=torch.bool),
        clip_range=0.2,
        dual_clip=dual_clip,
        num_tokens=1,
    )
    torch.testing.assert_close(loss, torch.tensor(expected), **CLOSE)


def slow_policy_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor, num_tokens: int
) -> float:
    """Token by token: ranges 0.2 below and 0.3 above, dual clip 2."""
    total = 0.0
    for b, t in mask.nonzero().tolist():
        ratio, a = math.exp(logprobs[b, t] - old[b, t]), float(advantages[b, t])
        surrogate = min(a * ratio, a * min(max(ratio, 0.8), 1.3))
        if a < 0:
            surrogate = max(surrogate, 2 * a)
        total -= surrogate * float(weights[b, t])
    return total / num_tokens


CLIPS = {"clip_range": 0.2, "clip_range_high": 0.3, "dual_clip": 2.0}


def test_policy_loss_matches_the_definition_token_by_token() -> None:
    logprobs, old, advantages, weights, mask = batch(8)
    loss, _ = policy_loss(logprobs, old, advantages, mask, weights=weights, num_tokens=40, **CLIPS)
    expected = slow_policy_loss(logprobs, old, advantages, mask, weights, 40)
    torch.testing.assert_close(float(loss), expected, **EXACT)


def test_policy_loss_has_the_right_gradient() -> None:
    logprobs, old, advantages, weights, mask = batch(9)
    logprobs.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, advantages, mask, weights=weights, num_tokens=40, **CLIPS)[0],
        (logprobs,),
    )


def test_the_first_on_policy_update_is_the_plain_policy_gradient() -> None:
    logprobs, _, advantages, _, mask = batch(10)
    logprobs.requires_grad_()
    loss, stats = policy_loss(logprobs, logprobs, advantages, mask, clip_range=0.2, num_tokens=mask.sum())
    loss.backward()
    torch.testing.assert_close(loss.detach(), -advantages[mask].mean(), **EXACT)
    torch.testing.assert_close(logprobs.grad, -advantages * mask / mask.sum(), **EXACT)
    means = stats.means()
    assert means["ratio_mean"] == means["ratio_max"] == 1.0
    assert means["clipfrac"] == means["dual_clipfrac"] == means["approx_kl"] == 0.0


def test_policy_stats_by_hand() -> None:
    # log ratios: ln 1.5 clipped, ln 4 dual clipped, 0 free, ln 0.5 clipped; a masked token counts nowhere
    logprobs = torch.tensor([[math.log(1.5), math.log(4), 0.0, math.log(0.5), 9.0]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    loss, stats = policy_loss(
        logprobs, torch.zeros(1, 5), advantages, mask, clip_range=0.2, dual_clip=3.0, num_tokens=8
    )
    torch.testing.assert_close(loss, torch.tensor((-1.2 + 3.0 - 1.0 + 0.8) / 8), **CLOSE)
    means = stats.means()
    ratios = [1.5, 4.0, 1.0, 0.5]
    assert float(stats.num_tokens) == 4
    assert means["policy_loss"] == pytest.approx((-1.2 + 3.0 - 1.0 + 0.8) / 4, rel=1e-6)
    assert (means["clipfrac"], means["dual_clipfrac"]) == (0.5, 0.25)
    assert means["ratio_mean"] == pytest.approx(sum(ratios) / 4, rel=1e-6)
    assert means["ratio_max"] == pytest.approx(4.0, rel=1e-6)
    assert means["approx_kl"] == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 4, rel=1e-5)


def test_a_runaway_token_leaves_the_policy_loss_finite() -> None:
    logprobs = torch.tensor([[0.0, -1.0]], requires_grad=True)
    old, advantages = torch.tensor([[-500.0, -1.0]]), torch.tensor([[-1.0, -1.0]])
    loss, stats = policy_loss(
        logprobs, old, advantages, torch.ones(1, 2, dtype=torch.bool), clip_range=0.2, num_tokens=2
    )
    loss.backward()
    assert loss.isfinite() and logprobs.grad is not None and logprobs.grad.isfinite().all()
    assert stats.means()["ratio_max"] > 1e8  # and it shows


def test_the_largest_ratio_is_one_of_a_counted_token() -> None:
    logprobs, zeros = torch.full((1, 2), math.log(0.5)), torch.zeros(1, 2)
    mask = torch.tensor([[True, False]])
    _, stats = policy_loss(logprobs, zeros, zeros, mask, clip_range=0.2, num_tokens=1)
    assert stats.means()["ratio_max"] == pytest.approx(0.5)


def test_weights_and_advantages_are_constants() -> None:
    logprobs, old, advantages, weights, mask = batch(11)
    for x in (old, advantages, weights, logprobs):
        x.requires_grad_()
    loss, _ = policy_loss(
        logprobs, old, advantages, mask, weights=weights, clip_range=0.2, num_tokens=mask.sum()
    )
    loss.backward()
    assert old.grad is None and advantages.grad is None and weights.grad is None


# --- value loss, language modelling ---


def test_value_loss_of_one_token() -> None:
    # V 1 may move to .7 at most: errors .16 and .01, the larger one halved
    one = torch.ones(1, 1)
    args = (one, one * 0.5, one * 0.6, torch.ones(1, 1, dtype=torch.bool))
    loss, stats = value_loss(*args, value_clip_range=0.2, num_tokens=1)
    torch.testing.assert_close(loss, torch.tensor(0.08), **CLOSE)
    assert stats.means()["value_clipfrac"] == 0.0


def test_a_value_that_moved_far_enough_towards_its_return_is_left_alone() -> None:
    values = torch.tensor([[1.0]], requires_grad=True)
    old, returns = torch.tensor([[0.5]]), torch.tensor([[2.0]])
    loss, stats = value_loss(
        values, old, returns, torch.ones(1, 1, dtype=torch.bool), value_clip_range=0.2, num_tokens=1
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(0.5 * 1.3**2), **CLOSE)
    assert float(values.grad) == 0.0  # type: ignore[arg-type]
    assert stats.means()["value_clipfrac"] == 1.0


def slow_value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> float:
    total = 0.0
    for b, t in mask.nonzero().tolist():
        v, o, r = float(values[b, t]), float(old[b, t]), float(returns[b, t])
        errors = [(v - r) ** 2]
        if clip is not None:
            errors.append((min(max(v, o - clip), o + clip) - r) ** 2)
        total += 0.5 * max(errors)
    return total / 33


@pytest.mark.parametrize("clip", [None, 0.2, 1.0])
def test_value_loss_matches_the_definition_and_its_gradient(clip: float | None) -> None:
    values, old, returns, _, mask = batch(12)
    loss, stats = value_loss(values, old, returns, mask, value_clip_range=clip, num_tokens=33)
    torch.testing.assert_close(float(loss), slow_value_loss(values, old, returns, mask, clip), **EXACT)
    means = stats.means()
    assert means["value_mean"] == pytest.approx(float(values[mask].mean()))
    assert means["return_mean"] == pytest.approx(float(returns[mask].mean()))
    assert means["value_squared_error"] == pytest.approx(float((values - returns)[mask].square().mean()))
    values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: value_loss(v, old, returns, mask, value_clip_range=clip, num_tokens=33)[0], (values,)
    )


def test_returns_and_old_values_are_constants() -> None:
    values, old, returns, _, mask = batch(12)
    for x in (values, old, returns):
        x.requires_grad_()
    loss, _ = value_loss(values, old, returns, mask, value_clip_range=0.2, num_tokens=33)
    loss.backward()
    assert old.grad is None and returns.grad is None


def test_next_token_loss_is_the_cross_entropy_of_the_counted_tokens() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 4, 9), torch.randint(9, (2, 4))
    mask = torch.tensor([[False, True, True, False], [False, True, False, False]])
    loss, stats = next_token_loss(token_logprobs(logits, ids), mask, num_tokens=mask.sum())
    expected = torch.nn.functional.cross_entropy(logits[mask], ids[mask])
    torch.testing.assert_close(loss, expected, **CLOSE)
    assert stats.means()["nll"] == pytest.approx(float(expected), rel=1e-5)


# --- what every loss owes the trainer ---


def policy(x: Tensor, a: Tensor, b: Tensor, w: Tensor, mask: Tensor, num_tokens: int | Tensor):
    return policy_loss(x, a, b, mask, weights=w, num_tokens=num_tokens, **CLIPS)


def value(x: Tensor, a: Tensor, b: Tensor, w: Tensor, mask: Tensor, num_tokens: int | Tensor):
    return value_loss(x, a, b, mask, value_clip_range=0.2, num_tokens=num_tokens)


def language(x: Tensor, a: Tensor, b: Tensor, w: Tensor, mask: Tensor, num_tokens: int | Tensor):
    return next_token_loss(x, mask, num_tokens=num_tokens)


LOSSES = pytest.mark.parametrize("loss_of", [policy, value, language])


@LOSSES
@pytest.mark.parametrize("dirt", [NAN, math.inf, -math.inf])
def test_what_stands_outside_the_mask_never_leaks(loss_of: Callable, dirt: float) -> None:
    *tensors, mask = batch(13, torch.float32)
    clean = [x * mask for x in tensors]
    dirty = [x.masked_fill(~mask, dirt) for x in tensors]
    results = []
    for xs in (clean, dirty):
        xs[0].requires_grad_()
        loss, stats = loss_of(*xs, mask, 33)
        loss.backward()
        results.append((loss.detach(), xs[0].grad, stats.means()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[1][1][~mask] == 0).all()
    assert results[0][2] == results[1][2]


@LOSSES
@pytest.mark.parametrize("groups", [[[0, 1, 2, 3, 4]], [[4, 2], [0, 3], [1]], [[3], [1], [0], [2], [4]]])
def test_micro_batches_add_up_to_the_whole_in_any_order(loss_of: Callable, groups: list) -> None:
    *tensors, mask = batch(14, torch.float32)
    whole_x = tensors[0].clone().requires_grad_()
    whole, whole_stats = loss_of(whole_x, *tensors[1:], mask, mask.sum())
    whole.backward()
    x = tensors[0].clone().requires_grad_()
    total, stats = 0.0, None
    for rows in groups:
        loss, part = loss_of(x[rows], *(t[rows] for t in tensors[1:]), mask[rows], mask.sum())
        loss.backward()
        total += float(loss.detach())
        stats = part if stats is None else stats + part
    assert total == pytest.approx(float(whole.detach()), rel=1e-5)
    torch.testing.assert_close(x.grad, whole_x.grad, **CLOSE)
    assert stats is not None and stats.means() == pytest.approx(whole_stats.means(), rel=1e-5)


@LOSSES
def test_ranks_that_average_their_gradients_find_the_same_update_and_statistics(loss_of: Callable) -> None:
    *tensors, mask = batch(15, torch.float32)
    whole_x = tensors[0].clone().requires_grad_()
    whole, whole_stats = loss_of(whole_x, *tensors[1:], mask, mask.sum())
    whole.backward()

    def rank(rows: list[int], total: Callable, largest: Callable):
        x = tensors[0].clone().requires_grad_()
        count = total(mask[rows].sum())
        loss, stats = loss_of(x[rows], *(t[rows] for t in tensors[1:]), mask[rows], count / 2)
        (gradient,) = torch.autograd.grad(loss, x)
        return total(gradient) / 2, stats.reduce(total, largest).means()

    for gradient, means in in_ranks(rank, [([0, 4, 3],), ([2, 1],)]):
        torch.testing.assert_close(gradient, whole_x.grad, **CLOSE)
        assert means == pytest.approx(whole_stats.means(), rel=1e-5)


@LOSSES
def test_a_batch_without_actions_costs_nothing(loss_of: Callable) -> None:
    *tensors, mask = batch(16)
    tensors[0].requires_grad_()
    loss, stats = loss_of(*tensors, torch.zeros_like(mask), 0)
    loss.backward()
    assert float(loss.detach()) == 0.0 and (tensors[0].grad == 0).all()
    assert all(math.isfinite(v) for v in stats.means().values())


@LOSSES
def test_statistics_hold_no_graph(loss_of: Callable) -> None:
    *tensors, mask = batch(17)
    tensors[0].requires_grad_()
    _, stats = loss_of(*tensors, mask, 10)
    assert not any(getattr(stats, field.name).requires_grad for field in fields(stats))
