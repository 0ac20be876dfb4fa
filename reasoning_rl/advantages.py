"""From a rewarded rollout to what an update needs: one forward of every model, then advantages and returns.

B rollouts, T tokens.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reasoning_rl.config import PPOConfig
from reasoning_rl.experience import process_share, progress_advantages, step_and_outcome_rewards
from reasoning_rl.functional import (
    explained_variance,
    gae,
    kl_estimate,
    length_adaptive_lambda,
    masked_moments,
    whiten,
)
from reasoning_rl.group import grpo_outcome, grpo_process, reinforce_pp, rloo
from reasoning_rl.learner import Learner
from reasoning_rl.prefix_values import PrefixValues
from reasoning_rl.rollout.mismatch import correct_mismatch, mismatch_metrics
from reasoning_rl.shaping import ADVANTAGES, place_on_tokens
from reasoning_rl.shares import estimate_together, shares
from reasoning_rl.types import Experience, Rollout, Scores
from reasoning_rl.update import require_finite
from reasoning_rl.vine import vine_of


@dataclass(frozen=True)
class Forward:
    """What the models say of a rollout, before any update, on the CPU."""

    logprobs: Tensor  # (B, T)
    ref_logprobs: Tensor  # (B, T)
    entropies: Tensor  # (B, T)
    values: Tensor  # (B, T); zeros without a critic
    final_values: Tensor  # (B,), of the whole text


def make_experience(
    learner: Learner,
    rollout: Rollout,
    rewards: Tensor,
    *,
    step_advantages: Tensor | None = None,
    pretraining: bool = False,
) -> tuple[Experience, dict[str, float]]:
    """Return advantages and returns of a rollout under the current models, and the monitors of this step.

    rewards (B, T): the task's, before the KL penalty. step_advantages (B, T): added to the policy's
    advantages; the critic does not learn them. While the critic is pre-trained its targets are
    Monte-Carlo returns (lambda 1): under a frozen policy nothing else needs estimating.
    """
    config = learner.config.update
    said = forward_rollout(learner, rollout)
    mask = rollout.action_mask
    rewards, metrics = _penalised(learner, rollout, said, rewards)
    values, bootstrap = said.values, said.final_values
    if learner.config.critic.value_norm:
        values = learner.value_norm.denormalise(values) * mask
        bootstrap = learner.value_norm.denormalise(bootstrap)
    # An answer that ended has no future; a cut one has.
    bootstrap = bootstrap * (~rollout.complete & (config.truncated == "bootstrap"))
    lam: float | Tensor = config.lam
    if config.adaptive_lam_alpha is not None:
        lam = length_adaptive_lambda(mask.sum(1), config.adaptive_lam_alpha)
    advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=lam, bootstrap_values=bootstrap)
    critic_lam = 1.0 if pretraining else config.critic_lam
    if critic_lam is not None:
        _, returns = gae(
            rewards, values, mask, gamma=config.gamma, lam=critic_lam, bootstrap_values=bootstrap
        )
    metrics |= {
        "critic/explained_variance": float(explained_variance(values, returns, mask)),
        "critic/value": masked_mean(values, mask),
        "critic/return": masked_mean(returns, mask),
    }
    if learner.config.critic.value_norm:
        learner.value_norm.update(returns[mask])
        returns = learner.value_norm.normalise(returns) * mask
    if step_advantages is not None:
        advantages = advantages + step_advantages
    experience, corrected = _experience(learner, rollout, said, advantages)
    return replace(experience, old_values=said.values, returns=returns), metrics | corrected


def make_group_experience(
    learner: Learner,
    rollout: Rollout,
    scores: Scores,
    rewards: Tensor,
    values: PrefixValues | None = None,
) -> tuple[Experience, dict[str, float]]:
    """Return what `make_experience` does, with the advantages of an algorithm without a critic.

    rewards (B, T) as there. GRPO takes step and outcome rewards apart, as it normalises each by itself, and
    applies the weights to the advantages: before a normalisation they would have no effect. values: what
    vine completes prefixes with.
    """
    config, mask = learner.config, rollout.action_mask
    said = forward_rollout(learner, rollout)
    rewards, metrics = _penalised(learner, rollout, said, rewards)
    group = {"group_size": config.rollout.samples_per_problem}
    extra = progress_advantages(rollout, scores, config.reward, learner.moments)
    compared: dict[str, Any] = {"baseline": config.group.baseline, "gamma": config.update.gamma, **group}
    if config.group.baseline == "token":
        compared["process"] = process_share(rollout, scores, config.reward, learner.moments)
    if config.algorithm == "reinforce_pp":
        advantages = reinforce_pp(rewards, mask, step_advantages=extra, **compared)
        extra = None
    elif config.algorithm == "rloo":
        advantages = rloo(rewards, mask, **compared)
    elif config.algorithm == "vine":
        assert values is not None
        _, outcomes = step_and_outcome_rewards(
            rollout, scores, config.reward, max_new_tokens=config.rollout.max_new_tokens
        )
        found = estimate_together(values, rollout, scores.outcomes, learner.accelerator)
        advantages, spent = vine_of(rollout, rewards, outcomes, found, config)
        metrics |= spent
    else:
        assert config.algorithm == "grpo", config.algorithm
        advantages = _grpo(config, rollout, scores)
    if extra is not None:
        advantages = advantages + extra
    outcomes = scores.outcomes.reshape(-1, config.rollout.samples_per_problem)
    agree = (outcomes == outcomes[:, :1]).all(1)
    metrics["group/agree"] = agree.double().mean().item()
    experience, corrected = _experience(learner, rollout, said, advantages)
    return experience, metrics | corrected


def _grpo(config: PPOConfig, rollout: Rollout, scores: Scores) -> Tensor:
    """(B, T): outcome supervision, process supervision, or their weighted sum."""
    reward, mask = config.reward, rollout.action_mask
    steps, outcomes = step_and_outcome_rewards(
        rollout, scores, reward, max_new_tokens=config.rollout.max_new_tokens
    )
    options: dict[str, Any] = {
        "group_size": config.rollout.samples_per_problem,
        "divide_by_std": config.group.divide_by_std,
    }
    advantages = reward.outcome_weight * grpo_outcome(outcomes, **options)[:, None] * mask
    if reward.form in ("none", *ADVANTAGES) or reward.step_weight == 0:
        return advantages
    width = mask.shape[1]
    on_tokens = place_on_tokens(steps, rollout.step_ends, scores.scored, num_tokens=width)
    paid = place_on_tokens(torch.ones_like(steps), rollout.step_ends, scores.scored, num_tokens=width) > 0
    return advantages + reward.step_weight * grpo_process(on_tokens, paid, mask, **options)


def _penalised(
    learner: Learner, rollout: Rollout, said: Forward, rewards: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Rewards (B, T) with the KL penalty, where it belongs to them, and the policy's monitors."""
    kl_config, mask = learner.config.kl, rollout.action_mask
    kl = kl_estimate(said.logprobs, said.ref_logprobs, kl_config.estimator) * mask
    if kl_config.place == "reward":
        rewards = rewards - learner.kl.coef * kl
    metrics = _policy_monitors(rollout, said.logprobs, kl, said.entropies)
    if learner.config.rollout.old_logprobs == "recomputed":
        metrics |= mismatch_metrics(said.logprobs, rollout.behaviour_logprobs, mask)
    return rewards * mask, metrics


