"""The maths of PPO as pure functions of tensors and numbers: no model, config, device or collective here.

B rollouts, T tokens, V vocabulary. Index t of every (B, T) tensor speaks of token t; masks are bool, True =
counts; what stands outside a mask is never read (it may be NaN) and comes out as 0. Losses are sums over
tokens divided once by `num_tokens`, the count over *all* micro-batches and ranks of one update, so a loss
does not depend on how a minibatch was cut. Where ranks average their gradients, hand in count / world size.

    advantages, returns = gae(rewards, values, action_mask, gamma=1.0, lam=0.95)
    loss, stats = policy_loss(logprobs, old_logprobs, whiten(advantages, action_mask), action_mask,
                              clip_range=0.2, num_tokens=action_mask.sum())
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

Reduce = Callable[[Tensor], Tensor]
"""Adds a small tensor up over all ranks (an all-reduce); None stands for a single rank."""

_WHITEN_EPS = 1e-8
# exp(20) = 5e8: far beyond any useful ratio, yet finite in f32, so that one token cannot make a loss inf.
MAX_LOG_RATIO = 20.0


# --- logprobs, entropy, KL ---


def token_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return log softmax(logits)[token_ids], shape (...), at least f32, from logits (..., V), ids (...)."""
    # cross_entropy is log_softmax and gather in one, with half the cost of the two in the backward pass.
    rows = _at_least_f32(logits).reshape(-1, logits.shape[-1])
    return -functional.cross_entropy(rows, token_ids.reshape(-1), reduction="none").view(token_ids.shape)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats, shape (...), at least f32. Logits of -inf (filtered tokens) are allowed."""
    logprobs = torch.log_softmax(_at_least_f32(logits), dim=-1)
    # The clamp turns 0 * -inf into 0, in the value and in the gradient.
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: Literal["k1", "k2", "k3"]) -> Tensor:
    """Return a per-token estimate of KL(pi || ref) in nats from tokens sampled from pi; shape of the inputs.

    k1 = log ratio: unbiased, any sign. k2 = half its square: biased, never negative, small variance.
    k3 = 1/ratio - 1 + log ratio: unbiased and never negative. (Schulman 2020, "Approximating KL divergence")
    """
    log_ratio = logprobs - ref_logprobs
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    assert kind == "k3", kind
    return torch.expm1(-log_ratio) + log_ratio


def importance_weights(
    logprobs: Tensor,
    behaviour_logprobs: Tensor,
    mask: Tensor,
    *,
    level: Literal["token", "sequence"],
    cap: float,
) -> Tensor:
    """Return min(pi / mu, cap) (B, T), constants, 0 off the mask: what was sampled from mu, weighed for pi.

    token: each token's own ratio. It corrects the choice at a prefix, not how often mu came to the prefix.
    sequence: the product over the row's tokens, at each of them: unbiased where nothing is cut, and noisier
    the longer the rows. The cap bounds the variance and makes the expectation too small where it cuts
    (Ionides 2008, Journal of Computational and Graphical Statistics 17; per token between an inference
    engine and its trainer: Yao et al. 2025). Log ratios are held within +-20.
    """
    assert cap >= 1, cap
    logprobs, behaviour_logprobs = _inside(mask, logprobs.detach(), behaviour_logprobs.detach())
    log_ratio = logprobs - behaviour_logprobs
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True).expand_as(log_ratio)
    weights = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(max=cap)
    return torch.where(mask, weights, 0.0)


# --- advantages ---


def gae(
    rewards: Tensor,
    values: Tensor,
    action_mask: Tensor,
    *,
    gamma: float,
    lam: float | Tensor,
    bootstrap_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (advantages, returns), both (B, T) and 0 off `action_mask`.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   R_t = A_t + V_t

    Eq. 11-12, arXiv:1707.06347; arXiv:1506.02438. A row's actions are one contiguous run; the value after
    its last action is 0, or `bootstrap_values` (B,): the value of a text that was cut short. `lam` may be
    (B,), one per row (`length_adaptive_lambda`). Different lambdas for actor and critic are two calls.
    """
    assert rewards.shape == values.shape == action_mask.shape
    starts = action_mask[:, 1:] & ~action_mask[:, :-1]
    assert int((starts.sum(1) + action_mask[:, 0]).amax()) <= 1, "a row's actions must be one contiguous run"
    rewards, values = _inside(action_mask, rewards, values)
    after_last = values.new_zeros(len(values)) if bootstrap_values is None else bootstrap_values
    next_mask = torch.cat([action_mask[:, 1:], torch.zeros_like(action_mask[:, :1])], dim=1)
    next_values = torch.where(next_mask, values.roll(-1, dims=1), after_last.to(values.dtype)[:, None])
    deltas = torch.where(action_mask, rewards + gamma * next_values - values, 0.0)
    decay = torch.as_tensor(gamma * lam, dtype=deltas.dtype, device=deltas.device)
    running = deltas.new_zeros(len(deltas))
    columns = []
    # One column at a time, from the right: padding adds exact zeros, so it cannot change a single bit.
    for column in deltas.flip(1).unbind(1):
        running = column + decay * running
        columns.append(running)
    advantages = torch.where(action_mask, torch.stack(columns[::-1], dim=1), 0.0)
    return advantages, advantages + values


