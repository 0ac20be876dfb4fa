"""From a rewarded rollout to what an update needs: one forward of every model, then advantages and returns.

B rollouts, T tokens.
"""

import math

import torch
from torch import Tensor

from reasoning_rl.functional import explained_variance, gae, kl_estimate, masked_moments, whiten
from reasoning_rl.learner import Learner
from reasoning_rl.shares import shares
from reasoning_rl.types import Experience, Rollout
from reasoning_rl.update import require_finite


def make_experience(
    learner: Learner, rollout: Rollout, rewards: Tensor, *, pretraining: bool = False
) -> tuple[Experience, dict[str, float]]:
    """Return advantages and returns of a rollout under the current models, and the monitors of this step.

    rewards (B, T): the task's, before the KL penalty. While the critic is pre-trained its targets are
    Monte-Carlo returns (lambda 1): under a frozen policy nothing else needs estimating. Raises NonFinite
    before any statistic has seen NaN or infinity.
    """
    config = learner.config.update
    old_logprobs, ref_logprobs, entropies, values, final_values = forward_rollout(learner, rollout)
    require_finite(logprobs=old_logprobs, reference_logprobs=ref_logprobs, values=values)
    mask = rollout.action_mask
    kl = kl_estimate(old_logprobs, ref_logprobs, learner.config.kl.estimator) * mask
    rewards = (rewards - learner.kl.coef * kl) * mask
    real_values, bootstrap = values, final_values
    if learner.config.critic.value_norm:
        real_values = learner.value_norm.denormalise(values) * mask
        bootstrap = learner.value_norm.denormalise(final_values)
    bootstrap = bootstrap * ~rollout.complete  # an answer that ended has no future; a cut one has
    advantages, returns = gae(
        rewards, real_values, mask, gamma=config.gamma, lam=config.lam, bootstrap_values=bootstrap
    )
    critic_lam = 1.0 if pretraining else config.critic_lam
    if critic_lam is not None:
        _, returns = gae(
            rewards, real_values, mask, gamma=config.gamma, lam=critic_lam, bootstrap_values=bootstrap
        )
    variance = explained_variance(real_values, returns, mask)
    mean_return = masked_mean(returns, mask)
    if learner.config.critic.value_norm:
        learner.value_norm.update(returns[mask])
        returns = learner.value_norm.normalise(returns) * mask
    if config.advantage_norm:
        advantages = whiten(advantages, mask)
    if config.advantage_clip is not None:
        advantages = advantages.clamp(-config.advantage_clip, config.advantage_clip)
    metrics = _policy_monitors(rollout, old_logprobs, kl, entropies)
    metrics |= {
        "critic/explained_variance": float(variance),
        "critic/value": masked_mean(real_values, mask),
        "critic/return": mean_return,
    }
    experience = Experience(
        input_ids=rollout.input_ids,
        lengths=rollout.lengths,
        action_mask=mask,
        old_logprobs=old_logprobs,
        old_values=values,
        advantages=advantages * mask,
        returns=returns,
    )
    return experience, metrics


def _policy_monitors(
    rollout: Rollout, old_logprobs: Tensor, kl: Tensor, entropies: Tensor
) -> dict[str, float]:
    mask = rollout.action_mask
    mismatch = ((old_logprobs - rollout.behaviour_logprobs).abs() * mask).max()
    return {
        "policy/kl_per_response": float(kl.double().sum()) / len(rollout.lengths),
        "policy/entropy": masked_mean(entropies, mask),
        "policy/perplexity": math.exp(-masked_mean(old_logprobs, mask)),
        "policy/behaviour_mismatch": mismatch.item(),
    }


def masked_mean(values: Tensor, mask: Tensor) -> float:
    """Mean over the masked tokens; 0 where there are none."""
    mean, _, _ = masked_moments(values, mask)
    return float(mean)


@torch.no_grad()
def forward_rollout(learner: Learner, rollout: Rollout) -> tuple[Tensor, ...]:
    """Return (old_logprobs, ref_logprobs, entropies, values) (B, T) and final values (B,), on the CPU.

    Row groups of similar length, within the token budget: nothing is computed on padding that can be avoided.
    Every process computes its share and gets all.
    """
    config, device = learner.config, learner.accelerator.device
    shape = rollout.input_ids.shape
    planes = [torch.zeros(shape) for _ in range(4)]
    final_values = torch.zeros(shape[0])
    place = {"rank": learner.accelerator.process_index, "world": learner.world}
    for rows, counts in shares(rollout.lengths, config.update.micro_batch_tokens, **place):
        width = int(rollout.lengths[rows].max())
        input_ids = rollout.input_ids[rows, :width].to(device)
        mask = rollout.action_mask[rows, :width].to(device)
        temperature = config.rollout.temperature
        logprobs, entropies = learner.actor(input_ids, mask, temperature=temperature, with_entropy=True)
        ref_logprobs, _ = learner.reference(input_ids, mask, temperature=temperature)
        values, final = learner.critic(input_ids, mask, rollout.lengths[rows].to(device))
        if not counts:
            continue
        for plane, part in zip(planes, (logprobs, ref_logprobs, entropies, values), strict=True):
            plane[rows, :width] = part.cpu()
        final_values[rows] = final.cpu()
    if learner.world > 1:  # the others' rows are 0 here
        return tuple(learner.reduce(plane) for plane in (*planes, final_values))
    return (*planes, final_values)
