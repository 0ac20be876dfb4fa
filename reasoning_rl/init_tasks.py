"""What `stepwell init` writes for each task: the settings that matter, chosen by formula (`plan.py`).

A way to hold the models is tried in this order: all weights trained on the GPUs; adapters (rank 64); all
weights with moments, then weights, in host memory; all of that again with the sampling left to a vLLM server.
Within each the largest micro-batch that fits is taken.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from data.errors import UserError, did_you_mean
from reasoning_rl.init_config import InitConfig
from reasoning_rl.plan import MODELS, RESERVE, WEIGHT_BYTES, Model, Run, choices, config_name, fit_plan, plan
from reasoning_rl.presets import merge

LORA_RANK = 64
LORA_RATE = 10
"""Adapters learn at so many times the rate of full training: a rule of thumb, to be tuned."""
MICRO_BATCH_TOKENS = (16_384, 8192, 4096)
WHOLE_ENGINES = ("ddp", "zero1", "zero2")
"""What leaves weights whole on every process, as adapters need."""
ENGINE_SHARE = 0.6
"""Share of a GPU's memory for an engine's weights: the rest is its cache."""
BASES = {
    "maths": {
        "1.5b": "Qwen/Qwen2.5-Math-1.5B",
        "7b": "Qwen/Qwen2.5-Math-7B",
        "32b": "Qwen/Qwen2.5-32B",
        "70b": "meta-llama/Meta-Llama-3-70B",
    },
    "code": {
        "1.5b": "Qwen/Qwen2.5-Coder-1.5B",
        "7b": "Qwen/Qwen2.5-Coder-7B",
        "32b": "Qwen/Qwen2.5-Coder-32B",
        "70b": "meta-llama/Meta-Llama-3-70B",
    },
}


@dataclass(frozen=True)
class Task:
    """One word that `stepwell init` takes."""

    verb: str
    about: str
    values: dict[str, Any]
    """Nested settings, shown with their docstrings; "MODEL" stands for the model."""
    words: str = ""
    """Between the verb and its options in the command."""
    kind: Literal["fit", "ppo", "read"] = "fit"
    """What is in memory: one model that learns, PPO's models, or an engine that only reads one."""
    has_lora: bool = True
    has_prm: bool = False
    base: str | None = None
    """In BASES, for what starts from a published model; None: from SFT's."""


@dataclass(frozen=True)
class Chosen:
    """A config: its values, how to launch it, and why."""

    values: dict[str, Any]
    accelerate: str | None
    """File in configs/accelerate; None: no launcher."""
    reason: str


_FIT = {
    "output_dir": "runs/TASK",
    "fit": {
        "epochs": 2,
        "batch_size": 64,
        "micro_batch_tokens": 0,
        "gradient_checkpointing": True,
        "learning_rate": 1e-5,
        "save_every": 100,
    },
}
_ROLLOUT = {
    "problems_per_iteration": 128,
    "samples_per_problem": 1,
    "max_new_tokens": 512,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_batch": 128,
    "splitter": "newline",
    "template": "plain",
}
_PPO: dict[str, Any] = {
    "preset": "ppo_max",
    "policy": "MODEL",
    "prm": "runs/prm/model",
    "problems": "gsm8k",
    "output_dir": "runs/TASK",
    "iterations": 200,
    "validate_every": 10,
    "num_validation": 200,
    "save_every": 10,
    "rollout": _ROLLOUT,
    "reward": {"form": "delta", "step_weight": 1.0, "outcome_weight": 1.0},
    "kl": {"coef": 0.05},
    "critic": {"init": "prm", "pretrain_iterations": 2, "learning_rate": 1.65e-6},
    "update": {
        "minibatch_size": 32,
        "micro_batch_tokens": 0,
        "gradient_checkpointing": True,
        "learning_rate": 5e-7,
    },
    "hack": {"action": "warn"},
}
_READ = {"model": "MODEL", "limit": None, "max_new_tokens": None, "template": None}


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


