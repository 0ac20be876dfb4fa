"""Memory and communication of a PPO run per GPU, by formula. Pure: numbers in, numbers out.

Weights, gradients and AdamW's moments follow ZeRO's accounting (arXiv:1910.02054, section 3): 2 bytes a
parameter for the bf16 weights, 2 for the gradients, 12 for the fp32 master copy and both moments. Activations
follow arXiv:2205.05198 (equations 1 and 2), with fused attention, which stores no T x T matrix. GB are
1e9 bytes.

    plan(MODELS["7b"], Run(num_gpus=8, engine="zero3")).total
"""

from dataclasses import dataclass, replace
from typing import Literal

Engine = Literal["ddp", "zero1", "zero2", "zero3"]

WEIGHT_BYTES = 2
GRADIENT_BYTES = 2
OPTIMISER_BYTES = 12
ACTIVATION_BYTES_A_LAYER = 34
"""Per token and unit of width, bf16: equation 1 of arXiv:2205.05198 without its attention-matrix term."""
CHECKPOINTED_BYTES_A_LAYER = 2
"""Of a layer that is computed again in the backward: its input alone (section 5 there)."""
LOGIT_CHUNK = 512
"""Positions whose logits exist at a time: CHUNK of prm/next_token.py, which imports torch."""
COPY_BYTES = 4
"""fp32: what is exported is what was trained."""
RESERVE = 0.9
"""Share of a GPU that a plan may fill: the rest is CUDA's context, buckets and fragmentation."""


@dataclass(frozen=True)
class Model:
    """Sizes of a decoder-only transformer."""

    num_parameters: float
    num_layers: int
    width: int
    num_kv_heads: int
    head_width: int
    vocabulary: int

    @property
    def kv_bytes_a_token(self) -> int:
        """bf16 keys and values of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_width * WEIGHT_BYTES


MODELS = {
    # Qwen2.5 1.5B, 7B, 32B and Llama 3 70B, from their config.json; parameters with embeddings.
    "1.5b": Model(1.54e9, 28, 1536, 2, 128, 151_936),
    "7b": Model(7.62e9, 28, 3584, 4, 128, 152_064),
    "32b": Model(32.8e9, 64, 5120, 8, 128, 152_064),
    "70b": Model(70.6e9, 80, 8192, 8, 128, 128_256),
}


@dataclass(frozen=True)
class Run:
    """How the models are held."""

    num_gpus: int
    engine: Engine
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lies in host memory: the optimisers' share, or the weights' too (stage 3 only)."""
    lora_rank: int = 0
    """Rank of adapters on actor and critic; 0 trains all weights. The reference is then the actor's trunk."""
    prm: Model | None = None
    """The reward model; None: of the policy's size."""
    has_prm: bool = True
    micro_batch_tokens: int = 16_384
    gradient_checkpointing: bool = True
    vllm: Literal["none", "colocated", "separate"] = "separate"
    vllm_tensor_parallel: int = 1
    kv_tokens: int = 131_072
    """Tokens of the engine's cache on one GPU, where it is colocated."""


@dataclass(frozen=True)
class Plan:
    """Bytes on one GPU, and what one optimiser update sends."""

    actor: float
    critic: float
    reference: float
    prm: float
    activations: float
    logits: float
    engine: float
    copy: float
    """The whole copy of the policy that transformers samples from where ZeRO-3 cuts up the trained one."""
    host: float
    """In host memory, for one GPU's share."""
    traffic: float
    """Sent by one GPU in one update of actor and critic with a single micro-batch."""

    @property
    def total(self) -> float:
        """Bytes on one GPU."""
        parts = (self.actor, self.critic, self.reference, self.prm, self.engine, self.copy)
        return sum(parts) + self.activations + self.logits


def trained_bytes(num_parameters: float, run: Run, *, trained: float | None = None) -> tuple[float, float]:
    """Return (bytes on a GPU, bytes in host memory) of one model that learns, with N GPUs.

    ZeRO, table 1: DDP 16 a parameter; stage 1 4 + 12/N; stage 2 2 + 14/N; stage 3 16/N. trained: how many
    parameters learn (all by default; adapters only with LoRA).
    """
    learn, n = num_parameters if trained is None else trained, run.num_gpus
    stage = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}[run.engine]
    weights = WEIGHT_BYTES * num_parameters / (n if stage == 3 else 1)
    gradients = GRADIENT_BYTES * learn / (n if stage >= 2 else 1)
    moments = OPTIMISER_BYTES * learn / (n if stage >= 1 else 1)
    if run.offload == "none":
        return weights + gradients + moments, 0.0
    if run.offload == "optimizer":
        return weights + gradients, moments
    assert stage == 3, "weights can be offloaded in stage 3 only"
    return gradients, weights + moments


