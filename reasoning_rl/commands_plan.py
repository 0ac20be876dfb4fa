"""`stepwell plan`: what a run needs on each GPU, and which config to take."""

from data.errors import UserError, did_you_mean
from reasoning_rl.live import grid_text
from reasoning_rl.options import parse
from reasoning_rl.plan import MODELS, Plan, Run, choices, choose, config_name, plan
from reasoning_rl.plan_config import PlanConfig


def run_plan(args: list[str]) -> None:
    """`stepwell plan`."""
    from rich.console import Console

    config = PlanConfig.from_dict((parsed := parse(args, PlanConfig)).values, parsed.where)
    Console().print(plan_text(config), highlight=False, markup=False, soft_wrap=True)


def plan_text(config: PlanConfig) -> str:
    """Return the table of ways to hold the models, and the advice."""
    for name in filter(None, (config.model_size, config.prm_size)):
        if name not in MODELS and name != "off":
            raise UserError(f"model size '{name}' is unknown{did_you_mean(name, MODELS)}")
    model = MODELS[config.model_size]
    run = _run(config)
    gpu = config.gpu_gb * 1e9
    chosen = choose(model, run, gpu)
    rows: list[tuple[str, ...]] = [("GB a GPU", *_HEAD)]
    for way in choices(run):
        found = plan(model, way)
        name = f"{way.engine} offload {way.offload}" if way.offload != "none" else way.engine
        rows.append((f"{name}{' <' if way == chosen else ''}", *_cells(found)))
    lines = [grid_text(rows), ""]
    if chosen is None:
        lines.append(
            f"none fits into {config.gpus} GPUs of {config.gpu_gb:g} GB: take more GPUs, --lora-rank 64, "
            "a smaller --prm-size, --vllm separate or a lower --micro-batch-tokens"
        )
    else:
        lines.append(f"take configs/accelerate/{config_name(chosen)} with --num_processes {config.gpus}")
    lines.append("formulas and their sources: docs/scaling.md")
    return "\n".join(lines)


_HEAD = (
    "actor",
    "critic",
    "reference",
    "prm",
    "activations",
    "logits",
    "vllm",
    "copy",
    "total",
    "host",
    "sent",
)


def _cells(found: Plan) -> list[str]:
    values = (
        found.actor,
        found.critic,
        found.reference,
        found.prm,
        found.activations,
        found.logits,
        found.engine,
        found.copy,
        found.total,
        found.host,
        found.traffic,
    )
    return [f"{value / 1e9:.1f}" for value in values]


def _run(config: PlanConfig) -> Run:
    return Run(
        num_gpus=config.gpus,
        engine="ddp",
        lora_rank=config.lora_rank,
        prm=MODELS[config.prm_size] if config.prm_size not in (None, "off") else None,
        has_prm=config.prm_size != "off",
        micro_batch_tokens=config.micro_batch_tokens,
        gradient_checkpointing=config.gradient_checkpointing,
        vllm=config.vllm,
        vllm_tensor_parallel=config.vllm_tensor_parallel,
        kv_tokens=config.kv_tokens,
    )
