"""Rollouts with a vLLM engine of this run: in this process, or in a process of its own.

    generator = VLLMGenerator("runs/sft/model", tokenizer, EngineConfig(backend="vllm"))
    generator.push(ActorWeights(policy), version=1)

Not a server: nobody else can use the engine, and it ends with this process.
"""

import contextlib
import gc
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from data.errors import UserError
from data.schema import Sample, Sampling
from reasoning_rl.rollout.samples import (
    check_tokenizer,
    encode_prompts,
    make_sample,
    request_seed,
    too_long,
)
from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.rollout.vllm_engine import (
    context_of,
    engine_arguments,
    has_gpu,
    require_vllm,
    sampling_arguments,
    save_tokenizer,
    set_environment,
    start_error,
)
from reasoning_rl.rollout.vllm_weights import WeightSync


class VLLMGenerator:
    """A TextGenerator over a vLLM engine with its own copy of the weights, and their WeightSink.

    Logprobs are those of the distribution sampled from; greedy ones are untempered. A prompt that leaves no
    room in the context gives samples without a token. Every request has its own seed, so a restored generator
    draws what the first one drew.
    """

    def __init__(self, model: str, tokenizer: Any, config: EngineConfig, *, seed: int = 0) -> None:
        check_tokenizer(tokenizer)
        require_vllm("backend vllm")
        self.tokenizer, self.config, self.seed = tokenizer, config, seed
        self.calls = 0
        self.version = 0
        self.is_asleep = False
        context = context_of(config, AutoConfig.from_pretrained(model))
        self.own_process = config.own_process or config.tensor_parallel > 1
        with save_tokenizer(tokenizer) as folder:
            self.llm = start_engine(
                engine_arguments(config, model, tokenizer=folder, max_model_len=context),
                own_process=self.own_process,
            )
        # vLLM is imported by now, with the environment that it was to find.
        from reasoning_rl.rollout.vllm_transfer import LocalSyncClient

        self.context: int = self.llm.llm_engine.model_config.max_model_len
        self.sync = WeightSync(
            LocalSyncClient(self.llm, config.timeout_s), config, in_process=not self.own_process
        )

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed, "calls": self.calls, "version": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the random stream. The weights are pushed by whoever restored them."""
        self.seed, self.calls, self.version = state["seed"], state["calls"], state["version"]

    def generate(
        self, prompts: Sequence[str], sampling: Sampling, *, places: Sequence[int] | None = None
    ) -> list[list[Sample]]:
        """Return `sampling.n` samples a prompt, in order.

        places: a number for each prompt that its random stream is made from; none: 0, 1, 2 ...
        Raises UserError for an empty prompt.
        """
        from vllm import SamplingParams

        if not prompts:
            return []
        encoded = encode_prompts(self.tokenizer, prompts)
        seed, call = (self.seed, self.calls) if sampling.seed is None else (sampling.seed, 0)
        self.calls += sampling.seed is None
        samples: list[list[Sample]] = [too_long(ids, sampling, self.version) for ids in encoded]
        rows = [i for i, ids in enumerate(encoded) if len(ids) < self.context]
        params = [
            SamplingParams(
                detokenize=bool(sampling.stop),
                **sampling_arguments(
                    sampling,
                    eos=self.tokenizer.eos_token_id,
                    room=self.context - len(encoded[i]),
                    seed=request_seed(seed, call, i if places is None else places[i]),
                ),
            )
            for i in rows
        ]
        with _trainer_untouched(), _alive(self.llm):
            outputs = self.llm.generate(
                [{"prompt_token_ids": encoded[i]} for i in rows], params, use_tqdm=False
            )
        for i, output in zip(rows, outputs, strict=True):
            samples[i] = [
                make_sample(
                    self.tokenizer,
                    encoded[i],
                    part.token_ids,
                    [at[t].logprob for at, t in zip(part.logprobs, part.token_ids, strict=True)],
                    sampling,
                    self.version,
                )
                for part in sorted(output.outputs, key=lambda part: part.index)
            ]
            if len(samples[i]) < sampling.n:
                samples[i] *= sampling.n
        return samples

    def push(self, named_tensors: Iterable[tuple[str, Any]], version: int) -> None:
        """Give the engine new weights; samples name `version` from now on.

        Raises UserError when it does not take them: it keeps the old ones, and their version.
        """
        with _trainer_untouched():
            if self.is_asleep:
                self.llm.wake_up()
                self.is_asleep = False
            self.sync.push(named_tensors, version)
        self.version = version

    def sleep(self) -> None:
        """Free the engine's memory until the next push, where settings and device allow it."""
        if self.config.sleep and has_gpu() and not self.is_asleep:
            self.llm.sleep(level=1)  # weights to the CPU's memory: a push that fails leaves them usable
            self.is_asleep = True

    def forget_prefixes(self) -> None:
        """Empty the prefix cache."""
        with _alive(self.llm):
            self.llm.reset_prefix_cache()

    def close(self) -> None:
        """Stop the engine and free its memory. Nothing can be sampled afterwards."""
        self.sync.close()
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = self.sync.client.engine = None
            gc.collect()


@contextlib.contextmanager
def _alive(llm: Any) -> Iterator[None]:
    """Raise UserError where the engine is closed, or dies within the block."""
    if llm is None:
        raise UserError("the generator is closed")
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise UserError(
            f"the vLLM engine died ({error}); what it said stands above. --resume continues the run; where "
            "memory ran out, lower max_num_seqs or kv_gib first"
        ) from error


def start_engine(arguments: dict[str, Any], *, own_process: bool) -> Any:
    """Return a vllm.LLM, started without changing the trainer's threads, random streams or environment.

    Raises UserError when it does not start; out of memory names the options to change.
    """
    set_environment()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if own_process else "0"
    with _trainer_untouched():
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        arguments = dict(arguments)
        if "weight_transfer_config" in arguments:
            arguments["weight_transfer_config"] = WeightTransferConfig(**arguments["weight_transfer_config"])
        try:
            return LLM(**arguments, disable_log_stats=True)
        except (RuntimeError, ValueError, OSError, MemoryError, AssertionError) as error:
            if isinstance(error, UserError):
                raise
            raise start_error(str(error), arguments["model"]) from error


@contextlib.contextmanager
def _trainer_untouched() -> Iterator[None]:
    """Put back what an engine in this process changes: autograd, threads, random states, the environment.

    vLLM's CPU worker seeds every generator, sets torch to one thread and forbids changing that, and leaves
    preloads and a LOCAL_WORLD_SIZE that accelerate would read as its own.
    """
    grad, threads, set_num_threads = (
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.set_num_threads,
    )
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    environment = {name: os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LD_PRELOAD")}
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            set_num_threads(threads)
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