TASKS: dict[str, Task] = {
    "sft": Task(
        "sft",
        "supervised fine-tuning on prompt-response pairs",
        {"model": "MODEL", "data": "pairs.jsonl", "max_length": 2048} | _FIT,
        base="maths",
    ),
    "prm": Task(
        "prm",
        "a process reward model from step labels",
        {"model": "MODEL", "data": "steps.jsonl", "supervise": "first_error", "max_length": 2048}
        | {"keep_best": None, "head_updates": 0}
        | _FIT,
        base="maths",
    ),
    "rm": Task(
        "rm",
        "a reward model of whole responses from preferences",
        {"model": "MODEL", "data": "preferences.jsonl", "max_length": 2048}
        | merge(_FIT, {"fit": {"epochs": 1, "learning_rate": 5e-6}}),
        has_lora=False,
    ),
    "dpo": Task(
        "dpo",
        "direct preference optimisation",
        {"model": "MODEL", "data": "preferences.jsonl", "max_length": 2048}
        | {"preference": {"loss": "sigmoid", "beta": 0.1, "sft_coef": 0.0}}
        | merge(_FIT, {"fit": {"epochs": 1, "learning_rate": 1e-6}}),
    ),
    "rft": Task(
        "rft",
        "rejection sampling: a policy learns its own right answers",
        {"policy": "MODEL", "problems": "gsm8k", "rounds": 2, "num_validation": 200}
        | {"rollout": _ROLLOUT | {"problems_per_iteration": 2048, "samples_per_problem": 4}}
        | _FIT,
        has_lora=False,
    ),
    "ppo": Task("ppo", "PPO-max on a PRM's step scores", _PPO, kind="ppo", has_prm=True),
    "grpo": Task(
        "ppo",
        "GRPO on verified answers and step scores, without a critic",
        merge(
            _without(_PPO, "preset", "critic", "kl"),
            {
                "rollout": {"problems_per_iteration": 16, "samples_per_problem": 16},
                "update": {"minibatch_size": 64, "learning_rate": 1e-6},
            },
        )
        | {"algorithm": "grpo", "kl": {"coef": 0.04}},
        kind="ppo",
        has_prm=True,
    ),
    "ppo-code": Task(
        "ppo",
        "PPO on programs, paid by their unit tests in the sandbox",
        merge(
            _without(_PPO, "prm"),
            {
                "problems": "mbpp",
                "rollout": {"samples_per_problem": 4, "template": "code_chat", "splitter": "code_block"},
                "reward": {"form": "none", "partial_credit": "tests", "test_timeout_s": 10.0},
                "critic": {"init": "policy"},
                "update": {"minibatch_size": 128},
                "num_validation": 50,
            },
        ),
        kind="ppo",
        base="code",
    ),
    "label": Task(
        "label",
        "step labels from rollouts",
        _READ
        | {"method": "monte_carlo", "k": 8, "samples_per_problem": 4, "temperature": 1.0}
        | {"output_dir": "runs/label"},
        words=" gsm8k",
        kind="read",
    ),
    "eval": Task(
        "eval",
        "accuracy on a benchmark",
        _READ | {"num_samples": 1, "temperature": None, "output_dir": "outputs/eval"},
        words=" gsm8k",
        kind="read",
    ),
}


def fill(name: str, config: InitConfig) -> Chosen:
    """Return the config of a task. Raises UserError where nothing fits."""
    if name not in TASKS:
        raise UserError(f"task '{name}' is unknown{did_you_mean(name, TASKS)}")
    if config.model_size not in MODELS:
        raise UserError(
            f"model size '{config.model_size}' is unknown{did_you_mean(config.model_size, MODELS)}"
        )
    task, model = TASKS[name], MODELS[config.model_size]
    base = BASES[task.base][config.model_size] if task.base else "runs/sft/model"
    values = _put(task.values, {"MODEL": config.model or base, "runs/TASK": f"runs/{name.replace('-', '_')}"})
    if task.kind == "read":
        return _reading(values, model, config)
    run = _hold(task, model, config)
    section = "update" if task.kind == "ppo" else "fit"
    values = merge(values, {section: {"micro_batch_tokens": run.micro_batch_tokens}})
    rate = values[section]["learning_rate"]
    if run.lora_rank:
        lora = {"rank": run.lora_rank}
        values = merge(values, {"lora": lora, section: {"learning_rate": _times(rate)}})
        if "critic" in values:
            critic = values["critic"]
            values["critic"] = critic | {"learning_rate": _times(critic["learning_rate"]), "lora": lora}
    values = _share_out(values, task, config, run)
    learns = f"adapters of rank {run.lora_rank}" if run.lora_rank else "all weights"
    engine = "one process" if run.num_gpus == 1 and run.engine == "ddp" else run.engine
    reason = (
        f"{learns}, {engine}"
        + ("" if run.offload == "none" else f" with offload ({run.offload})")
        + f": about {_needs(task, model, run) / 1e9:.0f} GB of {config.gpu_gb:g} on each GPU"
    )
    return Chosen(values, config_name(run), reason)


