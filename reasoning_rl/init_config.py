"""Settings of `stepwell init`."""

from typing import Annotated, Literal

from pydantic import Field

from data.settings import Settings

Count = Annotated[int, Field(ge=1)]


class InitConfig(Settings):
    """A config to start from: `stepwell init ppo --model-size 7b --gpus 8`."""

    model_size: str = "1.5b"
    """Size of the model that learns or is read: 1.5b, 7b, 32b or 70b."""
    gpus: Count = 1
    """GPUs that train or generate; those of a vLLM server of its own come on top."""
    gpu_gb: Annotated[float, Field(gt=0)] = 80.0
    """Memory of one GPU, in GB of 1e9 bytes."""
    model: str | None = None
    """Folder or hub id of the model; none: runs/sft/model for what follows SFT, else one of that size."""
    vllm: Literal["none", "separate"] = "none"
    """Who samples while a policy trains: transformers, or a vLLM server (`stepwell serve`) on other GPUs."""
    output: str | None = None
    """File to write, which must not exist; none: the task's name with .yaml."""
