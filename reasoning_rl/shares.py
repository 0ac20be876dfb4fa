"""What the processes of a run share out and bring together.

Every process samples and scores its share of the problems; then all hold the whole batch, so rewards,
advantages, moments and token counts are those of one process by construction. Only forwards and gradients are
shared out again, by length, so that all have the same work.

B rollouts, T tokens.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from data.errors import UserError
from data.schema import Problem
from prm.batching import plan_micro_batches
from reasoning_rl.config import PPOConfig
from reasoning_rl.prefix_values import PrefixValues, Values
from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.types import Rollout, Scores, micro_batches

Batch = TypeVar("Batch", Rollout, Scores)


def refuse_what_needs_one_process(config: PPOConfig, world: int) -> None:
    """Raise UserError for settings that several processes cannot share. Call it before a model is loaded."""
    if world == 1:
        return
    rollout = config.rollout
    faults = []
    if rollout.problems_per_iteration % world:
        faults.append(
            f"rollout.problems_per_iteration {rollout.problems_per_iteration} must be divisible by {world}"
        )
    faults += _engine_faults(rollout.engine)
    if config.prm_backend == "vllm":
        faults.append("prm_backend vllm is an engine of one process: take local")
    if faults:
        raise UserError(f"this run has {world} processes\n" + "\n".join(faults))


def refuse_engine_of_one_process(engine: EngineConfig, world: int) -> None:
    """Raise UserError for an engine that does not go with several processes."""
    if world > 1 and (faults := _engine_faults(engine)):
        raise UserError(f"this run has {world} processes\n" + "\n".join(faults))


def _engine_faults(engine: EngineConfig) -> list[str]:
    faults = []
    if engine.backend == "vllm":
        faults.append("rollout.engine.backend vllm is an engine of one process: take vllm-server or hf")
    if engine.backend == "vllm-server" and engine.url is None:
        faults.append(
            "rollout.engine.backend vllm-server would start a server in each: start one with `stepwell "
            "serve` and set rollout.engine.url"
        )
    return faults


def own_problems(problems: list[Problem], *, rank: int, world: int) -> list[Problem]:
    """Return this process's share; `join` undoes it."""
    return problems[rank::world]


def gather(
    rollout: Rollout, scores: Scores, accelerator: Any, *, num_problems: int
) -> tuple[Rollout, Scores]:
    """Return rollout and scores of all processes, in the order of the problems that were drawn.

    num_problems: how many this process had, as many as every other.
    """
    if accelerator.num_processes == 1:
        return rollout, scores
    from accelerate.utils import gather_object

    parts = gather_object([(rollout, scores)])
    return join([r for r, _ in parts], num_problems), join([s for _, s in parts], num_problems)


def join(parts: list[Batch], num_problems: int) -> Batch:
    """Return one batch from the processes' parts, in rank order, each with G rows a problem."""
    batch: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if values[0] is None:
            batch[field.name] = None
        elif isinstance(values[0], list):
            rows = [row for value in values for row in value]
            batch[field.name] = [rows[i] for i in _order(len(rows), len(parts), num_problems)]
        else:
            stacked = _stack(values)
            batch[field.name] = stacked[_order(len(stacked), len(parts), num_problems)]
    return type(parts[0])(**batch)


def sum_metrics(metrics: Mapping[str, float], learner: Any) -> dict[str, float]:
    """Return counts summed over the processes; rounds, which all share, and rates are averaged."""
    if not metrics:
        return {}
    sums = learner.reduce(torch.tensor(list(metrics.values()), dtype=torch.float64)).tolist()
    averaged = ("rollout/extra_rounds", "rollout/outcome_before_filter")
    world = {name: learner.world if name in averaged else 1 for name in metrics}
    return {name: value / world[name] for name, value in zip(metrics, sums, strict=True)}


def shares(lengths: Tensor, max_tokens: int, *, rank: int, world: int) -> Iterator[tuple[Tensor, bool]]:
    """Yield (row indices, whether they count) of this process's micro-batches.

    Every process gets equally many: collectives inside a forward need that. What stands in for a missing one
    is the shortest row, which counts nothing.
    """
    if world == 1:
        yield from ((rows, True) for rows in micro_batches(lengths, max_tokens))
        return
    plan = plan_micro_batches(range(len(lengths)), lengths.tolist(), max_tokens, rank=rank, world=world)
    for rows in plan:
        yield (torch.tensor(rows), True) if rows else (lengths.argmin()[None], False)


def estimate_together(
    values: PrefixValues, rollout: Rollout, outcomes: Tensor, accelerator: Any = None
) -> Values:
    """Return what `values.estimate` does, of a rollout that all processes hold; each completes a share."""
    if accelerator is None or accelerator.num_processes == 1:
        return values.estimate(rollout, outcomes)
    place = {text: i for i, text in enumerate(dict.fromkeys(p.text for p in rollout.problems))}
    owner = torch.tensor([place[p.text] for p in rollout.problems]) % accelerator.num_processes
    own = (owner == accelerator.process_index).nonzero().squeeze(1)
    after = torch.zeros(rollout.step_mask.shape)
    start = torch.zeros(len(outcomes))
    tokens = 0
    if len(own):
        after[own], start[own], tokens = values.estimate(rollout.select(own), outcomes[own])
    # What is not of this process is 0 here.
    found = torch.cat([after.flatten(), start]).double()
    found = torch.cat([found, torch.tensor([tokens], dtype=torch.float64)]).to(accelerator.device)
    found = accelerator.reduce(found, "sum").cpu()
    after = found[: after.numel()].reshape(after.shape).float()
    return after, found[after.numel() : -1].float(), int(found[-1])


def _order(num_rows: int, world: int, num_problems: int) -> list[int]:
    """Where the rows stand that are laid out by process: problem p of process r was the (p * world + r)th."""
    index = torch.arange(num_rows).view(world, num_problems, -1)  # (process, problem, sample)
    return index.transpose(0, 1).flatten().tolist()


def _stack(parts: list[Tensor]) -> Tensor:
    """Concatenate rows, padded with zeros to the longest."""
    if parts[0].dim() == 1:
        return torch.cat(parts)
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