def _experience(
    learner: Learner, rollout: Rollout, said: Forward, advantages: Tensor
) -> tuple[Experience, dict[str, float]]:
    """Advantages as the update takes them: whitened and clipped as configured; tokens weighted by how likely
    the policy is to write them, against the sampler."""
    config, mask = learner.config.update, rollout.action_mask
    counted = mask & rollout.complete[:, None] if config.truncated == "mask" else mask
    if config.advantage_norm:
        advantages = whiten(advantages, counted)
    if config.advantage_clip is not None:
        advantages = advantages.clamp(-config.advantage_clip, config.advantage_clip)
    weights, metrics = correct_mismatch(
        said.logprobs, rollout.behaviour_logprobs, mask, learner.config.rollout
    )
    experience = Experience(
        input_ids=rollout.input_ids,
        lengths=rollout.lengths,
        action_mask=mask,
        loss_mask=counted,
        old_logprobs=said.logprobs,
        advantages=advantages * counted,
        ref_logprobs=said.ref_logprobs if learner.config.kl.place == "loss" else None,
        weights=weights,
    )
    return experience, metrics


def _policy_monitors(
    rollout: Rollout, old_logprobs: Tensor, kl: Tensor, entropies: Tensor
) -> dict[str, float]:
    """Monitors of the policy."""
    mask = rollout.action_mask
    return {
        "policy/kl_per_response": kl.sum().item() / len(rollout.lengths),
        "policy/entropy": masked_mean(entropies, mask),
        "policy/perplexity": math.exp(-masked_mean(old_logprobs, mask)),
    }


