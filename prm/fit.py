"""The supervised loop: everything here that learns from a fixed set of examples (SFT, PRM, RM, DPO) uses it.

It is no trainer class: an objective says how examples become tensors and a summed loss; the loop orders,
batches, divides, clips, logs, validates and checkpoints. Which examples form update u depends on the seed and
u alone, so a run that was killed continues to the same numbers.

    fit(model, encoded, objective, FitConfig(epochs=2), accelerator=Accelerator(), run_dir="runs/x", log=log)
"""

import copy
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data.errors import Stopped, UserError
from data.machine import peak_rss_mb
from data.protocols import MetricLog
from prm.activations import checkpoint_layers
from prm.batching import drop_overlong, plan_micro_batches
from prm.checkpoint import list_checkpoints, load_latest, save_together
from prm.config import FitConfig
from prm.interrupt import StopSignal
from prm.lora import TrainableState
from prm.optimiser import lr_factor, make_optimizer, set_learning_rate
from prm.randomness import rng_state, set_rng_state
from prm.sharding import Trained, cuts_parameters, prepare, require_whole_weights

MAX_SKIPPED_IN_A_ROW = 5


class Objective(Protocol):
    """What to learn from a batch of examples."""

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Return right-padded tensors."""
        ...

    def count(self, batch: Mapping[str, Tensor]) -> float:
        """Return what the loss is divided by: supervised tokens, steps or pairs in the batch."""
        ...

    def loss(self, model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss summed over what `count` counts, and further detached sums to report."""
        ...


def fit(
    model: nn.Module,
    examples: Sequence[Any],
    objective: Objective,
    config: FitConfig,
    *,
    accelerator: Any,
    run_dir: str | Path,
    log: MetricLog,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    before_update: Callable[[int, int], float | None] | None = None,
    saved: TrainableState | None = None,
    resume: bool = False,
) -> None:
    """Train `model` in place on the examples.

    validate: called with the model in eval mode, returns metrics under their full names; it does not disturb
    the training's random stream. before_update: called with the update and their total, may freeze
    parameters and return a learning rate of its own. saved: the adapters, where only they and a head learn
    and are saved. resume: continue from the newest checkpoint in run_dir, if there is one.
    Raises UserError for settings that do not fit, and after five updates in a row without a finite loss.
    """
    examples, _ = drop_overlong(examples, length_limit(model, config), config.overlong)
    check_fit(config, len(examples), accelerator.num_processes)
    if not resume and list_checkpoints(run_dir):
        raise UserError(
            f"{run_dir}: holds the checkpoints of an earlier run; resume it or choose another output_dir"
        )
    if saved or before_update:
        require_whole_weights(accelerator, "adapters and a head that learns first")
    whole = model
    if cuts_parameters(accelerator):  # the caller's model stays whole, and gets the weights in the end
        model = copy.deepcopy(model)
    if config.gradient_checkpointing:
        checkpoint_layers(model)
    model.to(accelerator.device)
    trained = prepare(
        _Loss(model, objective),
        make_optimizer(model, config),
        owner=saved or model,
        accelerator=accelerator,
        max_grad_norm=config.max_grad_norm,
    )
    optimizer = trained.optimizer
    progress = _Progress(order=_order_digest(config, examples))
    parts = {"model": trained.weights, "optimizer": trained.moments, "progress": progress}
    if saved:
        parts["base"] = saved.base
    processes = {"rank": accelerator.process_index, "world": accelerator.num_processes}
    done = (load_latest(run_dir, parts, **processes) or 0) if resume else 0
    if accelerator.is_main_process:
        log.rewind(done)
    if not done:
        torch.manual_seed(config.seed * accelerator.num_processes + accelerator.process_index)
    total = num_updates(config, len(examples))
    lengths = [len(example) for example in examples]
    batches = itertools.islice(iterate_batches(config, len(examples)), done, total)
    model.train()
    with StopSignal(accelerator) as stop:
        for update, rows in enumerate(batches, done + 1):
            started = time.perf_counter()
            rate = before_update(update, total) if before_update else None
            if rate is None:
                rate = config.learning_rate * lr_factor(update, total, config)
            set_learning_rate(optimizer, rate)
            micro_batches = plan_micro_batches(
                rows,
                lengths,
                config.micro_batch_tokens,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
            )
            shortest = objective.collate([examples[min(rows, key=lambda row: lengths[row])]])
            batch = [
                objective.collate([examples[row] for row in micro]) if micro else None
                for micro in micro_batches
            ]
            progress.window.add(run_update(trained, batch, objective, filler=shortest))
            progress.watch_skips(update, run_dir)
            progress.seconds += time.perf_counter() - started
            metrics: dict[str, float] = {}
            if update % config.log_every == 0 or update == total:
                metrics |= progress.report(
                    min(update * config.batch_size / len(examples), config.epochs), optimizer
                )
                metrics["train/total_updates"] = float(total)
            if validate and (
                update == total or (config.validate_every and update % config.validate_every == 0)
            ):
                with trained.readable():
                    metrics |= _validate(model, validate)
            if metrics and accelerator.is_main_process:
                log(update, metrics)
            stopping = stop.requested() and update < total
            if config.save_every and (stopping or update == total or update % config.save_every == 0):
                save_together(run_dir, update, parts, accelerator=accelerator, keep=config.keep_checkpoints)
            if stopping:
                raise Stopped(f"told to stop; update {update} is saved, --resume continues after it")
    if whole is not model:
        values = dict(trained.whole_parameters())
        with torch.no_grad():
            for name, parameter in whole.named_parameters():
                parameter.copy_(values[f"model.{name}"])
    whole.eval()


