"""One PPO update: epochs x minibatches x token-budgeted micro-batches.

Every loss is a sum over tokens divided once by the minibatch's global token count, so neither the micro-batch
split, nor padding, nor the number of processes changes a gradient.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data.errors import UserError
from reasoning_rl.functional import policy_loss, value_loss
from reasoning_rl.shares import shares
from reasoning_rl.types import Experience

if TYPE_CHECKING:
    from reasoning_rl.learner import Learner
    from reasoning_rl.ptx import Demonstrations

MAX_SKIPPED_IN_A_ROW = 5


class NonFinite(ValueError):
    """Names what a model or scorer gave that no update may see: NaN or infinity."""


def ppo_update(
    learner: "Learner", experience: Experience, *, train_policy: bool, ptx: "Demonstrations | None" = None
) -> dict[str, float]:
    """Update actor (unless the critic is being pre-trained) and critic; return the averaged statistics.

    A minibatch with a non-finite loss or gradient is skipped and counted; UserError after five in a row.
    """
    config = learner.config.update
    totals: dict[str, float] = {}
    for rows in minibatches(len(experience), config.epochs, config.minibatch_size):
        minibatch = experience.select(rows)
        stats = _update_minibatch(learner, minibatch, train_policy=train_policy, ptx=ptx)
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
    num_tokens = float(minibatch.action_mask.sum())  # every process holds the whole minibatch
    place = {"rank": learner.accelerator.process_index, "world": learner.world}
    groups = list(shares(minibatch.lengths, config.update.micro_batch_tokens, **place))
    sums: dict[str, Tensor] = {}
    with torch.enable_grad():  # an inference engine in the same process may have switched it off
        for index, (rows, counts) in enumerate(groups):
            scale = float(learner.world) if counts else 0.0  # engines average gradients over processes
            micro = to_device(minibatch.select(rows), learner.accelerator.device)
            last = index == len(groups) - 1
            if train_policy:
                ptx_follows = ptx is not None and config.update.ptx_coef > 0
                with learner.actor.accumulate(last and not ptx_follows):
                    loss = _policy_loss(learner, micro, num_tokens, sums, counts)
                    learner.actor.backward(loss * scale)
            with learner.critic.accumulate(last):
                loss = _value_loss(learner, micro, num_tokens, sums, counts)
                learner.critic.backward(loss * scale)
        if train_policy and ptx is not None and config.update.ptx_coef > 0:
            with learner.actor.accumulate(True):
                loss = ptx.loss(learner)
                learner.actor.backward(config.update.ptx_coef * loss * learner.world)
            sums["ptx/loss"] = loss.detach()
    return _step(learner, sums, num_tokens, train_policy=train_policy)


def _policy_loss(
    learner: "Learner", micro: Experience, num_tokens: float, sums: dict[str, Tensor], counts: bool
) -> Tensor:
    update = learner.config.update
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
        micro.action_mask,
        clip_range=update.clip_range or math.inf,
        clip_range_high=update.clip_range_high,
        dual_clip=update.dual_clip,
        num_tokens=num_tokens,
    )
    if update.entropy_coef > 0:
        loss = loss - update.entropy_coef * entropies.sum() / num_tokens
    _add(sums, "policy/loss", stats.loss, counts)
    _add(sums, "policy/clipfrac", stats.clipped, counts)
    _add(sums, "policy/approx_kl", stats.approx_kl, counts)
    _add(sums, "policy/ratio", stats.ratio, counts)
    _add(sums, "policy/dual_clipfrac", stats.dual_clipped, counts)
    return loss


def _value_loss(
    learner: "Learner", micro: Experience, num_tokens: float, sums: dict[str, Tensor], counts: bool
) -> Tensor:
    values, _ = learner.critic(micro.input_ids, micro.action_mask, micro.lengths)
    loss, stats = value_loss(
        values,
        micro.old_values,
        micro.returns,
        micro.action_mask,
        value_clip_range=learner.config.critic.value_clip_range,
        num_tokens=num_tokens,
    )
    _add(sums, "critic/loss", stats.loss, counts)
    _add(sums, "critic/clipfrac", stats.clipped, counts)
    return loss


def _step(
    learner: "Learner", sums: dict[str, Tensor], num_tokens: float, *, train_policy: bool
) -> dict[str, float]:
    trained = {"critic/grad_norm": learner.critic}
    if train_policy:
        trained["policy/grad_norm"] = learner.actor
    norms = {name: model.clip() for name, model in trained.items()}
    names = sorted(sums)
    stacked = torch.stack([sums[name].double().cpu() for name in names])
    stats = dict(zip(names, learner.reduce(stacked).tolist(), strict=True))
    finite = all(math.isfinite(v) for v in (*norms.values(), *stats.values()))
    norms = {name: model.step(apply=finite) for name, model in trained.items()}
    finite = finite and all(math.isfinite(v) for v in norms.values())
    if not finite:
        return {"skipped": 1.0}
    return {**stats, **norms, "tokens": num_tokens, "updates": 1.0, "skipped": 0.0}


def _averages(totals: dict[str, float]) -> dict[str, float]:
    """Token sums over tokens, norms over updates."""
    tokens, updates = totals.pop("tokens", 0.0), totals.pop("updates", 0.0)
    averages = {"update/skipped": totals.pop("skipped", 0.0), "update/num_updates": updates}
    for name, total in totals.items():
        per = updates if name.endswith("grad_norm") or name.startswith("ptx/") else tokens
        averages[name] = total / per
    return averages


def _add(sums: dict[str, Tensor], name: str, value: Tensor, counts: bool) -> None:
    value = value.detach().double().cpu() * counts
    sums[name] = sums[name] + value if name in sums else value


def to_device(experience: Experience, device: torch.device) -> Experience:
    return Experience(**{name: value.to(device) for name, value in vars(experience).items()})
