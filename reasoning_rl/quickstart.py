"""The whole road on the built-in world, offline, in minutes: SFT, step labels, PRM, PPO-max, evaluation.

Each stage leaves its model and its numbers under the output folder; a run that was interrupted goes on where
it stopped. `summary.json` holds, under these keys:

    config, versions, machine      what ran where
    stages.NAME                    seconds (of the attempt that finished it), tokens, tokens_per_second,
                                   peak_rss_mb (of the process so far)
    prm                            step_auc, step_accuracy, ece, first_error_f1 ... against the oracle, at
                                   threshold 0.5, on samples for held-out problems
    accuracy.WHEN.SPLIT_HOW        value, low, high (95 %), num_problems: WHEN sft or ppo, SPLIT standard or
                                   hard, HOW greedy or sampled (temperature 1)
    rollouts, rollout_tokens       what PPO sampled
    seconds                        all stages together
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from data.arithmetic import make_problems
from data.errors import UserError
from data.files import write_atomically
from data.machine import cpu_count, peak_rss_mb
from data.schema import Sampling
from data.step_readers import write_steps
from data.world_tokenizer import word_tokenizer
from eval.benchmarks import make_grader
from eval.metrics import solution_metrics
from eval.run import evaluate
from prm.calibrate import calibrate
from prm.checkpoint import save_model
from prm.fit import FitConfig, fit
from prm.model import load_backbone, load_tokenizer, new_prm
from prm.scorer import LocalScorer
from prm.train import PRMConfig, fit_prm
from reasoning_rl.commands import FIT_SHOWN, PPO_SHOWN
from reasoning_rl.compose import train_ppo
from reasoning_rl.config import PPOConfig
from reasoning_rl.eval_config import QuickstartConfig
from reasoning_rl.live import Live, is_quiet, seconds_text
from reasoning_rl.plots import learning_curves
from reasoning_rl.presets import merge
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.sft import NextToken, encode_pairs
from reasoning_rl.telemetry import RunLog, read_metrics, versions
from reasoning_rl.world import (
    MAX_NEW_TOKENS,
    WorldConfig,
    demonstrations,
    labelled_corruptions,
    labelled_samples,
    new_policy,
    prompt,
)

STAGE_FOLDERS = ("sft", "label", "prm", "ppo", "eval_sft", "eval_ppo")
NUM_HELD_OUT = 1000
"""Solutions that the PRM never learned from: half calibrate it, half judge it."""
SFT_FIT = {"learning_rate": 3e-3, "betas": (0.9, 0.98), "log_every": 20, "save_every": 400}
PRM_FIT = {"learning_rate": 1e-3, "betas": (0.9, 0.98), "log_every": 20, "save_every": 300}

PPO: dict[str, Any] = {
    "preset": "ppo_max",
    "policy": "outputs/quickstart/sft/model",
    "prm": "outputs/quickstart/prm/model",
    "problems": "arithmetic",
    "output_dir": "outputs/ppo",
    "iterations": 80,
    "validate_every": 8,
    "save_every": 10,
    "rollout": {
        "problems_per_iteration": 64,
        "samples_per_problem": 4,
        "max_new_tokens": MAX_NEW_TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
    },
    "reward": {"form": "delta", "step_weight": 1.0, "outcome_weight": 1.0, "clip": 5.0},
    "kl": {"coef": 0.03},
    "critic": {"learning_rate": 1e-3, "pretrain_iterations": 2, "value_clip_range": 0.5},
    "update": {
        "minibatch_size": 64,
        "micro_batch_tokens": 8192,
        "learning_rate": 5e-4,
        "schedule": "linear",
        "lam": 0.95,
    },
}
"""configs/quickstart.yaml holds the same; a test compares them."""


@dataclass
class Quickstart:
    """The folder of one run, its log of stages, and what later stages need of earlier ones."""

    config: QuickstartConfig
    console: Console
    accelerator: Accelerator
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    def stage(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a stage unless an earlier, interrupted run finished it; record its seconds and memory."""
        record = self.folder / f"{name}.json"
        if record.exists():
            result = json.loads(record.read_text(encoding="utf-8"))
            if not is_quiet():
                self.console.print(f"{name}: done before, in {seconds_text(result['seconds'])}")
        else:
            started = time.perf_counter()
            result = run()
            result["seconds"] = round(time.perf_counter() - started, 2)
            result["peak_rss_mb"] = round(peak_rss_mb(), 1)
            if "tokens" in result:
                result["tokens_per_second"] = round(result["tokens"] / result["seconds"], 1)
            write_atomically(record, json.dumps(result, indent=1))
        self.summary.setdefault("stages", {})[name] = {
            key: result[key]
            for key in ("seconds", "tokens", "tokens_per_second", "peak_rss_mb")
            if key in result
        }
        return result