def masked_mean(values: Tensor, mask: Tensor) -> float:
    """Mean over the masked tokens; 0 where there are none."""
    mean, _, _ = masked_moments(values, mask)
    return float(mean)


@torch.no_grad()
def forward_rollout(learner: Learner, rollout: Rollout) -> Forward:
    """Run reference, actor and critic (where there is one) once over a rollout, the reference by itself.

    With rollout.old_logprobs sampled the actor rests, and minus a token's logprob stands for the entropy
    before it: that is its expectation.
    Row groups of similar length, within the token budget: nothing is computed on padding that can be avoided.
    Every process computes its share and gets all. Raises NonFinite before any statistic has seen NaN.
    """
    config, device = learner.config, learner.accelerator.device
    shape = rollout.input_ids.shape
    a, b, c, d = (torch.zeros(shape) for _ in range(4))
    said = Forward(a, b, c, d, final_values=torch.zeros(shape[0]))
    is_sampled = config.rollout.old_logprobs == "sampled"
    place = {"rank": learner.accelerator.process_index, "world": learner.world}
    groups = list(shares(rollout.lengths, config.update.micro_batch_tokens, **place))
    temperature = config.rollout.temperature

    def planes(rows: Tensor) -> tuple[Tensor, Tensor, slice]:
        columns = slice(int(rollout.lengths[rows].max()))
        input_ids, mask = rollout.input_ids[rows, columns], rollout.action_mask[rows, columns]
        return input_ids.to(device), mask.to(device), columns

    with learner.reference_here():
        for rows, counts in groups:
            input_ids, mask, columns = planes(rows)
            ref_logprobs, _ = learner.reference(input_ids, mask, temperature=temperature)
            if counts:
                said.ref_logprobs[rows, columns] = ref_logprobs.cpu()
    learner.phases.lap("reference")
    for rows, counts in groups:
        input_ids, mask, columns = planes(rows)
        if not is_sampled:
            logprobs, entropies = learner.actor(input_ids, mask, temperature=temperature, with_entropy=True)
        if learner.critic is not None:
            values, final = learner.critic(input_ids, mask, rollout.lengths[rows].to(device))
        if not counts:
            continue
        if not is_sampled:
            said.logprobs[rows, columns], said.entropies[rows, columns] = logprobs.cpu(), entropies.cpu()
        if learner.critic is not None:
            said.values[rows, columns], said.final_values[rows] = values.cpu(), final.cpu()
    if learner.world > 1:  # the others' rows are 0 here
        said = Forward(**{name: learner.reduce(plane) for name, plane in vars(said).items()})
    if is_sampled:
        noted = rollout.behaviour_logprobs * rollout.action_mask
        said = replace(said, logprobs=noted, entropies=-noted)
    require_finite(**vars(said))
    return said
