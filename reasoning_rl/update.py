"""One PPO update: epochs x minibatches x token-budgeted micro-batches.

Every loss is a weighted sum over tokens divided once by a global count of the minibatch, so neither the
micro-batch split, nor padding, nor the number of processes changes a gradient.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.errors import UserError
from reasoning_rl.functional import policy_loss, value_loss
from reasoning_rl.loss_terms import kl_loss, token_weights
from reasoning_rl.shares import shares
from reasoning_rl.types import Experience

if TYPE_CHECKING:
    from reasoning_rl.learner import Learner
    from reasoning_rl.ptx import Demonstrations

MAX_SKIPPED_IN_A_ROW = 5
COUNTS = ("tokens", "updates", "policy_tokens", "policy_updates", "skipped", "held")
"""What a minibatch's statistics are averaged over, beside what went wrong."""


class NonFinite(ValueError):
    """Names what a model or scorer gave that no update may see: NaN or infinity."""


def ppo_update(
    learner: "Learner", experience: Experience, *, train_policy: bool, ptx: "Demonstrations | None" = None
) -> dict[str, float]:
    """Update actor (unless the critic is being pre-trained) and critic; return the averaged statistics.

    A minibatch with a non-finite loss or gradient is skipped and counted; UserError after five in a row.
    One that left the trust region (update.max_ratio, max_kl) does not move the policy; after max_kl no
    further one of this call does.
    """
    config = learner.config.update
    totals: dict[str, float] = {}
    for rows in minibatches(len(experience), config.epochs, config.minibatch_size):
        if not train_policy and learner.critic is None:
            break
        minibatch = experience.select(rows)
        stats = _update_minibatch(learner, minibatch, train_policy=train_policy, ptx=ptx)
        train_policy = train_policy and not stats.pop("stop", 0.0)
        for name, value in stats.items():
            totals[name] = totals.get(name, 0.0) + value
        skipped = bool(stats["skipped"])
        _count_skip(learner, "loss or gradient was" if skipped else None)
    return _averages(totals)


def require_finite(**tensors: Tensor) -> None:
    """Raise NonFinite, naming the first tensor with NaN or infinity."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NonFinite(name)


def skip_iteration(learner: "Learner", error: NonFinite) -> dict[str, float]:
    """Count an iteration without an update, and return its statistics. UserError after five in a row."""
    _count_skip(learner, f"{str(error).replace('_', ' ')} were")
    return {"update/skipped": 1.0, "update/num_updates": 0.0}


def _count_skip(learner: "Learner", what: str | None) -> None:
    learner.skips.in_a_row = learner.skips.in_a_row + 1 if what else 0
    if learner.skips.in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise UserError(
            f"{what} not finite in {MAX_SKIPPED_IN_A_ROW} updates in a row; lower update.learning_rate or "
            "critic.learning_rate (the last checkpoint is good: --resume)"
        )


def minibatches(num_rows: int, epochs: int, size: int) -> Iterator[Tensor]:
    """Yield row indices: each epoch is one permutation of all rows, drawn from torch's global generator."""
    assert num_rows % size == 0
    for _ in range(epochs):
        yield from torch.randperm(num_rows).split(size)


def _update_minibatch(
    learner: "Learner", minibatch: Experience, *, train_policy: bool, ptx: "Demonstrations | None"
) -> dict[str, float]:
    """One optimiser update of each model. Returns sums over processes, to be divided by their counts."""
    config = learner.config
    device = learner.accelerator.device
    weights, total = token_weights(
        minibatch.loss_mask, config.update.loss_aggregation, max_tokens=config.rollout.max_new_tokens
    )
    # Every process holds the whole minibatch, so these are the numbers of all.
    num_tokens, divisor = max(1.0, float(minibatch.loss_mask.sum())), max(1.0, float(total))
    place = {"rank": learner.accelerator.process_index, "world": learner.world}
    groups = list(shares(minibatch.lengths, config.update.micro_batch_tokens, **place))
    sums: dict[str, Tensor] = {}
    with torch.enable_grad():  # an inference engine in the same process may have switched it off
        for index, (rows, counts) in enumerate(groups):
            scale = float(learner.world) if counts else 0.0  # engines average gradients over processes
            found: dict[str, Tensor] = {}
            micro = minibatch.select(rows).map(lambda x: x.to(device))
            last = index == len(groups) - 1
            if train_policy:
                ptx_follows = ptx is not None and config.update.ptx_coef > 0
                with learner.actor.accumulate(last and not ptx_follows):
                    micro_weights = weights[rows, : micro.input_ids.shape[1]].to(device)
                    loss = _policy_loss(learner, micro, micro_weights, divisor, num_tokens, found)
                    learner.actor.backward(loss * scale)
            if learner.critic is not None:
                with learner.critic.accumulate(last):
                    loss = _value_loss(learner, micro, num_tokens, found)
                    learner.critic.backward(loss * scale)
            for name, value in found.items():
                _add(sums, name, value * counts)
        if train_policy and ptx is not None and config.update.ptx_coef > 0:
            with learner.actor.accumulate(True):
                loss = ptx.loss(learner)
                learner.actor.backward(config.update.ptx_coef * loss * learner.world)
            sums["ptx/loss"] = loss.detach()
    return _step(learner, sums, num_tokens, train_policy=train_policy)


