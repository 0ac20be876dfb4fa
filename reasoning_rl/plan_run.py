"""A PPO run's settings as a plan: what they need on a GPU, how its batches divide, what they cost by formula.

    batch = batch_of(config, num_processes=6)
    cost = cost_of(config, MODELS["7b"], prm=MODELS["7b"], machine=Machine(num_gpus=6))

Estimates, not measurements: FLOPs follow arXiv:2001.08361 (2 a parameter and token forward, 4 backward),
sampling reads the weights once a decoding step. Lengths are the settings' upper bounds.
"""

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from data.errors import UserError
from reasoning_rl.plan import MODELS, WEIGHT_BYTES, Model, Run

if TYPE_CHECKING:
    from reasoning_rl.config import PPOConfig  # takes seconds, which a plan without a run need not wait

PROMPT_TOKENS = 200
"""Taken for a prompt: word problems and competition mathematics with a chat template."""
SECONDS_AN_HOUR = 3600


def size_of(name: str) -> str | None:
    """Return the size in a model's name, a key of MODELS: "1.5b" of Qwen/Qwen2.5-Math-1.5B; None without."""
    found = [
        size.lower() for size in re.findall(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?[bB])(?![A-Za-z0-9])", name)
    ]
    return next((size for size in found if size in MODELS), None)


_SAMPLING: dict[str, Literal["none", "colocated", "separate"]] = {
    "hf": "none",
    "vllm": "colocated",
    "vllm-server": "separate",
}


def run_of(config: "PPOConfig", *, num_gpus: int, prm: Model | None) -> Run:
    """Return how the run's models are held on this many GPUs under DDP.

    Raises UserError where only one of policy and critic has adapters: the formulas are for both.
    """
    engine, rank = config.rollout.engine, config.lora.rank
    if config.algorithm == "ppo" and config.critic.lora.rank != rank:
        raise UserError(f"the plan is for adapters on both: set lora.rank {rank} and critic.lora.rank alike")
    return Run(
        num_gpus=num_gpus,
        engine="ddp",
        lora_rank=rank,
        prm=prm,
        has_prm=config.prm is not None,
        micro_batch_tokens=config.update.micro_batch_tokens,
        gradient_checkpointing=config.update.gradient_checkpointing,
        vllm=_SAMPLING[engine.backend],
        vllm_tensor_parallel=engine.tensor_parallel,
    )


def kv_tokens_of(config: "PPOConfig", model: Model) -> int | None:
    """Return the tokens that fit into the engine's cache, None where the settings do not bound it."""
    gib = config.rollout.engine.kv_gib
    return None if gib is None else int(gib * 2**30 / model.kv_bytes_a_token)


@dataclass(frozen=True)
class Batch:
    """How one iteration's rollouts divide; rollouts = updates x responses of a minibatch."""

    rollouts: int
    problems_a_process: int
    updates: int
    responses_a_process: float
    """Of one minibatch."""
    micro_batches: int
    """Forwards of one process for one minibatch, at most: gradients are accumulated over them."""


def batch_of(config: "PPOConfig", *, num_processes: int) -> Batch:
    """Return the arithmetic of a batch over processes.

    Raises UserError when the problems do not divide, a process would have nothing, or a response of full
    length does not fit into a forward.
    """
    rollout, update = config.rollout, config.update
    if rollout.problems_per_iteration % num_processes:
        raise UserError(
            f"rollout.problems_per_iteration {rollout.problems_per_iteration} must be divisible by "
            f"{num_processes}"
        )
    if update.minibatch_size < num_processes:
        raise UserError(f"update.minibatch_size {update.minibatch_size}: less than one for each process")
    longest = PROMPT_TOKENS + rollout.max_new_tokens
    if longest > update.micro_batch_tokens:
        raise UserError(
            f"update.micro_batch_tokens {update.micro_batch_tokens} hold no response of {longest} tokens; "
            "raise it"
        )
    rows = math.ceil(update.minibatch_size / num_processes)
    return Batch(
        rollouts=config.rollouts_per_iteration,
        problems_a_process=rollout.problems_per_iteration // num_processes,
        updates=config.rollouts_per_iteration // update.minibatch_size * update.epochs,
        responses_a_process=update.minibatch_size / num_processes,
        micro_batches=math.ceil(rows / (update.micro_batch_tokens // longest)),
    )


@dataclass(frozen=True)
class Machine:
    """What the cost is reckoned with, from a data sheet."""

    num_gpus: int
    tflops: float = 312.0
    """Dense bf16 TFLOP/s of a GPU (A100)."""
    gb_a_second: float = 2039.0
    """Memory bandwidth of a GPU (A100, 80 GB)."""
    utilisation: float = 0.35
    """Share of the FLOP/s that training reaches; a guess to be replaced by your own measurement."""
    sampling_gpus: int = 1
    """GPUs that sample."""
    sampling_apart: bool = False
    """They are not the ones that train."""

    @property
    def gpus_held(self) -> int:
        """GPUs that the run keeps busy or waiting, all together."""
        return self.num_gpus + (self.sampling_gpus if self.sampling_apart else 0)


@dataclass(frozen=True)
class Cost:
    """Of a whole run, when every response is as long as it may be."""

    tokens: float
    """Prompt and response tokens of all iterations."""
    petaflops: float
    """1e15 FLOPs of scoring, experience and updates."""
    training_hours: float
    sampling_hours: float
    """A floor: memory traffic of the decoding alone."""

    gpu_hours: float
    """Both, one after the other, on all GPUs that are held."""


def cost_of(config: "PPOConfig", model: Model, *, prm: Model | None, machine: Machine) -> Cost:
    """Return the estimate. A token costs 2 P FLOPs in each forward (old logprobs, reference, PRM; values of a
    critic) and, in each epoch, 6 P in the update of each trained model: 4 P where adapters learn, and 2 P
    more where layers are computed again."""
    rollout, has_critic = config.rollout, config.algorithm == "ppo"
    rollouts = config.rollouts_per_iteration * config.iterations
    tokens = rollouts * (PROMPT_TOKENS + rollout.max_new_tokens)
    forwards = 2 + has_critic
    update = (4 if config.lora.rank else 6) + 2 * config.update.gradient_checkpointing
    a_token = model.num_parameters * (2 * forwards + update * config.update.epochs * (1 + has_critic))
    a_token += 2 * prm.num_parameters if prm is not None else 0.0
    flops = tokens * a_token
    running = rollout.engine.max_num_seqs if rollout.engine.backend != "hf" else rollout.max_batch
    waves = math.ceil(config.rollouts_per_iteration / running)
    context = PROMPT_TOKENS + rollout.max_new_tokens / 2
    read = WEIGHT_BYTES * model.num_parameters
    read += min(running, config.rollouts_per_iteration) * context * model.kv_bytes_a_token
    steps = config.iterations * waves * rollout.max_new_tokens
    seconds = steps * read / (machine.gb_a_second * 1e9 * machine.sampling_gpus)
    reached = machine.num_gpus * machine.tflops * 1e12 * machine.utilisation
    training, sampling = flops / reached / SECONDS_AN_HOUR, seconds / SECONDS_AN_HOUR
    return Cost(tokens, flops / 1e15, training, sampling, (training + sampling) * machine.gpus_held)