def run_quickstart(config: QuickstartConfig, *, fresh: bool = False) -> dict[str, Any]:
    """Run all stages, write summary.json and curves.png, print a table; return the summary."""
    console = Console()
    folder = Path(config.output_dir)
    _claim(folder, config, fresh)
    torch.set_num_threads(config.threads or cpu_count())
    run = Quickstart(config, console, Accelerator(cpu=not torch.cuda.is_available()))
    if not is_quiet():
        console.print(
            f"[bold]Stepwell quickstart[/bold], seed {config.seed}: a small policy learns word problems from "
            "demonstrations with bad habits;\na process reward model learns to see its wrong steps; PPO-max "
            "pays it for right ones. Everything is made here, nothing is downloaded."
        )
    run.stage("sft", lambda: _sft(run))
    before = run.stage("eval_sft", lambda: _evaluate(run, "sft"))
    run.stage("label", lambda: _label(run))
    prm = run.stage("prm", lambda: _prm(run))
    ppo = run.stage("ppo", lambda: _ppo(run))
    after = run.stage("eval_ppo", lambda: _evaluate(run, "ppo"))
    summary = {
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "machine": {"cpus": cpu_count(), "threads": torch.get_num_threads()},
        **run.summary,
        "prm": prm["metrics"],
        "accuracy": {"sft": before["accuracy"], "ppo": after["accuracy"]},
        "rollouts": ppo["rollouts"],
        "rollout_tokens": ppo["tokens"],
        "seconds": round(sum(s["seconds"] for s in run.summary["stages"].values()), 1),
    }
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1))
    picture = learning_curves(
        folder / "curves.png", *(read_metrics(folder / stage) for stage in ("sft", "prm", "ppo"))
    )
    console.print(_table(summary))
    console.print(f"summary: {folder / 'summary.json'}\ncurves:  {picture}", highlight=False)
    return summary


