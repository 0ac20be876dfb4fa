"""Stepwell in Python: the verbs of the command line as functions that also take what is in memory.

    from reasoning_rl.api import score_solution, train_ppo

    score_solution("Qwen/Qwen2.5-Math-PRM-7B", problem, response)          # [0.98, 0.12]
    train_ppo("Qwen/Qwen2.5-Math-1.5B-Instruct", "gsm8k", reward=my_reward, output_dir="runs/own")

A model is a folder, a hub id or a transformers model with its tokenizer; data is a file, a folder (also of
`save_to_disk`), a hub id, a list of mappings or a `datasets.Dataset`. A training function takes the
settings of its command as keywords, sections as mappings (`rollout={"max_new_tokens": 512}`), and returns
the folder of the trained model; what was in memory is kept in `inputs/` of its output folder, so that
`config.yaml` there says all. examples/ has each function in a few lines.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UserError
from data.plugins import name_of
from data.protocols import Grader, StepScorer
from data.schema import Problem, Verdict
from data.sources import Source, read_rows, shown

if TYPE_CHECKING:
    from eval.result import EvalResult
    from prm.formats import Loaded


def load_prm(
    prm: Any,
    *,
    tokenizer: Any = None,
    format: Any = None,  # noqa: A002 - the word users know
    device: Any = None,
) -> StepScorer:
    """Return the scorer of a process reward model: `.score(problems, solutions)`, a number for every step.

    prm: a folder or hub id of any known format, a model in memory (with its tokenizer), a function
    (problem, steps) -> scores. format: as for `stepwell score --format`; none: recognised from the model.
    """
    return _loaded(prm, tokenizer, format, device).scorer


def score_solution(
    prm: Any,
    problem: str,
    solution: str | Sequence[str],
    *,
    tokenizer: Any = None,
    format: Any = None,  # noqa: A002
    device: Any = None,
) -> list[float | None]:
    """Return the score of every step of one solution, None where it did not fit; arguments as for `load_prm`.

    solution: the steps, or a response, which is then cut where the model's format cuts. For many solutions
    load the model once, with `load_prm`.
    """
    from data.steps import step_texts

    loaded = _loaded(prm, tokenizer, format, device)
    if isinstance(solution, str):
        solution = step_texts(solution, loaded.format.splitter)
    return loaded.scorer.score([problem], [solution])[0]


def grade_answer(
    response: str, answer: Any, *, benchmark: str = "math", grader: Callable[..., Any] | str | None = None
) -> Verdict:
    """Return whether the answer that a response ends with equals the gold one: correct, wrong or unjudged.

    benchmark: whose conventions find and compare answers. grader: a function of your own instead.
    """
    return grade_answers([response], [answer], benchmark=benchmark, grader=grader)[0]


def grade_answers(
    responses: Sequence[str],
    answers: Sequence[Any],
    *,
    benchmark: str = "math",
    grader: Callable[..., Any] | str | None = None,
) -> list[Verdict]:
    """Return a verdict for each response, as `grade_answer` does. Programs are for `run_benchmark`."""
    from data.grading import grade_all
    from eval.benchmarks import get_benchmark, make_grader

    if grader is None and get_benchmark(benchmark).judges == "program":
        raise UserError(f"{benchmark}: programs are judged by tests, not by an answer; take run_benchmark")
    judge: Grader = make_grader(benchmark, _named(grader))
    problems = [
        Problem(id=str(k), text="", answer=str(answer).rpartition("####")[2].strip(), source=benchmark)
        for k, answer in enumerate(answers)
    ]
    return grade_all(judge, problems, list(responses))


def run_benchmark(
    benchmark: str | Source,
    *,
    model: Any = None,
    samples: Source | None = None,
    tokenizer: Any = None,
    grader: Callable[..., Any] | str | None = None,
    output_dir: str | Path = "outputs/eval",
    **settings: Any,
) -> "EvalResult":
    """Return a benchmark's numbers: `.accuracy.value`, `.rows()`; every sample with its verdict is in
    output_dir, and the same call continues there.

    benchmark: a name of `stepwell eval --list`, "module:name", or problems of your own, rows in memory.
    model: what answers; or samples: existing responses, rows {id or problem, response}. settings: those of
    `stepwell eval`.
    """
    from transformers import PreTrainedModel

    from reasoning_rl.compose import evaluate_benchmark
    from reasoning_rl.eval_config import EvalConfig
    from reasoning_rl.runtime import make_accelerator

    given, inputs, model = None, Path(output_dir) / "inputs", _plain(model)
    if isinstance(model, PreTrainedModel):
        given = (model, _tokenizer_of(model, tokenizer))
    if not isinstance(benchmark, str):
        settings["source"], benchmark = _as_file(inputs / "problems.jsonl", benchmark), "rows"
    config = EvalConfig.from_dict(
        {
            **settings,
            "model": None if model is None else _path_of(model),
            "samples": None if samples is None else _as_file(inputs / "samples.jsonl", samples),
            "grader": _named(grader),
            "output_dir": str(output_dir),
        }
    )
    device = make_accelerator().device if given is None else given[0].device
    return evaluate_benchmark(benchmark, config, device=device, given=given)


def train_prm(data: Source, *, model: Any, output_dir: str | Path, **settings: Any) -> Path:
    """Train a process reward model on step labels (`stepwell prm`): TRL's prompt, completions, labels, or any
    form of docs/step_data.md."""
    from eval.metrics import solution_metrics
    from prm.train import PRMConfig
    from prm.train import train_prm as train

    return _train(
        PRMConfig, train, {"data": data, "model": model}, output_dir, settings, step_metrics=solution_metrics
    )


def train_sft(data: Source, *, model: Any, output_dir: str | Path, **settings: Any) -> Path:
    """Fine-tune a language model on prompts and responses (`stepwell sft`)."""
    from reasoning_rl.sft import SFTConfig
    from reasoning_rl.sft import train_sft as train

    return _train(SFTConfig, train, {"data": data, "model": model}, output_dir, settings)


def train_dpo(data: Source, *, model: Any, output_dir: str | Path, **settings: Any) -> Path:
    """Train a policy on preferences (`stepwell dpo`): texts or messages, the prompt given or implicit."""
    from reasoning_rl.dpo import DPOConfig
    from reasoning_rl.dpo import train_dpo as train

    return _train(DPOConfig, train, {"data": data, "model": model}, output_dir, settings)


def train_reward(data: Source, *, model: Any, output_dir: str | Path, **settings: Any) -> Path:
    """Train a reward model of whole responses on preferences (`stepwell rm`)."""
    from reasoning_rl.compose_preference import pair_metrics
    from reasoning_rl.reward_model import RMConfig
    from reasoning_rl.reward_model import train_reward as train

    return _train(
        RMConfig, train, {"data": data, "model": model}, output_dir, settings, pair_metrics=pair_metrics
    )


def train_ppo(
    policy: Any,
    problems: str | Source = "arithmetic",
    *,
    output_dir: str | Path,
    reward: Callable[..., Any] | str | None = None,
    prm: Any = None,
    grader: Callable[..., Any] | str | None = None,
    **settings: Any,
) -> Path:
    """Run PPO-max, or another algorithm of `stepwell ppo`; return the folder of the trained policy.

    problems: a benchmark's name or names, "module:name", or rows in memory (docs/plugins.md, format rows).
    reward: a function of your own that pays whole responses, TRL's kind too, or a reward model. prm: as for
    `load_prm`; neither: the verified answer alone pays. Settings named `tokenizer` and `prm_tokenizer` belong
    to models in memory.
    """
    from reasoning_rl.compose import train_ppo as train
    from reasoning_rl.config import PPOConfig

    names = isinstance(problems, list | tuple) and all(isinstance(one, str) for one in problems)
    given: dict[str, Any] = {
        "policy": policy,
        "prm": prm,
        "reward_model": _named(reward),
        "grader": _named(grader),
    }
    if isinstance(problems, str) or names:
        settings["problems"] = problems
    else:
        given["problems"], settings["problems_format"] = problems, "rows"
    if prm is None:
        settings["reward"] = {"form": "none", **settings.get("reward", {})}
    if not (isinstance(prm, str | Path) or hasattr(prm, "save_pretrained")):
        settings["critic"] = {"init": "policy", **settings.get("critic", {})}
    return _train(PPOConfig, train, given, output_dir, settings)


def _train(
    kind: Any,
    train: Callable[..., Path],
    given: Mapping[str, Any],
    output_dir: str | Path,
    settings: dict[str, Any],
    **options: Any,
) -> Path:
    """Run one training function on its settings and on `given`, what may be in memory."""
    from prm.checkpoint import refuse_used_folder, save_model
    from reasoning_rl.commands import run_log
    from reasoning_rl.runtime import make_accelerator

    resume = settings.pop("resume", False)
    tokenizers = {"prm": settings.pop("prm_tokenizer", None)}
    if not isinstance(settings.get("tokenizer"), str):
        tokenizers |= dict.fromkeys(("policy", "model"), settings.pop("tokenizer", None))
    refuse_used_folder(output_dir, resume=resume)
    accelerator, inputs = make_accelerator(), Path(output_dir) / "inputs"
    values: dict[str, Any] = {}
    for name, one in given.items():
        if one is None or isinstance(one, str | Path):
            values[name] = None if one is None else str(one)
        elif hasattr(one, "save_pretrained"):
            values[name] = str(inputs / name)
            if accelerator.is_main_process and not (resume and (inputs / name).exists()):
                save_model(inputs / name, _plain(one), _tokenizer_of(one, tokenizers.get(name)))
        elif name == "prm":
            values[name] = name_of(one)
        else:
            values[name] = str(inputs / f"{name}.jsonl")
            if accelerator.is_main_process:
                _as_file(inputs / f"{name}.jsonl", one)
    accelerator.wait_for_everyone()
    read = getattr(kind, "from_preset", kind.from_dict)
    config = read({**settings, **values, "output_dir": str(output_dir)}, "settings")
    with run_log(accelerator, config, resume=resume) as log:
        return train(config, accelerator=accelerator, log=log, resume=resume, **options)


def _loaded(prm: Any, tokenizer: Any, format: Any, device: Any) -> "Loaded":  # noqa: A002
    from transformers import PreTrainedModel

    from data.own import OwnScorer
    from prm.formats import OWN, Loaded, load_given
    from reasoning_rl.compose import load_step_scorer
    from reasoning_rl.runtime import make_accelerator

    prm = _plain(prm)
    if isinstance(prm, PreTrainedModel):
        model = prm if device is None else prm.to(device)
        return load_given(model, _tokenizer_of(prm, tokenizer), format)
    if isinstance(prm, str | Path):
        return load_step_scorer(str(prm), format, device=device or make_accelerator().device)
    if type(prm).__module__.startswith("prm."):  # ours, of `load_prm`, whose scores may be raw
        return Loaded(prm, OWN)
    return Loaded(OwnScorer(name_of(prm)), OWN)


def _plain(model: Any) -> Any:
    """A copy of a peft model with its adapters merged; anything else as it is."""
    return copy.deepcopy(model).merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _tokenizer_of(model: Any, tokenizer: Any) -> Any:
    """The tokenizer given with a model in memory, else the one of where it came from."""
    from prm.model import load_tokenizer

    if tokenizer is not None:
        return load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
    origin = getattr(model.config, "_name_or_path", "")
    if not origin:
        raise UserError(f"{type(model).__name__} in memory needs its tokenizer: tokenizer=...")
    return load_tokenizer(origin)


def _path_of(model: Any) -> str:
    """A model's path; of one in memory a name that tells other weights apart: an evaluation may continue."""
    if isinstance(model, str | Path):
        return str(model)
    import torch

    sums = [(name, tuple(p.shape), p.sum(dtype=torch.float64).item()) for name, p in model.named_parameters()]
    return f"{type(model).__name__} in memory {sha256(repr(sums).encode()).hexdigest()[:12]}"


def _named(function: Callable[..., Any] | str | None) -> str | None:
    """A function's name, by which settings can hold it."""
    return function if function is None or isinstance(function, str) else name_of(function)


def _as_file(path: Path, rows: Source) -> str:
    """Return the name of a file, folder or hub id, or of one with these rows."""
    from data.files import write_atomically

    if isinstance(rows, str | Path):
        return str(rows)
    try:
        lines = [json.dumps(row.values) + "\n" for row in read_rows(rows)]
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{shown(rows)}: holds what no JSON row can ({error}); leave that column out"
        ) from error
    write_atomically(path, "".join(lines))
    return str(path)