def _policy_loss(
    learner: "Learner",
    micro: Experience,
    weights: Tensor,
    divisor: float,
    num_tokens: float,
    sums: dict[str, Tensor],
) -> Tensor:
    update, kl = learner.config.update, learner.config.kl
    if micro.weights is not None:
        weights = weights * micro.weights
    logprobs, entropies = learner.actor(
        micro.input_ids,
        micro.action_mask,
        temperature=learner.config.rollout.temperature,
        with_entropy=update.entropy_coef > 0,
    )
    loss, stats = policy_loss(
        logprobs,
        micro.old_logprobs,
        micro.advantages,
        micro.loss_mask,
        clip_range=update.clip_range or math.inf,
        clip_range_high=update.clip_range_high,
        dual_clip=update.dual_clip,
        weights=weights,
        num_tokens=divisor,
    )
    # Put down per token of the minibatch, as everything else is, whatever the loss was divided by.
    _add(sums, "policy/loss", loss * num_tokens)
    if micro.ref_logprobs is not None:
        penalty = kl_loss(
            logprobs,
            micro.ref_logprobs,
            micro.loss_mask,
            estimator=kl.estimator,
            weights=weights,
            divisor=divisor,
        )
        _add(sums, "policy/kl_loss", penalty * num_tokens)
        loss = loss + learner.kl.coef * penalty
    if update.entropy_coef > 0:
        loss = loss - update.entropy_coef * (entropies * weights).sum() / divisor
    _add(sums, "policy/clipfrac", stats.clipped)
    _add(sums, "policy/approx_kl", stats.approx_kl)
    _add(sums, "policy/ratio", stats.ratio)
    _add(sums, "policy/dual_clipfrac", stats.dual_clipped)
    return loss


def _value_loss(learner: "Learner", micro: Experience, num_tokens: float, sums: dict[str, Tensor]) -> Tensor:
    assert learner.critic is not None and micro.old_values is not None and micro.returns is not None
    values, _ = learner.critic(micro.input_ids, micro.action_mask, micro.lengths)
    loss, stats = value_loss(
        values,
        micro.old_values,
        micro.returns,
        micro.loss_mask,
        value_clip_range=learner.config.critic.value_clip_range,
        num_tokens=num_tokens,
    )
    _add(sums, "critic/loss", stats.loss)
    _add(sums, "critic/clipfrac", stats.clipped)
    return loss


def _step(
    learner: "Learner", sums: dict[str, Tensor], num_tokens: float, *, train_policy: bool
) -> dict[str, float]:
    models = {}
    if learner.critic is not None:
        models["critic"] = learner.critic
    if train_policy:
        models["policy"] = learner.actor
    clipped = [model.clip() for model in models.values()]
    names = sorted(sums)
    stacked = torch.stack([sums[name].double().cpu() for name in names])
    stats = dict(zip(names, learner.reduce(stacked).tolist(), strict=True))
    finite = all(math.isfinite(v) for v in (*clipped, *stats.values()))
    left = train_policy and _left_trust_region(learner, stats, num_tokens)
    norms = {
        f"{name}/grad_norm": model.step(apply=finite and not (name == "policy" and left))
        for name, model in models.items()
    }
    finite = finite and all(math.isfinite(v) for v in norms.values())
    if not finite:
        return {"skipped": 1.0}
    counts = {"tokens": num_tokens, "updates": 1.0, "skipped": 0.0, "held": float(left)}
    if train_policy:
        counts |= {"policy_tokens": num_tokens, "policy_updates": 1.0}
    limit_kl = learner.config.update.max_kl
    stop = left and limit_kl is not None and stats["policy/approx_kl"] > limit_kl * num_tokens
    return {**stats, **norms, **counts, "stop": float(stop)}


def _left_trust_region(learner: "Learner", stats: dict[str, float], num_tokens: float) -> bool:
    """Whether the policy is too far from the one that sampled this minibatch to learn from it."""
    update = learner.config.update
    ratio, kl = (stats[f"policy/{name}"] / max(num_tokens, 1.0) for name in ("ratio", "approx_kl"))
    too_likely = update.max_ratio is not None and ratio > update.max_ratio
    too_far = update.max_kl is not None and kl > update.max_kl
    return too_likely or too_far


def _averages(totals: dict[str, float]) -> dict[str, float]:
    """Token sums over tokens, norms over updates; of the policy, over those it took part in."""
    counts = {name: totals.pop(name, 0.0) for name in COUNTS}
    averages = {
        "update/skipped": counts["skipped"],
        "update/num_updates": counts["updates"],
        "update/held": counts["held"],
    }
    for name, total in totals.items():
        of_policy = "policy_" if name.startswith(("policy/", "ptx/")) else ""
        per = "updates" if name.endswith("grad_norm") or name.startswith("ptx/") else "tokens"
        averages[name] = total / max(counts[of_policy + per], 1.0)
    return averages


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    value = value.detach().double().cpu()
    sums[name] = sums[name] + value if name in sums else value