def length_adaptive_lambda(lengths: Tensor, alpha: float) -> Tensor:
    """Return lam = 1 - 1 / (alpha * length), shape (B,), f32, in [0, 1), from lengths in action tokens.

    VAPO, arXiv:2504.05118, alpha 0.05. Differs: clamped at 0, which lengths up to 1 / alpha would fall below.
    """
    return (1 - 1 / (alpha * lengths.float().clamp(min=1))).clamp(min=0.0)


def overlong_penalty(lengths: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """Return the soft penalty for long responses, (B,) f32 in [-1, 0], from lengths in tokens.

    0 up to max_length - buffer, then falling linearly to -1 at max_length. Eq. 13, arXiv:2503.14476.
    """
    assert 0 < buffer <= max_length, (buffer, max_length)
    return ((max_length - buffer - lengths.float()) / buffer).clamp(-1.0, 0.0)


# --- statistics over tokens ---


def masked_moments(x: Tensor, mask: Tensor, *, reduce: Reduce | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return (mean, population variance, count) of the masked entries over all ranks, 0 if there are none.

    Two passes and a correction: a constant far from 0 has variance 0, not rounding noise.
    """
    (x,) = _inside(mask, _at_least_f32(x))
    total, count = _over_ranks(reduce, x.sum(), mask.sum())
    divisor = count.clamp(min=1)
    rough = total / divisor
    (deviations,) = _inside(mask, x - rough)
    shift, squares = _over_ranks(reduce, deviations.sum(), deviations.square().sum())
    shift = shift / divisor
    return rough + shift, (squares / divisor - shift.square()).clamp(min=0), count


def whiten(x: Tensor, mask: Tensor, *, reduce: Reduce | None = None) -> Tensor:
    """Return (x - mean) / sqrt(variance + 1e-8) over the masked entries of all ranks, 0 outside.

    Population variance. A single entry, or entries that are all alike, give 0: nothing stands out.
    """
    mean, variance, _ = masked_moments(x, mask, reduce=reduce)
    return torch.where(mask, (x - mean) * torch.rsqrt(variance + _WHITEN_EPS), 0.0).to(x.dtype)


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, *, reduce: Reduce | None = None
) -> Tensor:
    """Return 1 - Var(returns - values) / Var(returns), a scalar <= 1: 1 perfect, 0 as good as a constant.

    0 when the returns do not vary: there is nothing to explain.
    """
    _, unexplained, _ = masked_moments(returns - values, mask, reduce=reduce)
    _, variance, _ = masked_moments(returns, mask, reduce=reduce)
    return torch.where(variance > 0, 1 - unexplained / variance.clamp(min=1e-30), 0.0)


# --- losses ---


@dataclass(frozen=True)
class Stats:
    """Sums over tokens as detached 0-d tensors; `a + b` joins micro-batches, `reduce` joins ranks."""

    num_tokens: Tensor
    maxima: ClassVar[tuple[str, ...]] = ()
    """Fields that are a largest value instead of a sum."""

    def __add__(self, other: Self) -> Self:
        joined = {}
        for field in fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            joined[field.name] = torch.maximum(a, b) if field.name in self.maxima else a + b
        return type(self)(**joined)

    def reduce(self, total: Reduce, largest: Reduce) -> Self:
        """Return the statistics of all ranks: `total` adds a 1-d tensor over them, `largest` takes maxima."""
        names = [field.name for field in fields(self)]
        sums = [name for name in names if name not in self.maxima]
        joined = dict(zip(sums, total(torch.stack([getattr(self, n) for n in sums])).unbind(), strict=True))
        if self.maxima:
            peaks = largest(torch.stack([getattr(self, name) for name in self.maxima]))
            joined |= dict(zip(self.maxima, peaks.unbind(), strict=True))
        return type(self)(**joined)

    def _mean(self, total: Tensor) -> float:
        return float(total / self.num_tokens.clamp(min=1))


@dataclass(frozen=True)
class PolicyStats(Stats):
    """What a policy update did. ratio = pi(token) / pi_old(token)."""

    loss: Tensor
    clipped: Tensor
    """Tokens whose gradient the clip cut to zero."""
    dual_clipped: Tensor
    """Tokens with a negative advantage whose gradient the dual clip cut to zero."""
    approx_kl: Tensor
    """k3 estimate of KL(pi_old || pi)."""
    ratio: Tensor
    ratio_max: Tensor
    maxima: ClassVar[tuple[str, ...]] = ("ratio_max",)

    def means(self) -> dict[str, float]:
        """Return the per-token means (and the largest ratio), under the names they are logged by."""
        return {
            "policy_loss": self._mean(self.loss),
            "clipfrac": self._mean(self.clipped),
            "dual_clipfrac": self._mean(self.dual_clipped),
            "approx_kl": self._mean(self.approx_kl),
            "ratio_mean": self._mean(self.ratio),
            "ratio_max": float(self.ratio_max),
        }


@dataclass(frozen=True)
class ValueStats(Stats):
    """What a value update did."""

    loss: Tensor
    clipped: Tensor
    """Tokens where the clipped prediction had the larger error, so that nothing was learned from them."""
    value: Tensor
    returns: Tensor
    squared_error: Tensor
    """Before clipping, without the factor 1/2."""

    def means(self) -> dict[str, float]:
        """Return the per-token means, under the names they are logged by."""
        return {
            "value_loss": self._mean(self.loss),
            "value_clipfrac": self._mean(self.clipped),
            "value_mean": self._mean(self.value),
            "return_mean": self._mean(self.returns),
            "value_squared_error": self._mean(self.squared_error),
        }


@dataclass(frozen=True)
class TokenStats(Stats):
    """What a language-modelling loss saw."""

    loss: Tensor

    def means(self) -> dict[str, float]:
        """Return the mean negative log-likelihood in nats per token."""
        return {"nll": self._mean(self.loss)}


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float,
    num_tokens: float | Tensor,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, PolicyStats]:
    """Return PPO's clipped surrogate loss (scalar) and its statistics; all tensors are (B, T).

    Per token max(-A ratio, -A clip(ratio, 1 - clip_range, 1 + clip_range_high)). Eq. 7, arXiv:1707.06347.
    clip_range_high: upper range, None = clip_range (apart in DAPO, arXiv:2503.14476: 0.2 / 0.28).
    dual_clip: c > 1, bounds the loss at c |A| where A < 0 (arXiv:1912.09729: 3); None = off.
    weights: constant factor per token, e.g. truncated importance weights between sampler and trainer.
    A log ratio beyond +-20 is held there and has no gradient.
    """
    assert dual_clip is None or dual_clip > 1, dual_clip
    logprobs, old_logprobs, advantages = _inside(mask, logprobs, old_logprobs, advantages)
    high = clip_range if clip_range_high is None else clip_range_high
    log_ratio = (logprobs - old_logprobs.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    advantages = advantages.detach()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + high)
    per_token = torch.maximum(plain, clipped)
    dual_clipped = torch.zeros_like(mask)
    if dual_clip is not None:
        bound = -advantages * dual_clip
        dual_clipped = (advantages < 0) & (per_token > bound)
        per_token = torch.where(dual_clipped, bound, per_token)
    if weights is not None:
        (weights,) = _inside(mask, weights.detach())
        per_token = per_token * weights
    total = per_token.sum()  # off the mask advantages are 0 and ratios 1
    with torch.no_grad():
        (counted_ratio,) = _inside(mask, ratio)
        stats = PolicyStats(
            num_tokens=mask.sum().to(total.dtype),
            loss=total.detach(),
            clipped=(clipped > plain).sum().to(total.dtype),
            dual_clipped=dual_clipped.sum().to(total.dtype),
            approx_kl=(torch.expm1(log_ratio) - log_ratio).sum(),
            ratio=counted_ratio.sum(),
            ratio_max=_largest(counted_ratio),
        )
    return total / _divisor(num_tokens), stats


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    num_tokens: float | Tensor,
    value_clip_range: float | None = None,
) -> tuple[Tensor, ValueStats]:
    """Return half the squared error of the critic (scalar) and its statistics; all tensors are (B, T).

    With `value_clip_range` e: 0.5 max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2) per token, so that
    no prediction gains by moving further than e in one update (section 5, arXiv:2005.12729). None = off.
    """
    values, old_values, returns = _inside(mask, values, old_values, returns)
    old_values, returns = old_values.detach(), returns.detach()
    error = (values - returns).square()
    worst = error
    if value_clip_range is not None:
        near = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
        worst = torch.maximum(error, (near - returns).square())
    total = 0.5 * worst.sum()
    with torch.no_grad():
        stats = ValueStats(
            num_tokens=mask.sum().to(total.dtype),
            loss=total.detach(),
            clipped=(worst > error).sum().to(total.dtype),
            value=values.sum(),
            returns=returns.sum(),
            squared_error=error.sum(),
        )
    return total / _divisor(num_tokens), stats


def next_token_loss(
    logprobs: Tensor, mask: Tensor, *, num_tokens: float | Tensor
) -> tuple[Tensor, TokenStats]:
    """Return the mean negative log-likelihood (scalar, nats per token) of given text, and its statistics.

    The PPO-ptx term when the text is demonstrations. `logprobs` (B, T) as from `token_logprobs`.
    """
    (logprobs,) = _inside(mask, logprobs)
    total = -logprobs.sum()
    stats = TokenStats(num_tokens=mask.sum().to(total.dtype), loss=total.detach())
    return total / _divisor(num_tokens), stats


# --- inside ---


def _at_least_f32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _inside(mask: Tensor, *tensors: Tensor) -> tuple[Any, ...]:
    """Zero what the mask leaves out. `where`, not a product: 0 * NaN is NaN, in a loss and its gradient."""
    assert all(x.shape == mask.shape for x in tensors), [tuple(x.shape) for x in (mask, *tensors)]
    return tuple(torch.where(mask, x, 0.0) for x in tensors)


def _over_ranks(reduce: Reduce | None, *sums: Tensor) -> tuple[Tensor, ...]:
    """Add scalars up over ranks in a single collective."""
    stacked = torch.stack([x.to(sums[0].dtype) for x in sums])
    return (stacked if reduce is None else reduce(stacked)).unbind()


def _divisor(num_tokens: float | Tensor) -> Tensor:
    """The count as a tensor, at least 1: a minibatch without any action has loss 0, not 0 / 0."""
    return torch.as_tensor(num_tokens).clamp(min=1)


def _largest(x: Tensor) -> Tensor:
    return x.max() if x.numel() else x.new_zeros(())
