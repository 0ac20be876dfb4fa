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
    run: str | None = None
    """Config file of a `stepwell ppo` run: sizes (by the models' names), adapters, micro-batch and sampling
    are taken from it where they are not given here; its batches and its estimated cost are shown."""
    gpu_tflops: Annotated[float, Field(gt=0)] = 312.0
    """Dense bf16 TFLOP/s of one GPU, from its data sheet, for the estimate of the cost (of run)."""
    gpu_gb_s: Annotated[float, Field(gt=0)] = 2039.0
    """Memory bandwidth of one GPU in GB/s, likewise."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Share of the TFLOP/s that training reaches: a guess until you have measured it, likewise."""
    sampling_gpus: Count | None = None
    """GPUs of separate vLLM servers, likewise; none: those that train."""