def run_update(
    trained: Trained,
    batch: Sequence[Mapping[str, Tensor] | None],
    objective: Objective,
    *,
    filler: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Do one optimiser update over micro-batches; return global sums, `count` and the gradient norm.

    Every micro-batch's loss is divided by the global count, so the split does not change the gradient. None
    stands for a micro-batch that other processes have and this one has not: `filler` runs in its place and
    counts nothing. A non-finite loss or gradient norm leaves the weights alone and returns `skipped` 1.
    """
    accelerator = trained.accelerator
    device = accelerator.device
    mine = [micro for micro in batch if micro is not None]
    local = torch.tensor([float(sum(objective.count(micro) for micro in mine))], device=device)
    count = float(accelerator.reduce(local, "sum"))
    assert count > 0, "a batch without supervision reached the loop"
    # Engines average gradients over the processes, the count is already global.
    scale = accelerator.num_processes / count
    sums: dict[str, Tensor] = {}
    with torch.enable_grad():  # an inference engine in the same process may have switched it off
        for index, micro in enumerate(batch):
            weight = 0.0 if micro is None else 1.0
            tensors = {key: value.to(device) for key, value in (micro or filler or {}).items()}
            with trained.accumulate(index == len(batch) - 1):
                loss, stats = trained(tensors)
                trained.backward(loss * (scale * weight))
            for key, value in {"loss": loss, **stats, "tokens": _tokens(tensors)}.items():
                sums[key] = sums.get(key, 0.0) + weight * value.detach().double()
    grad_norm = trained.clip()
    names = sorted(sums)
    totals = accelerator.reduce(torch.stack([sums[name].to(device) for name in names]), "sum").tolist()
    result = dict(zip(names, totals, strict=True))
    finite = math.isfinite(result["loss"]) and math.isfinite(grad_norm)
    grad_norm = trained.step(apply=finite)
    if not (finite and math.isfinite(grad_norm)):
        return {"skipped": 1.0, "tokens": result["tokens"]}
    return {**result, "count": count, "grad_norm": grad_norm, "updates": 1.0}


def _tokens(batch: Mapping[str, Tensor]) -> Tensor:
    return torch.tensor(float(batch["input_ids"].numel() if "input_ids" in batch else 0))


def check_fit(config: FitConfig, num_examples: int, num_processes: int) -> None:
    """Raise UserError for settings that cannot run. Call it before loading a model."""
    if num_examples == 0:
        raise UserError("no examples to train on; check the data file and fit.overlong")
    if config.batch_size % num_processes:
        below, above = (
            config.batch_size // num_processes * num_processes,
            -(-config.batch_size // num_processes),
        )
        raise UserError(
            f"fit.batch_size {config.batch_size} is not divisible by the {num_processes} processes; "
            f"use {f'{below} or ' if below else ''}{above * num_processes}"
        )
    if num_examples * config.epochs < num_processes:
        raise UserError(f"{num_examples} examples are too few for {num_processes} processes; start fewer")
    if any(not 0 <= beta < 1 for beta in config.betas):
        raise UserError(f"fit.betas {config.betas}: each must be in [0, 1)")


def length_limit(model: Any, config: FitConfig) -> int:
    """Return the most tokens one example may have: the model's context or the forward's budget."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(context or config.micro_batch_tokens, config.micro_batch_tokens)


def num_updates(config: FitConfig, num_examples: int) -> int:
    """Return how many optimiser updates the whole run has."""
    total = -(-num_examples * config.epochs // config.batch_size)
    return min(total, config.max_updates) if config.max_updates else total


def iterate_batches(config: FitConfig, num_examples: int) -> Iterator[list[int]]:
    """Yield the example indices of each update. Each epoch is one permutation; batches run on across epochs,
    so only the very last one can be smaller."""
    queue: list[int] = []
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        queue += torch.randperm(num_examples, generator=generator).tolist()
        while len(queue) >= config.batch_size:
            yield queue[: config.batch_size]
            queue = queue[config.batch_size :]
    if queue:
        yield queue


class _Loss(nn.Module):
    """Model and objective as one module: distributed wrappers hook `forward`, whatever it calls inside."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective.loss(self.model, batch)


@dataclass
class _Window:
    """Sums since the last log entry."""

    sums: dict[str, float] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value


@dataclass
class _Progress:
    """What a resumed run must know beside weights and random states."""

    order: dict[str, Any]
    window: _Window = field(default_factory=_Window)
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in self.order.items():
            if state["order"].get(key) != value:
                raise UserError(
                    f"cannot resume: {key} is {value} now and was {state['order'].get(key)}; "
                    "restore it or start anew in another output_dir"
                )
        self.window = _Window(dict(state["window"]["sums"]))
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.seconds = state["seconds"]

    def watch_skips(self, update: int, run_dir: str | Path) -> None:
        """Count skipped updates; give up when nothing finite came for a while."""
        latest = int(self.window.sums.pop("skipped", 0.0))
        self.skipped += latest
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if latest else 0
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"update {update}: loss or gradient was not finite {MAX_SKIPPED_IN_A_ROW} times in a row; "
                f"lower fit.learning_rate or check the data (the last checkpoint in {run_dir} is good)"
            )

    def report(self, epoch: float, optimizer: Any) -> dict[str, float]:
        """Return the metrics of the window and start the next one."""
        sums = self.window.sums
        tokens, updates = sums.pop("tokens"), sums.pop("updates", 0.0)
        count, grad_norm = sums.pop("count", 0.0), sums.pop("grad_norm", 0.0)
        metrics = {
            "train/lr": optimizer.param_groups[0]["lr"],
            "train/epoch": epoch,
            "train/skipped_updates": float(self.skipped),
        }
        if updates:
            metrics |= {f"train/{name}": total / count for name, total in sums.items()}
            metrics["train/grad_norm"] = grad_norm / updates
        metrics["time/train_seconds"] = self.seconds
        metrics["time/train_tokens_per_second"] = tokens / self.seconds
        metrics["memory/peak_rss_mb"] = peak_rss_mb()
        self.window, self.seconds = _Window(), 0.0
        return metrics


def _validate(model: nn.Module, validate: Callable[[nn.Module], Mapping[str, float]]) -> Mapping[str, float]:
    """Validate in eval mode without moving the random generators."""
    state = rng_state()
    model.eval()
    metrics = validate(model)
    model.train()
    set_rng_state(state)
    return metrics


def _order_digest(config: FitConfig, examples: Sequence[Any]) -> dict[str, Any]:
    """What decides which examples form an update: a resumed run must agree with the checkpoint on it."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.id}:{len(example)};".encode())
    return {"fit.seed": config.seed, "fit.batch_size": config.batch_size, "data": digest.hexdigest()[:16]}
