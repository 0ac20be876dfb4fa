"""From settings to a generator."""

from typing import Any

from data.protocols import TextGenerator
from reasoning_rl.rollout.settings import EngineConfig


def make_generator(
    config: EngineConfig,
    *,
    path: str,
    tokenizer: Any,
    model: Any = None,
    max_batch: int = 256,
    seed: int = 0,
    trains: bool = False,
) -> TextGenerator:
    """Return the generator that the settings ask for, with the weights in `path`.

    model: the transformers model that backend hf holds by reference; without one it is loaded from `path`.
    max_batch: sequences that backend hf decodes together. trains: weights will be pushed.
    Raises UserError when an engine does not start.
    """
    if config.backend == "vllm":
        from reasoning_rl.rollout.vllm_local import VLLMGenerator

        return VLLMGenerator(path, tokenizer, config, seed=seed)
    if config.backend == "vllm-server":
        from reasoning_rl.rollout.vllm_server import VLLMServerGenerator

        return VLLMServerGenerator(path, tokenizer, config, seed=seed, trains=trains)
    from prm.model import load_backbone
    from reasoning_rl.rollout.hf import HFGenerator

    return HFGenerator(model or load_backbone(path), tokenizer, max_batch=max_batch, seed=seed)


class PolicyEngine:
    """One engine for policies of one shape in turn, started when the first is to be sampled.

    Not for a loop that updates one policy: that is RolloutPipeline's part.
    """

    def __init__(self, config: EngineConfig, *, path: str, device: Any = "cpu", seed: int = 0) -> None:
        self.config, self.path, self.device, self.seed = config, path, device, seed
        self.generator: Any = None
        self.version = 0

    def __call__(self, policy: Any, tokenizer: Any) -> TextGenerator:
        """Return the engine, with the weights of `policy`."""
        from reasoning_rl.rollout.vllm_weights import ActorWeights

        if self.generator is None:
            self.generator = make_generator(
                self.config, path=self.path, tokenizer=tokenizer, seed=self.seed, trains=True
            )
        if self.config.sync != "files":  # those transfers start on a GPU
            policy = policy.to(self.device)
        self.version += 1
        self.generator.push(ActorWeights(policy, self.config.sync_bucket_mb * 2**20), self.version)
        return self.generator

    def close(self) -> None:
        """End the engine, if there is one."""
        if self.generator is not None:
            self.generator.close()
