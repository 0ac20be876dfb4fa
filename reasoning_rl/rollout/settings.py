"""Settings of an inference engine: one class for training, evaluation and `stepwell serve`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.errors import UserError
from data.settings import Settings

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Backend = Literal["hf", "vllm", "vllm-server"]


class EngineConfig(Settings):
    """Which engine generates, and how much of the machine it may take. docs/rollouts.md compares them."""

    backend: Backend = "hf"
    """hf: transformers, in this process. vllm: a vLLM engine of this run. vllm-server: a vLLM server found at
    `url`, or started and watched by this run."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of vLLM's weights; auto: float32 on a CPU, bfloat16 on a GPU."""
    max_num_seqs: Count = 256
    """Sequences that vLLM decodes together; lower it when memory runs out."""
    max_model_len: Count | None = None
    """Longest prompt plus response, in tokens; none: the model's context. A lower one saves memory."""
    kv_gib: Positive | None = None
    """GiB of vLLM's key-value cache; none: 2 on a CPU, on a GPU what gpu_memory_utilization leaves."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each GPU's memory for vLLM, weights included; 0.5 leaves room for a trainer beside it."""
    enforce_eager: bool | None = None
    """Do without compilation and CUDA graphs: starts faster, runs slower. none: only on a CPU, where
    compiling costs half a minute and gains about a tenth."""
    tensor_parallel: Count = 1
    """GPUs that share one copy of the model."""
    own_process: bool = False
    """vllm: run the engine in a process of its own instead of this one."""
    sleep: bool = True
    """vllm on a GPU: free the engine's memory while the policy is updated. CPU engines cannot sleep."""
    url: str | None = None
    """vllm-server: address of a running server, e.g. http://127.0.0.1:8000; none: one is started here."""
    api_key_env: str = "STEPWELL_API_KEY"
    """Name of the environment variable that holds the server's key, if it wants one."""
    timeout_s: Positive = 300.0
    """Seconds after which a server that starts, restarts, answers or takes weights counts as dead."""
    max_ahead: Annotated[int, Field(ge=0)] = 0
    """vllm-server: batches generated ahead of the one in training. 0 waits; 1 generates the next batch while
    this one trains, one update off-policy (rollout.truncated_is corrects it)."""
    sync: Literal["files", "nccl", "ipc"] = "files"
    """How weights reach the engine: files in sync_dir (any device), or vLLM's own transfers between GPUs
    (nccl: other devices; ipc: the same device, another process)."""
    sync_dir: str | None = None
    """Folder that trainer and engine both see, with room for one copy of the weights; none: memory-backed
    where there is one (/dev/shm), else the system's temporary folder."""
    sync_bucket_mb: Count = 256
    """Weights are gathered and sent in pieces of this many MiB: the bound on the trainer's extra memory."""

    @model_validator(mode="after")
    def _consistent(self) -> "EngineConfig":
        if self.url is not None and self.backend != "vllm-server":
            raise UserError(f"url is an address for backend vllm-server, and backend is {self.backend}")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise UserError(f"url '{self.url}' is no http address; write e.g. http://127.0.0.1:8000")
        if self.max_ahead and self.backend != "vllm-server":
            raise UserError(
                f"max_ahead {self.max_ahead} needs an engine beside the trainer: set backend to vllm-server"
            )
        return self
