"""Logprobs, KL, GAE and token statistics against hand-worked numbers and slow float64 references."""

import math

import pytest
import torch
from rl_cases import batch, in_ranks

from reasoning_rl.functional import (
    entropy,
    explained_variance,
    gae,
    kl_estimate,
    length_adaptive_lambda,
    masked_moments,
    overlong_penalty,
    token_logprobs,
    whiten,
)

NAN = float("nan")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
EXACT = {"rtol": 1e-12, "atol": 1e-12}


# --- logprobs, entropy, KL ---


def test_token_logprobs_of_one_and_three_quarters() -> None:
    # softmax([0, ln 3]) = [1/4, 3/4]
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    expected = torch.tensor([math.log(0.25), math.log(0.75)])
    torch.testing.assert_close(token_logprobs(logits, torch.tensor([0, 1])), expected, **CLOSE)


def test_token_logprobs_keep_any_shape_and_one_single_position() -> None:
    logits, ids = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    out = token_logprobs(logits, ids)
    assert out.shape == (2, 3)
    torch.testing.assert_close(token_logprobs(logits[1, 2], ids[1, 2]), out[1, 2], rtol=0, atol=0)


def test_token_logprobs_stay_accurate_far_from_zero() -> None:
    # A logsumexp subtracted from a logit of 10,000 would be off by 1e-3.
    torch.manual_seed(0)
    logits = torch.randn(20, 50) + 10_000
    ids = torch.randint(50, (20,))
    wide = logits.double()
    rows = [
        wide[n, ids[n]] - torch.log(torch.exp(wide[n] - wide[n].max()).sum()) - wide[n].max()
        for n in range(20)
    ]
    torch.testing.assert_close(token_logprobs(logits, ids).double(), torch.stack(rows), rtol=1e-5, atol=1e-5)


def test_half_precision_logits_are_summed_in_f32() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(4, 3000).bfloat16(), torch.randint(3000, (4,))
    out = token_logprobs(logits, ids)
    assert out.dtype == entropy(logits).dtype == torch.float32
    torch.testing.assert_close(out, token_logprobs(logits.double(), ids).float(), **CLOSE)
    torch.testing.assert_close(entropy(logits), entropy(logits.double()).float(), **CLOSE)


def test_token_logprobs_and_entropy_have_the_right_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(5, (2, 3))
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, ids), (logits,))
    assert torch.autograd.gradcheck(entropy, (logits,))


def test_entropy_of_even_odds_and_of_certainty() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [500.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(entropy(logits), torch.tensor([math.log(4), 0.0]), **CLOSE)


def test_filtered_tokens_leave_entropy_and_its_gradient_finite() -> None:
    logits = torch.tensor([[0.0, math.log(3), -math.inf], [0.0, 300.0, -300.0]], requires_grad=True)
    out = entropy(logits)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(out.detach(), torch.tensor([expected, 0.0]), **CLOSE)
    out.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "expected"), [("k1", 0.1), ("k2", 0.005), ("k3", 0.0048374)])
def test_kl_estimates_of_a_log_ratio_of_one_tenth(kind: str, expected: float) -> None:
    out = kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.1]), kind)
    torch.testing.assert_close(out, torch.tensor([expected]), rtol=1e-4, atol=1e-7)


def test_k1_and_k3_are_unbiased() -> None:
    torch.manual_seed(0)
    p, q = (torch.randn(2, 6, dtype=torch.float64)).log_softmax(-1)
    exact = (p.exp() * (p - q)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((p.exp() * kl_estimate(p, q, kind)).sum(), exact, **EXACT)
    assert (kl_estimate(p, q, "k3") >= 0).all()


# --- GAE ---


def slow_gae(rewards: list, values: list, gamma: float, lam: float, last: float = 0.0) -> list[float]:
    """The sum over l of (gamma lam)^l delta_{t+l}, written out, for one row of actions."""
    n = len(rewards)
    after = [*values[1:], last]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, n)) for t in range(n)]