def _hold(task: Task, model: Model, config: InitConfig) -> Run:
    """The first way in the order above that fits. A PRM is no larger than 7b: every GPU holds all of it."""
    start = Run(
        num_gpus=config.gpus,
        engine="ddp",
        has_prm=task.has_prm,
        prm=min(model, MODELS["7b"], key=lambda one: one.num_parameters),
        vllm=config.vllm,
    )
    for sampled in (start, replace(start, vllm="separate")):
        ways = choices(sampled)
        plain = [way for way in ways if way.offload == "none"]
        adapted = [replace(way, lora_rank=LORA_RANK) for way in plain if way.engine in WHOLE_ENGINES]
        offloaded = [way for way in ways if way.offload != "none"]
        for way in (*plain, *(adapted if task.has_lora else []), *offloaded):
            for tokens in MICRO_BATCH_TOKENS:
                run = replace(way, micro_batch_tokens=tokens)
                if _needs(task, model, run) <= RESERVE * config.gpu_gb * 1e9:
                    return run
    raise UserError(
        f"{config.model_size} does not fit into {config.gpus} x {config.gpu_gb:g} GB, nor with adapters or "
        "offload: more --gpus, a larger --gpu-gb, a smaller --model-size (see `stepwell plan`)"
    )


def _needs(task: Task, model: Model, run: Run) -> float:
    """Bytes on a GPU."""
    found = plan(model, run) if task.kind == "ppo" else fit_plan(model, run)
    return found.total - (0.0 if "critic" in task.values else found.critic)


def _share_out(values: dict[str, Any], task: Task, config: InitConfig, run: Run) -> dict[str, Any]:
    """Batches that divide among the processes, and where rollouts come from."""
    gpus = config.gpus
    if task.kind == "fit" and "rollout" not in values:
        return merge(values, {"fit": {"batch_size": _multiple(values["fit"]["batch_size"], gpus)}})
    rollout = values["rollout"]
    if run.vllm == "separate":
        engine = {"backend": "vllm-server", "url": "http://127.0.0.1:8000"}
        rollout = rollout | {"engine": engine}
    if task.kind == "fit":
        batch = _multiple(values["fit"]["batch_size"], gpus)
        return merge(values, {"rollout": rollout, "fit": {"batch_size": batch}})
    minibatches = (
        rollout["problems_per_iteration"]
        * rollout["samples_per_problem"]
        // values["update"]["minibatch_size"]
    )
    problems = _multiple(rollout["problems_per_iteration"], gpus * minibatches)
    mini = problems * rollout["samples_per_problem"] // minibatches
    rollout = rollout | {"problems_per_iteration": problems}
    if values.get("prm") and MODELS[config.model_size].num_parameters > MODELS["7b"].num_parameters:
        values = merge(values, {"critic": {"init": "policy"}} if "critic" in values else {})
    return merge(values, {"rollout": rollout, "update": {"minibatch_size": mini}})


def _reading(values: dict[str, Any], model: Model, config: InitConfig) -> Chosen:
    """An engine a GPU, or several GPUs an engine where the weights need them."""
    weights = WEIGHT_BYTES * model.num_parameters
    split = 1
    while weights / split > ENGINE_SHARE * config.gpu_gb * 1e9:
        split *= 2
    if split > config.gpus:
        raise UserError(
            f"{config.model_size} takes {split} GPUs of {config.gpu_gb:g} GB to read, and --gpus is "
            f"{config.gpus}"
        )
    engine = {"tensor_parallel": split, "gpu_memory_utilization": 0.9}
    engines = config.gpus // split
    values = values | {"backend": "vllm", "engines": engines, "engine": engine}
    each = "1 GPU" if split == 1 else f"{split} GPUs"
    return Chosen(
        values, None, f"vLLM engines: {engines}, each on {each}; weights {weights / 1e9:.0f} GB in bf16"
    )


def _put(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The values with words put in the place of those that stand for them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found[key] = _put(value, names)
        else:
            found[key] = names.get(value, value) if isinstance(value, str) else value
    return found


def _multiple(least: int, of: int) -> int:
    return -(-least // of) * of


def _times(rate: float) -> float:
    return float(f"{LORA_RATE * rate:.3g}")
