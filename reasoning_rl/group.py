"""Advantages without a critic: a response is compared with its siblings, or with the whole batch.

B = P * G rows, the G responses of a problem next to each other; T tokens. Pure functions of tensors. Index t
of every (B, T) tensor speaks of token t; masks True = counts; what stands outside comes out as 0.

    advantages = grpo_outcome(outcomes, group_size=8)[:, None] * action_mask
    advantages += grpo_process(step_rewards, step_tokens, action_mask, group_size=8)
"""

from typing import Literal

import torch
from torch import Tensor

from reasoning_rl.functional import Reduce, gae, whiten

Baseline = Literal["none", "response", "token"]

# Below it a deviation is rounding noise: a group of equal rewards has advantage 0, not noise over noise.
_STD_EPS = 1e-6


def grpo_outcome(rewards: Tensor, *, group_size: int, divide_by_std: bool = True) -> Tensor:
    """Return (reward - group mean) / group deviation, (B,), from one reward a response.

    Section 4.1.2, arXiv:2402.03300. The deviation is the sample's (n - 1). divide_by_std False leaves it out,
    as it weighs easy and hard problems up (Dr. GRPO, arXiv:2503.20783).
    """
    grouped = _groups(rewards, group_size)  # (P, G)
    centred = grouped - grouped.mean(1, keepdim=True)
    if divide_by_std:
        centred = centred / (grouped.std(1, keepdim=True) + _STD_EPS)
    return centred.reshape(-1)


def grpo_process(
    rewards: Tensor,
    reward_mask: Tensor,
    action_mask: Tensor,
    *,
    group_size: int,
    divide_by_std: bool = True,
) -> Tensor:
    """Return (B, T): the sum of the normalised rewards that are paid on this token or later.

    rewards (B, T) on the tokens of `reward_mask`, normalised with mean and deviation over *all* of the
    group's. Section 4.1.3, arXiv:2402.03300. A group with a single reward gets 0.
    """
    mask = _groups(reward_mask & action_mask, group_size)  # (P, G, T)
    values = torch.where(mask, _groups(rewards, group_size), 0.0)
    count = mask.sum((1, 2), keepdim=True)
    centred = torch.where(mask, values - values.sum((1, 2), keepdim=True) / count.clamp(min=1), 0.0)
    if divide_by_std:
        variance = centred.square().sum((1, 2), keepdim=True) / (count - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + _STD_EPS)
    return returns_to_go(centred.reshape(rewards.shape), action_mask)


def rloo(
    rewards: Tensor,
    action_mask: Tensor,
    *,
    group_size: int,
    baseline: Baseline = "response",
    gamma: float = 1.0,
    process: Tensor | None = None,
) -> Tensor:
    """Return per-token returns minus what the *other* responses of the group earned, (B, T).

    response: the mean of the others' whole returns, independent of this response, so it adds no bias (RLOO,
              arXiv:2402.14740). Differs: a token is credited with what is paid from it on, not with the whole
              response's reward; what was paid before it is not its doing.
    token:    every token's reward is compared with the others' reward per token, for rewards that grow with
              the number of steps: a baseline per response or step favours few of them (section 3.2,
              arXiv:2504.15275). In return the length comes in: n tokens are expected to earn n times as much,
              which is wrong of an outcome. `process` (B, T) is therefore what of `rewards` is compared so
              (None: all); the rest has the response baseline, as there. Differs from the paper, as its code
              does: the others' own tokens count, not the longest response's.
    none:     the returns (REINFORCE).
    """
    if baseline == "none":
        return returns_to_go(rewards, action_mask, gamma=gamma)
    assert group_size > 1, "there are no others"
    rewards = torch.where(action_mask, rewards, 0.0)
    if baseline == "token":
        process = rewards if process is None else torch.where(action_mask, process, 0.0)
        earned, length = _others(process.sum(1), group_size), _others(action_mask.sum(1), group_size)
        per_token = earned / length.clamp(min=1)
        of_process = returns_to_go(process - per_token[:, None], action_mask, gamma=gamma)
        return of_process + rloo(rewards - process, action_mask, group_size=group_size, gamma=gamma)
    assert baseline == "response", baseline
    returns = returns_to_go(rewards, action_mask, gamma=gamma)
    others = _others(whole_returns(returns, action_mask), group_size) / (group_size - 1)
    return torch.where(action_mask, returns - others[:, None], 0.0)


def reinforce_pp(
    rewards: Tensor,
    action_mask: Tensor,
    *,
    group_size: int,
    baseline: Baseline = "none",
    gamma: float = 1.0,
    process: Tensor | None = None,
    step_advantages: Tensor | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    """Return per-token returns, whitened over all tokens of the batch and all ranks, (B, T).

    Eq. 8-10, arXiv:2501.03262, where `rewards` carry the KL penalty already. baseline "response" takes the
    mean return of the whole group, itself included, off before: the paper's variant for several responses a
    problem. "token" and `process` are `rloo`'s. step_advantages (B, T) are added before the whitening.
    """
    if baseline == "response":
        returns = returns_to_go(rewards, action_mask, gamma=gamma)
        mean = _groups(whole_returns(returns, action_mask), group_size).mean(1)
        returns = returns - mean.repeat_interleave(group_size)[:, None]
    else:
        returns = rloo(
            rewards, action_mask, group_size=group_size, baseline=baseline, gamma=gamma, process=process
        )
    if step_advantages is not None:
        returns = returns + step_advantages
    return whiten(returns, action_mask, reduce=reduce)


def returns_to_go(rewards: Tensor, action_mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return the discounted sum of this and all later rewards, (B, T)."""
    # With a critic that knows nothing, and lambda 1, GAE is the return.
    return gae(rewards, torch.zeros_like(rewards), action_mask, gamma=gamma, lam=1.0)[0]


def whole_returns(returns: Tensor, action_mask: Tensor) -> Tensor:
    """Return each row's return at its first action, (B,); 0 for a row without actions."""
    first = action_mask & (action_mask.cumsum(1) == 1)
    return torch.where(first, returns, 0.0).sum(1)


def _groups(x: Tensor, group_size: int) -> Tensor:
    assert len(x) % group_size == 0, (len(x), group_size)
    return x.reshape(-1, group_size, *x.shape[1:])


def _others(x: Tensor, group_size: int) -> Tensor:
    """Return the sum over the row's siblings without itself, (B,)."""
    grouped = _groups(x, group_size)
    return (grouped.sum(1, keepdim=True) - grouped).reshape(-1)