def _claim(folder: Path, config: QuickstartConfig, fresh: bool) -> None:
    """Make the folder this run's own, or find in it the same run, to be continued."""
    record = folder / "config.yaml"
    if record.exists() and not _is_quickstart(record):
        raise UserError(f"{folder} holds another kind of run; choose another --output-dir")
    if fresh and record.exists():
        for path in folder.iterdir():
            if path.is_dir() and path.name in STAGE_FOLDERS:
                shutil.rmtree(path)
            elif path.is_file() and path.suffix in (".json", ".yaml", ".png"):
                path.unlink()
    if record.exists():
        old = QuickstartConfig.from_yaml(record)
        mine, its = (c.model_dump(exclude={"output_dir", "threads"}) for c in (config, old))
        changed = [key for key in mine if mine[key] != its[key]]
        if changed:
            raise UserError(
                f"{folder} holds a run with other settings ({', '.join(f'{k} {its[k]}' for k in changed)}); "
                "add --fresh to replace it, or choose another --output-dir"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is no quickstart run; choose another --output-dir")
    config.to_yaml(record)


def _is_quickstart(record: Path) -> bool:
    try:
        QuickstartConfig.from_yaml(record)
    except UserError:
        return False
    return "ppo_iterations" in record.read_text(encoding="utf-8")


def _sft(run: Quickstart) -> dict[str, Any]:
    world, seed = WorldConfig(), run.config.seed
    tokenizer = word_tokenizer()
    policy = new_policy(tokenizer, world, seed)
    pairs = encode_pairs(tokenizer, demonstrations(run.config.demonstrations, 10 * seed + 1, world.habits))
    settings = FitConfig(seed=seed, **SFT_FIT)
    _fit_live(
        run,
        "sft",
        lambda log: fit(
            policy,
            pairs,
            NextToken(),
            settings,
            accelerator=run.accelerator,
            run_dir=run.folder / "sft",
            log=log,
            resume=True,
        ),
    )
    save_model(run.folder / "sft" / "model", policy, tokenizer)
    return {"tokens": sum(map(len, pairs))}


def _label(run: Quickstart) -> dict[str, Any]:
    """Sample from the policy and label every step by the oracle; these files are what the PRM learns from."""
    seed = run.config.seed
    generator = _generator(run.folder / "sft" / "model", seed)
    train = make_problems(run.config.solutions, 10 * seed + 2, split="train")
    held_out = make_problems(NUM_HELD_OUT, 10 * seed + 3, split="validation")
    solutions = []
    with Live("label", len(train), console=run.console, unit="solution") as live:
        for start in range(0, len(train), 500):
            solutions += labelled_samples(generator, train[start : start + 500])
            live.show(len(solutions), {})
    write_steps(
        run.folder / "label" / "train.jsonl",
        solutions + labelled_corruptions(run.config.solutions // 2, 10 * seed + 4),
    )
    write_steps(run.folder / "label" / "held_out.jsonl", labelled_samples(generator, held_out))
    tokenizer = word_tokenizer()
    tokens = sum(len(ids) for ids in tokenizer(["\n".join(s.steps) for s in solutions])["input_ids"])
    return {"tokens": tokens, "solutions": len(solutions)}


def _prm(run: Quickstart) -> dict[str, Any]:
    from data.step_readers import read_steps

    solutions = read_steps(run.folder / "label" / "train.jsonl")
    held_out = read_steps(run.folder / "label" / "held_out.jsonl")
    tokenizer = word_tokenizer()
    torch.manual_seed(run.config.seed)
    prm = new_prm(run.folder / "sft" / "model", extra_layers=1)
    settings = PRMConfig(
        data=str(run.folder / "label" / "train.jsonl"),
        output_dir=str(run.folder / "prm"),
        supervise="all",
        max_length=256,
        fit=FitConfig(seed=run.config.seed, **PRM_FIT),
    )
    _fit_live(
        run,
        "prm",
        lambda log: fit_prm(
            prm,
            tokenizer,
            solutions,
            held_out,
            settings,
            accelerator=run.accelerator,
            log=log,
            step_metrics=solution_metrics,
            resume=True,
        ),
    )
    scorer, half = LocalScorer(prm, tokenizer), len(held_out) // 2
    # A policy of very few demonstrations gets nothing right: there is nothing to calibrate on.
    if len({label for solution in held_out[:half] for label in solution.labels}) == 2:
        calibrate(scorer, held_out[:half])
    save_model(run.folder / "prm" / "model", prm, tokenizer)
    scores = scorer.score([s.problem for s in held_out[half:]], [s.steps for s in held_out[half:]])
    metrics = solution_metrics([s.labels for s in held_out[half:]], scores, 0.5)
    texts = [s.problem + "\n" + "\n".join(s.steps) for s in solutions]
    plain = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return {"metrics": plain, "tokens": sum(map(len, tokenizer(texts)["input_ids"]))}


def ppo_config(config: QuickstartConfig) -> PPOConfig:
    """The quickstart's PPO settings for a seed and folder."""
    folder = Path(config.output_dir)
    own = {
        "policy": str(folder / "sft" / "model"),
        "prm": str(folder / "prm" / "model"),
        "output_dir": str(folder / "ppo"),
        "seed": config.seed,
        "iterations": config.ppo_iterations,
    }
    return PPOConfig.from_preset(merge(PPO, own))


def _ppo(run: Quickstart) -> dict[str, Any]:
    settings = ppo_config(run.config)
    with Live(
        "ppo", settings.iterations, shown=PPO_SHOWN, console=run.console, board=True, unit="iteration"
    ) as live:
        train_ppo(
            settings,
            accelerator=run.accelerator,
            log=RunLog(run.folder / "ppo", watch=live.watch),
            resume=True,
        )
    rows = [row for row in read_metrics(run.folder / "ppo") if row["iteration"] > 0]
    return {
        "rollouts": settings.rollouts_per_iteration * settings.iterations,
        "tokens": int(sum(row["rollout/tokens"] for row in rows)),
    }


def _evaluate(run: Quickstart, when: str) -> dict[str, Any]:
    """Accuracy on held-out problems, greedy and at temperature 1, of the standard and the hard split."""
    generator = _generator(run.folder / when / "model", run.config.seed)
    accuracy: dict[str, Any] = {}
    tokens = 0
    total = 4 * run.config.problems
    with Live(f"evaluate after {when}", total, console=run.console, unit="problem") as live:
        for difficulty in ("standard", "hard"):
            problems = make_problems(run.config.problems, 10 * run.config.seed, difficulty=difficulty)
            for how, temperature in (("greedy", 0.0), ("sampled", 1.0)):
                name = f"{difficulty}_{how}"
                result = evaluate(
                    problems,
                    generator=generator,
                    grader=make_grader("arithmetic"),
                    render=prompt,
                    sampling=Sampling(
                        max_new_tokens=2 * MAX_NEW_TOKENS, temperature=temperature, seed=run.config.seed
                    ),
                    batch_size=250,
                    out_dir=run.folder / f"eval_{when}" / name,
                    settings={"model": when, "difficulty": difficulty, "how": how},
                )
                accuracy[name] = result.to_dict()["accuracy"]
                tokens += result.to_dict()["tokens"]
                live.show((len(accuracy)) * run.config.problems, {name: accuracy[name]["value"]})
    return {"accuracy": accuracy, "tokens": tokens}


def _generator(model: Path, seed: int) -> HFGenerator:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HFGenerator(load_backbone(model).to(device), load_tokenizer(model), seed=seed)  # type: ignore[arg-type]


def _fit_live(run: Quickstart, name: str, train: Callable[[RunLog], None]) -> None:
    with Live(name, None, shown=FIT_SHOWN, console=run.console) as live:
        train(RunLog(run.folder / name, watch=live.watch))


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"quickstart, seed {summary['config']['seed']}", title_justify="left")
    table.add_column("held-out problems")
    table.add_column("after SFT", justify="right")
    table.add_column("after PPO-max", justify="right")
    for name in summary["accuracy"]["sft"]:
        cells = [summary["accuracy"][when][name] for when in ("sft", "ppo")]
        texts = [f"{c['value']:.3f}  [{c['low']:.3f}, {c['high']:.3f}]" for c in cells]
        table.add_row(name.replace("_", ", "), *texts)
    prm = summary["prm"]
    table.add_section()
    table.add_row(
        "PRM against the oracle",
        f"step accuracy {_shown(prm['step_accuracy'])} (one answer: {_shown(prm['majority_accuracy'])})",
        f"AUC {_shown(prm['step_auc'])}",
    )
    table.add_row("", f"first-error F1 {_shown(prm['first_error_f1'])}", f"ECE {_shown(prm['ece'])}")
    table.add_section()
    for name, stage in summary["stages"].items():
        speed = f"{stage['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in stage else ""
        table.add_row(name, seconds_text(stage["seconds"]), speed)
    table.add_row("all stages", seconds_text(summary["seconds"]), f"peak {_peak(summary):,.0f} MiB")
    return table


def _shown(value: float | None) -> str:
    """Undefined (None) where only one kind of label came up."""
    return "undefined" if value is None else f"{value:.3f}"


def _peak(summary: dict[str, Any]) -> float:
    return max(stage["peak_rss_mb"] for stage in summary["stages"].values())
