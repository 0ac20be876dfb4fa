"""Advantages from Monte-Carlo values of step prefixes, in place of a critic (VinePPO).

B rollouts, S steps, T tokens. As in `functional.gae`, index t speaks of token t, and what stands off a mask
is never read and comes out as 0.
"""

import torch
from torch import Tensor

from reasoning_rl.config import PPOConfig
from reasoning_rl.group import returns_to_go
from reasoning_rl.prefix_values import Values
from reasoning_rl.shaping import place_on_last_action, spread_on_steps
from reasoning_rl.types import Rollout


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
    places = torch.arange(step_mask.shape[1], device=values.device)
    last = (step_mask.sum(1, keepdim=True) - 1).clamp(min=0)  # (B, 1); a row without steps is one step
    before = torch.cat([start_values[:, None], values[:, :-1]], dim=1)  # (B, S)
    gains = torch.where(places == last, final_rewards[:, None], values) - before
    advantages = spread_on_steps(gains, step_ends, step_mask, action_mask)
    return advantages + returns_to_go(other_rewards, action_mask, gamma=gamma)


def vine_of(
    rollout: Rollout,
    rewards: Tensor,
    outcome_rewards: Tensor,
    values: Values,
    config: PPOConfig,
) -> tuple[Tensor, dict[str, float]]:
    """Return (advantages (B, T), metrics) of a rollout, given what completions from its prefixes gave.

    rewards (B, T): all of them, the KL penalty included; outcome_rewards (B,): the outcome's, unweighted.
    values: as from `PrefixValues.estimate`.
    """
    weight, mask = config.reward.outcome_weight, rollout.action_mask
    after_steps, at_start, tokens = values
    final = weight * outcome_rewards
    advantages = vine_advantages(
        final,
        rewards - place_on_last_action(final, mask),
        weight * at_start,
        weight * after_steps,
        rollout.step_ends,
        rollout.step_mask,
        mask,
        gamma=config.update.gamma,
    )
    return advantages, {"rollout/value_tokens": float(tokens), "vine/start_value": at_start.mean().item()}