def test_gae_of_three_tokens_by_hand() -> None:
    # deltas -.1, .2, .4; A = [-.1 + .95 * .58, .2 + .95 * .4, .4]
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.6]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.451, 0.58, 0.4]]), **CLOSE)
    torch.testing.assert_close(returns, torch.tensor([[0.951, 0.98, 1.0]]), **CLOSE)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_aligned_gae_is_gae_of_each_rows_actions(gamma: float, lam: float) -> None:
    rewards, values, _, _, mask = batch(0)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for b in range(len(mask)):
        r, v = rewards[b][mask[b]], values[b][mask[b]]
        expected = torch.tensor(slow_gae(r.tolist(), v.tolist(), gamma, lam), dtype=torch.float64)
        torch.testing.assert_close(advantages[b][mask[b]], expected, **EXACT)
        torch.testing.assert_close(returns[b][mask[b]], expected + v, **EXACT)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_gae_bootstraps_truncated_rows_only_from_what_is_handed_in() -> None:
    rewards, values, _, _, mask = batch(1)
    last = torch.tensor([0.7, 0.0, -2.0, 5.0, 0.3], dtype=torch.float64)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.8, bootstrap_values=last)
    for b in range(len(mask)):
        r, v = rewards[b][mask[b]].tolist(), values[b][mask[b]].tolist()
        expected = torch.tensor(slow_gae(r, v, 0.9, 0.8, float(last[b])), dtype=torch.float64)
        torch.testing.assert_close(advantages[b][mask[b]], expected, **EXACT)
    assert (advantages[~mask] == 0).all()  # row 3 has no action: nothing to bootstrap


def test_lambda_one_gives_the_discounted_return_whatever_the_values() -> None:
    rewards, values, other_values, _, mask = batch(2)
    _, returns = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    _, same = gae(rewards, other_values, mask, gamma=0.9, lam=1.0)
    torch.testing.assert_close(returns, same, **EXACT)
    r = rewards[0][mask[0]]
    expected = sum(0.9**k * r[k] for k in range(len(r)))
    torch.testing.assert_close(returns[0][mask[0]][0], expected, **EXACT)


def test_a_lambda_per_row_is_that_rows_lambda() -> None:
    rewards, values, _, _, mask = batch(3)
    lams = torch.tensor([0.0, 0.5, 0.9, 0.95, 1.0])
    together, _ = gae(rewards, values, mask, gamma=1.0, lam=lams)
    assert together.dtype == torch.float64
    narrow, _ = gae(rewards.float(), values.float(), mask, gamma=1.0, lam=lams.double())
    assert narrow.dtype == torch.float32
    for b, lam in enumerate(lams.tolist()):
        alone, _ = gae(rewards, values, mask, gamma=1.0, lam=lam)
        torch.testing.assert_close(together[b], alone[b], **EXACT)


def test_padding_cannot_change_a_bit_of_gae() -> None:
    rewards, values, _, _, mask = batch(4, torch.float32)
    expected = gae(rewards, values, mask, gamma=0.99, lam=0.9)
    dirty_rewards = rewards.masked_fill(~mask, NAN)
    dirty_values = values.masked_fill(~mask, math.inf)
    wide = [torch.nn.functional.pad(x, (0, 90), value=NAN) for x in (dirty_rewards, dirty_values)]
    found = gae(*wide, torch.nn.functional.pad(mask, (0, 90)), gamma=0.99, lam=0.9)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b[:, :11]) and (b[:, 11:] == 0).all()


def test_gae_keeps_the_order_of_rows() -> None:
    rewards, values, _, _, mask = batch(5)
    order = torch.tensor([3, 0, 4, 2, 1])
    a, _ = gae(rewards, values, mask, gamma=1.0, lam=0.9)
    b, _ = gae(rewards[order], values[order], mask[order], gamma=1.0, lam=0.9)
    assert torch.equal(a[order], b)


def test_gae_refuses_actions_with_a_gap() -> None:
    mask = torch.tensor([[False, True, False, True]])
    with pytest.raises(AssertionError, match="contiguous"):
        gae(torch.zeros(1, 4), torch.zeros(1, 4), mask, gamma=1.0, lam=1.0)


