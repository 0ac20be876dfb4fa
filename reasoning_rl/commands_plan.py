"""`stepwell plan`: what a run needs on each GPU, and which config to take."""

from typing import TYPE_CHECKING, Any

from data.errors import UserError, did_you_mean
from data.settings import read_yaml
from reasoning_rl.live import grid_text
from reasoning_rl.options import parse
from reasoning_rl.plan import MODELS, Plan, Run, choices, choose, config_name, plan
from reasoning_rl.plan_config import PlanConfig
from reasoning_rl.plan_run import Machine, batch_of, cost_of, kv_tokens_of, run_of, size_of

if TYPE_CHECKING:
    from reasoning_rl.config import PPOConfig


def run_plan(args: list[str]) -> None:
    """`stepwell plan`."""
    from rich.console import Console

    config = PlanConfig.from_dict((parsed := parse(args, PlanConfig)).values, parsed.where)
    Console().print(plan_text(config), highlight=False, markup=False, soft_wrap=True)


def plan_text(config: PlanConfig) -> str:
    """Return the table of ways to hold the models, and the advice."""
    ppo = None
    if config.run is not None:
        from reasoning_rl.config import PPOConfig

        ppo = PPOConfig.from_preset(read_yaml(config.run), config.run)
        config = _with_run(config, ppo)
    for name in (config.model_size, *([] if config.prm_size in (None, "off") else [config.prm_size])):
        if name not in MODELS:
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
    if ppo is not None:
        lines += _course(config, ppo)
    lines.append("formulas and their sources: docs/scaling.md")
    return "\n".join(lines)


def _with_run(config: PlanConfig, ppo: "PPOConfig") -> PlanConfig:
    """The settings, with what the run's file says where they say nothing."""
    found: dict[str, Any] = {}
    for name, model in (("model_size", ppo.policy), ("prm_size", ppo.prm)):
        size = "off" if model is None else size_of(model)
        if size is None and name not in config.model_fields_set:
            raise UserError(f"{config.run}: no size in the name {model}; give --{name.replace('_', '-')}")
        found[name] = size
    chosen = run_of(ppo, num_gpus=config.gpus, prm=None)
    for name in ("lora_rank", "micro_batch_tokens", "gradient_checkpointing", "vllm", "vllm_tensor_parallel"):
        found[name] = getattr(chosen, name)
    size = config.model_size if "model_size" in config.model_fields_set else found["model_size"]
    if size in MODELS and (tokens := kv_tokens_of(ppo, MODELS[size])) is not None:
        found["kv_tokens"] = tokens
    given = config.model_dump(include=config.model_fields_set)
    return PlanConfig.from_dict(found | given)


def _course(config: PlanConfig, ppo: "PPOConfig") -> list[str]:
    """How the batches divide, and what the run costs by formula."""
    batch = batch_of(ppo, num_processes=config.gpus)
    prm = MODELS.get(config.prm_size or "")
    machine = Machine(
        config.gpus,
        config.gpu_tflops,
        config.gpu_gb_s,
        config.utilisation,
        sampling_gpus=config.sampling_gpus or config.gpus,
        sampling_apart=config.vllm == "separate",
    )
    cost = cost_of(ppo, MODELS[config.model_size], prm=prm, machine=machine)
    return [
        f"an iteration: {batch.rollouts} rollouts, {batch.problems_a_process} problems a process; "
        f"{batch.updates} updates of {ppo.update.minibatch_size}, {batch.responses_a_process:g} a process "
        f"in at most {batch.micro_batches} forwards",
        f"estimate, not measured, were all responses {ppo.rollout.max_new_tokens} tokens long: "
        f"{ppo.iterations} iterations, {cost.tokens / 1e6:.0f} M tokens, {cost.petaflops:,.0f} PFLOP",
        f"  training {cost.training_hours:.1f} h at {config.utilisation:.0%} of {config.gpu_tflops:g} "
        f"TFLOP/s, sampling at least {cost.sampling_hours:.1f} h at {config.gpu_gb_s:g} GB/s: "
        f"{cost.gpu_hours:.0f} GPU hours",
    ]


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
