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
