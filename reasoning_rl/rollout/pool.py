"""Several engines as one generator: each takes its share of the prompts, all at the same time.

A prompt's random stream comes from its place in the call, so what it gets does not depend on how many engines
there are (up to the rounding of other batches).
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from data.errors import UserError
from data.protocols import TextGenerator
from data.schema import Sample, Sampling
from data.settings import Settings
from reasoning_rl.rollout.make import make_generator
from reasoning_rl.rollout.samples import request_seed
from reasoning_rl.rollout.settings import Backend, Count, EngineConfig


class EngineChoice(Settings):
    """Which engines generate, for verbs that only read a model."""

    backend: Backend = "hf"
    """hf: transformers in this process; vllm: engines of this run; vllm-server: at `urls`, or started."""
    engines: Count = 1
    """Engines side by side, each with the whole model: of several GPUs each takes its own."""
    urls: str | None = None
    """Addresses of running vLLM servers, separated by commas (backend vllm-server)."""
    engine: EngineConfig = EngineConfig()
    """More about each engine; its `backend` and `url` are those above."""

    def configs(self) -> list[EngineConfig]:
        """Return the settings of each engine. Raises UserError where they contradict each other."""
        addresses = [url.strip() for url in (self.urls or "").split(",") if url.strip()]
        if addresses and self.engines not in (1, len(addresses)):
            raise UserError(f"engines {self.engines}, but urls names {len(addresses)}; give only urls")
        count = len(addresses) or self.engines
        if self.backend == "hf" and count > 1:
            raise UserError(f"engines {count} needs vLLM: set backend to vllm or vllm-server")
        given = self.engine.model_dump() | {"backend": self.backend}
        if count > 1 and self.backend == "vllm":
            given["own_process"] = True
        return [EngineConfig(**(given | {"url": url})) for url in addresses or [given["url"]] * count]

    def identity(self) -> dict[str, str]:
        """What of it decides numbers: nothing for hf, as before there was a choice."""
        return {} if self.backend == "hf" else {"backend": self.backend, "dtype": self.engine.dtype}


class PooledGenerator:
    """A TextGenerator over several vLLM engines."""

    def __init__(self, generators: Sequence[Any], *, seed: int = 0) -> None:
        assert generators, "no engine"
        self.generators, self.seed, self.calls = list(generators), seed, 0

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Sample]]:
        """Return `sampling.n` samples a prompt, in order: engine k of K takes prompts k, k + K, ..."""
        if sampling.seed is None:
            sampling = replace(sampling, seed=request_seed(self.seed, self.calls, 0))
            self.calls += 1
        shares = [range(k, len(prompts), len(self.generators)) for k in range(len(self.generators))]

        def draw(generator: Any, share: range) -> list[list[Sample]]:
            return generator.generate([prompts[i] for i in share], sampling, places=share) if share else []

        samples: list[list[Sample]] = [[] for _ in prompts]
        with ThreadPoolExecutor(len(self.generators)) as threads:
            for share, drawn in zip(shares, threads.map(draw, self.generators, shares), strict=True):
                for i, group in zip(share, drawn, strict=True):
                    samples[i] = group
        return samples

    def close(self) -> None:
        for generator in self.generators:
            generator.close()


@contextlib.contextmanager
def open_generator(
    choice: EngineChoice, *, path: str, tokenizer: Any, device: Any, max_batch: int, seed: int = 0
) -> Iterator[TextGenerator]:
    """Start the engines that are chosen, and end them with the block."""
    configs = choice.configs()
    if choice.backend == "hf":
        from prm.model import load_backbone

        model = load_backbone(path).to(device)
        yield make_generator(
            configs[0], path=path, tokenizer=tokenizer, model=model, max_batch=max_batch, seed=seed
        )
        return
    with contextlib.ExitStack() as engines:
        started = []
        for k, config in enumerate(configs):
            with _devices(k, len(configs), config):
                generator: Any = make_generator(config, path=path, tokenizer=tokenizer, seed=seed)
            engines.callback(generator.close)
            started.append(generator)
        yield started[0] if len(started) == 1 else PooledGenerator(started, seed=seed)


@contextlib.contextmanager
def _devices(k: int, count: int, config: EngineConfig) -> Iterator[None]:
    """Show engine k of several the GPUs that are its own; one engine, or a machine without, sees all."""
    import torch

    visible = torch.cuda.device_count()
    if count == 1 or not visible or config.url:
        yield
        return
    needed = config.tensor_parallel
    if count * needed > visible:
        raise UserError(f"engines {count} of {needed} GPUs each, and {visible} are visible; lower engines")
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = before.split(",") if before else [str(i) for i in range(visible)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[k * needed : (k + 1) * needed])
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