def adapter_parameters(model: Model, rank: int) -> float:
    """Return the parameters of adapters on every linear layer, taken as square: 7 layers of 2 x width x rank.

    An upper bound within a factor of 2 either way for grouped attention and wide feed-forwards.
    """
    return 7 * 2 * model.width * rank * model.num_layers


def activation_bytes(model: Model, num_tokens: int, *, checkpointing: bool) -> float:
    """Return what a forward of `num_tokens` tokens keeps for its backward."""
    whole = ACTIVATION_BYTES_A_LAYER * num_tokens * model.width
    if not checkpointing:
        return whole * model.num_layers
    return (
        CHECKPOINTED_BYTES_A_LAYER * num_tokens * model.width * model.num_layers + whole
    )  # and one layer anew


def logit_bytes(model: Model, num_tokens: int) -> float:
    """Return fp32 logits of one forward, their softmax and the gradient: 3 x 4 bytes an entry."""
    return 3 * 4.0 * num_tokens * model.vocabulary


def traffic_bytes(num_parameters: float, run: Run, *, trained: float | None = None) -> float:
    """Return what one GPU sends for one update of one model: a ring moves (N-1)/N of the data per pass.

    DDP and stages 1, 2: gradients are reduced and gradients or weights gathered, 2 passes (4 bytes a
    parameter); stage 3 gathers the weights in forward and backward as well, 3 passes (section 7 there).
    """
    learn, n = num_parameters if trained is None else trained, run.num_gpus
    ring = (n - 1) / n
    if run.engine == "zero3":
        return ring * (2 * WEIGHT_BYTES * num_parameters + GRADIENT_BYTES * learn)
    return ring * (GRADIENT_BYTES + WEIGHT_BYTES) * learn


def plan(model: Model, run: Run) -> Plan:
    """Return what one GPU holds at the peak: the update, with reference and PRM in place."""
    learn = adapter_parameters(model, run.lora_rank) if run.lora_rank else None
    on_gpu, in_host = trained_bytes(model.num_parameters, run, trained=learn)
    cut = run.num_gpus if run.engine == "zero3" else 1
    frozen = WEIGHT_BYTES * model.num_parameters / cut
    prm = (run.prm or model).num_parameters * WEIGHT_BYTES if run.has_prm else 0.0
    engine = 0.0
    if run.vllm == "colocated":
        split = run.vllm_tensor_parallel
        weights = WEIGHT_BYTES * model.num_parameters
        engine = (weights + model.kv_bytes_a_token * run.kv_tokens) / split
    whole = COPY_BYTES * model.num_parameters if run.engine == "zero3" else 0.0
    samples_here = run.vllm == "none"
    return Plan(
        actor=on_gpu,
        critic=on_gpu,
        reference=0.0 if run.lora_rank else frozen,
        prm=prm,
        activations=activation_bytes(model, run.micro_batch_tokens, checkpointing=run.gradient_checkpointing),
        logits=logit_bytes(model, min(run.micro_batch_tokens, LOGIT_CHUNK)),
        engine=engine,
        copy=whole if samples_here else 0.0,
        host=2 * in_host + (0.0 if samples_here else whole),
        traffic=2 * traffic_bytes(model.num_parameters, run, trained=learn),
    )


def fit_plan(model: Model, run: Run) -> Plan:
    """Return what one GPU holds where a single model learns from a fixed set (SFT, PRM, cached DPO)."""
    whole = plan(model, run)
    return replace(
        whole,
        critic=0.0,
        reference=0.0,
        prm=0.0,
        engine=0.0,
        copy=0.0,
        host=trained_bytes(model.num_parameters, run)[1],
        traffic=whole.traffic / 2,
    )


def choices(run: Run) -> list[Run]:
    """Return the ways to hold the models, the fastest first."""
    engines: list[tuple[Engine, Literal["none", "optimizer", "all"]]] = [
        ("ddp", "none"),
        ("zero1", "none"),
        ("zero2", "none"),
        ("zero3", "none"),
        ("zero2", "optimizer"),
        ("zero3", "optimizer"),
        ("zero3", "all"),
    ]
    if run.num_gpus == 1:
        engines = [("ddp", "none"), ("zero2", "optimizer"), ("zero3", "all")]
    return [replace(run, engine=engine, offload=offload) for engine, offload in engines]


def choose(model: Model, run: Run, gpu_bytes: float) -> Run | None:
    """Return the fastest way that fits into the GPUs, None when none does."""
    return next((way for way in choices(run) if plan(model, way).total <= RESERVE * gpu_bytes), None)


def config_name(run: Run) -> str:
    """Return the accelerate config for a way to hold the models: a file in configs/accelerate."""
    if run.num_gpus == 1 and run.engine == "ddp":
        return "one.yaml"
    suffix = "" if run.offload == "none" else "_offload"
    return f"{run.engine}{suffix}.yaml"
