"""Settings of `stepwell plan`."""

from typing import Annotated, Literal

from pydantic import Field

from data.settings import Settings

Count = Annotated[int, Field(ge=1)]


class PlanConfig(Settings):
    """What a PPO run needs on each GPU: `stepwell plan --model-size 7b --gpus 8`."""

    model_size: str = "7b"
    """Size of actor, critic and reference: 1.5b, 7b, 32b or 70b."""
    prm_size: str | None = None
    """Size of the reward model; none: the policy's; off: there is no reward model."""
    gpus: Count = 8
    """GPUs that train; those of separate vLLM servers come on top."""
    gpu_gb: Annotated[float, Field(gt=0)] = 80.0
    """Memory of one GPU, in GB of 1e9 bytes."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of adapters on actor and critic; 0 trains all weights."""
    micro_batch_tokens: Count = 16_384
    """Tokens of one forward, as update.micro_batch_tokens of the run."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward instead of keeping them."""
    vllm: Literal["none", "colocated", "separate"] = "separate"
    """Who samples: transformers, vLLM on the same GPUs, or vLLM on GPUs of its own."""
    vllm_tensor_parallel: Count = 1
    """GPUs that share one colocated engine."""
    kv_tokens: Count = 131_072
    """Tokens of a colocated engine's cache."""
