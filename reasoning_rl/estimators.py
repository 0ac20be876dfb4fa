"""Advantages without a critic: Monte-Carlo values of step prefixes, and a baseline from the other samples.

B rollouts, S steps, T tokens. As in `functional.gae`, index t speaks of token t, and what stands off a mask
is never read and comes out as 0.
"""

import torch
from torch import Tensor


def vine_advantages(
    final_rewards: Tensor,
    other_rewards: Tensor,
    start_values: Tensor,
    values: Tensor,
    step_ends: Tensor,
    step_mask: Tensor,
    action_mask: Tensor,
    *,
    gamma: float = 1.0,
) -> Tensor:
    """Return advantages (B, T): V(after the step) - V(before it), the same for all tokens of a step.

        A_t = V(s_{k+1}) - V(s_k) + sum_{j >= t} gamma^(j - t) r_j   for token t of step k

    VinePPO, arXiv:2410.01679: V(s) is the mean outcome of fresh completions of prefix s, and the step after
    which the answer has ended gets its reward in place of a value. Here `start_values` (B,) is V(problem),
    `values` (B, S) that after each step, and `final_rewards` (B,) the outcome's reward, in the values'
    units; the last counted step, and tokens behind it, get final_rewards - V(before it).
    Differs: `other_rewards` (B, T), the KL penalty and process rewards, which those completions say nothing
    about, are added as the return from the token on. Zero in the paper, whose KL is in the loss.
    """
    num_steps = step_mask.sum(1, keepdim=True)  # (B, 1)
    places = torch.arange(step_mask.shape[1], device=values.device)
    assert bool((step_mask == (places < num_steps)).all()), "counted steps stand first in a row"
    last = (num_steps - 1).clamp(min=0)  # a row without steps is one step
    before = torch.cat([start_values[:, None], values[:, :-1]], dim=1)  # (B, S)
    gains = torch.where(places == last, final_rewards[:, None], values) - before
    ends = torch.zeros(action_mask.shape, dtype=torch.long, device=values.device)
    ends.scatter_add_(1, torch.where(step_mask, step_ends, 0), step_mask.long())
    passed = ends.cumsum(1) - ends  # (B, T): steps that ended before the token
    of_step = gains.gather(1, passed.minimum(last))
    return torch.where(action_mask, of_step + rewards_to_go(other_rewards, action_mask, gamma=gamma), 0.0)


def token_baseline_advantages(
    rewards: Tensor, action_mask: Tensor, groups: Tensor, *, gamma: float = 1.0
) -> Tensor:
    """Return advantages (B, T): the return from a token on, each token's reward less what the others earn.

        A_t = sum_{j >= t} gamma^(j - t) (r_j - b),   b = others' rewards / others' tokens

    The others are the rows with the same entry in `groups` (B,); a row alone has b = 0. PURE,
    arXiv:2504.15275, for its min form: a baseline per *step* would pay for writing fewer, longer steps, one
    per token cannot. Differs from the equation, whose divisor is the longest response's length: as in its
    authors' code the others' own tokens are counted, which makes a row of average rewards come out at 0.
    """
    counted = torch.where(action_mask, rewards, 0.0)
    same = groups[:, None] == groups[None]
    others = (same & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)).to(counted.dtype)
    totals, tokens = others @ counted.sum(1), others @ action_mask.sum(1).to(counted.dtype)
    baseline = totals / tokens.clamp(min=1)
    return rewards_to_go(counted - baseline[:, None], action_mask, gamma=gamma)


def rewards_to_go(rewards: Tensor, action_mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return (B, T): sum of gamma^(j - t) r_j over the actions j from t on."""
    running = rewards.new_zeros(len(rewards))
    columns = []
    for reward, counts in zip(rewards.flip(1).unbind(1), action_mask.flip(1).unbind(1), strict=True):
        running = torch.where(counts, reward + gamma * running, running)
        columns.append(running)
    return torch.where(action_mask, torch.stack(columns[::-1], dim=1), 0.0)