def test_lambda_grows_with_length() -> None:
    lengths = torch.tensor([0, 1, 20, 100, 200, 500, 1000, 8192])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.8, 0.9, 0.96, 0.98, 0.997559])
    torch.testing.assert_close(length_adaptive_lambda(lengths, 0.05), expected, **CLOSE)


def test_overlong_responses_cost_up_to_one() -> None:
    lengths = torch.tensor([10, 16384, 18432, 20480, 30000])
    expected = torch.tensor([0.0, 0.0, -0.5, -1.0, -1.0])
    torch.testing.assert_close(overlong_penalty(lengths, max_length=20480, buffer=4096), expected, **CLOSE)


# --- statistics over tokens ---


def test_moments_and_whiten_by_hand() -> None:
    x = torch.tensor([[NAN, 1.0, 2.0], [3.0, math.inf, 6.0]])
    mask = torch.tensor([[False, True, True], [True, False, True]])
    mean, variance, count = masked_moments(x, mask)  # deviations -2, -1, 0, 3
    assert (float(mean), float(variance), float(count)) == (3.0, 3.5, 4.0)
    expected = torch.tensor([[0.0, -2.0, -1.0], [0.0, 0.0, 3.0]]) / math.sqrt(3.5)
    torch.testing.assert_close(whiten(x, mask), expected, **CLOSE)


def test_whiten_matches_the_definition_in_float64() -> None:
    x, _, _, _, mask = batch(6)
    inside = [v for v, m in zip(x.flatten().tolist(), mask.flatten().tolist(), strict=True) if m]
    mean = sum(inside) / len(inside)
    variance = sum((v - mean) ** 2 for v in inside) / len(inside)
    out = whiten(x, mask)
    expected = torch.tensor([(v - mean) / math.sqrt(variance + 1e-8) for v in inside], dtype=torch.float64)
    torch.testing.assert_close(out[mask], expected, **EXACT)
    assert (out[~mask] == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -3e4])
def test_a_constant_far_from_zero_whitens_to_zero_not_to_rounding_noise(value: float) -> None:
    x, mask = torch.full((7, 999), value), torch.ones(7, 999, dtype=torch.bool)
    torch.testing.assert_close(whiten(x, mask), torch.zeros(7, 999), rtol=0, atol=1e-4)


def test_one_token_and_no_token_whiten_to_zero() -> None:
    x = torch.tensor([[5.0, NAN]])
    assert torch.equal(whiten(x, torch.tensor([[True, False]])), torch.zeros(1, 2))
    assert torch.equal(whiten(x, torch.tensor([[False, False]])), torch.zeros(1, 2))
    assert [float(m) for m in masked_moments(x, torch.tensor([[False, False]]))] == [0.0, 0.0, 0.0]


def test_whiten_does_not_depend_on_how_rows_lie_on_ranks() -> None:
    x, _, _, _, mask = batch(7, torch.float32)
    expected = whiten(x, mask)
    # The last rank holds the row without actions: it must still take part in the collectives.
    shards = [(x[:1], mask[:1]), (x[[1, 2, 4]], mask[[1, 2, 4]]), (x[3:4], mask[3:4])]
    found = in_ranks(lambda a, m, total, _: whiten(a, m, reduce=total), shards)
    torch.testing.assert_close(torch.cat(found)[[0, 1, 2, 4, 3]], expected, **CLOSE)


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([[NAN, 1.0, 2.0, 3.0]])
    mask = torch.tensor([[False, True, True, True]])
    assert float(explained_variance(returns, returns, mask)) == 1.0
    # A constant bias explains everything: it is the variance of the error that counts.
    torch.testing.assert_close(explained_variance(returns + 4, returns, mask), torch.tensor(1.0), **CLOSE)
    torch.testing.assert_close(explained_variance(returns * 0, returns, mask), torch.tensor(0.0), **CLOSE)
    torch.testing.assert_close(explained_variance(-returns, returns, mask), torch.tensor(-3.0), **CLOSE)
    assert float(explained_variance(returns, torch.full_like(returns, 2.0), mask)) == 0.0
