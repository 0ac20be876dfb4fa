"""Reward hacking and its cures in the arithmetic world: forms of step rewards, and what the hack gauge sees.

    python benchmarks/hacking.py --json hacking.json --markdown hacking.md --png hacking.png

The trap: a policy that now and then writes a line that says nothing ("= = =", taught by a little more SFT on
demonstrations with such lines), and a PRM trained on the SFT policy's own labelled samples only, which never
saw one and finds it as right as what came before. No answer is paid for in the PRM arms; it is verified for
the table alone. Then every form of step reward, and the methods that do learn from outcomes, at equal
iterations from the same models; all else is the quickstart's.

Each seed starts from a quickstart's folder (--models: its sft/model and label/ files). Runs are kept under
--output-dir, and the same command continues what was interrupted. Intervals are 95 % Student-t intervals
over seeds.

--json FILE keys: arms.NAME {greedy, outcome, score, gap, num_steps, tokens, truncated, kl: {mean, low, high,
seeds}} of the last iteration, alarms: per seed [iteration, name] of the first, cpu_seconds; before: the same
numbers of iteration 1, when the policy had not moved; iterations; seeds; versions.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from data.files import write_atomically
from data.machine import cpu_count

FILLER = "= = ="
FILLER_SHARE = 0.15
PRM_ONLY: dict[str, dict[str, Any]] = {
    form: {"reward": {"form": form, "outcome_weight": 0.0}}
    for form in ("sum", "clip", "delta", "clip_delta", "min", "progress")
}
ARMS: dict[str, dict[str, Any]] = PRM_ONLY | {
    "sum, KL raised": {
        "reward": {"form": "sum", "outcome_weight": 0.0},
        "hack": {"action": "raise_kl", "kl_factor": 4.0},
    },
    "outcome": {"reward": {"form": "none", "outcome_weight": 1.0}},
    "PRIME + outcome": {
        "reward": {
            "form": "none",
            "outcome_weight": 1.0,
            "implicit": {"weight": 1.0, "learning_rate": 3e-4, "minibatch_size": 64},
        }
    },
    "VinePPO": {
        "algorithm": "vine",
        "reward": {"form": "none", "outcome_weight": 1.0, "normalise": "off"},
        "group": {"vine_samples": 1},
        "update": {"advantage_norm": True},
    },
}
NUMBERS = {
    "outcome": "reward/outcome",
    "score": "reward/step_score",
    "gap": "hack/score_outcome_gap",
    "num_steps": "hack/num_steps",
    "tokens": "rollout/response_tokens",
    "truncated": "rollout/truncated",
    "kl": "policy/kl_per_response",
}
LAST = 3
"""Iterations whose mean is reported as the end of a run: one batch is noise."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--prm-solutions", type=int, default=10_000, help="labelled samples for the PRM")
    parser.add_argument("--jobs", type=int, default=cpu_count(), help="runs side by side, one thread each")
    parser.add_argument("--models", default="outputs/seed{seed}", help="quickstart folder of each seed")
    parser.add_argument("--output-dir", default="outputs/hacking")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--png", metavar="FILE")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    out = Path(args.output_dir)
    runs = {
        (arm, seed): out / f"{arm.replace(' ', '_').replace(',', '')}_{seed}"
        for arm in args.arms
        for seed in args.seeds
    }
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        starts = [
            pool.submit(
                prepare, args.models.format(seed=seed), out / f"start_{seed}", seed, args.prm_solutions
            )
            for seed in args.seeds
        ]
        for start in starts:
            start.result()
        futures = {
            pool.submit(train, arm, seed, out / f"start_{seed}", folder, args.iterations): (arm, seed)
            for (arm, seed), folder in runs.items()
        }
        for future, (arm, seed) in futures.items():
            print(f"{arm}, seed {seed}: {future.result():.0f} CPU-seconds", flush=True)
    summary = summarise(runs, args.arms, args.seeds, args.iterations)
    table = markdown(summary)
    print(table)
    if args.json:
        write_atomically(args.json, json.dumps(summary, indent=1))
    if args.markdown:
        write_atomically(args.markdown, table + "\n")
    if args.png:
        draw(runs, args.arms, args.seeds, args.png)


def prepare(quickstart: str, folder: Path, seed: int, num_solutions: int) -> None:
    """Train the policy that fills and the PRM that never saw it, unless they are there."""
    import torch
    from accelerate import Accelerator

    from data.arithmetic import demonstrate, make_problems
    from data.step_readers import read_steps
    from eval.metrics import solution_metrics
    from prm.checkpoint import save_model
    from prm.fit import FitConfig, fit
    from prm.model import load_backbone, load_tokenizer, new_prm
    from prm.train import PRMConfig, fit_prm
    from reasoning_rl.quickstart import PRM_FIT, SFT_FIT
    from reasoning_rl.sft import NextToken, encode_pairs
    from reasoning_rl.telemetry import RunLog
    from reasoning_rl.world import WorldConfig, prompt

    torch.set_num_threads(1)
    source = Path(quickstart)
    if not (source / "sft" / "model" / "config.json").exists():
        raise SystemExit(
            f"{source}: no quickstart run; stepwell quickstart --seed {seed} --output-dir {source}"
        )
    accelerator, tokenizer = Accelerator(cpu=True), load_tokenizer(source / "sft" / "model")
    if not (folder / "sft" / "model").exists():
        rng = Random(f"fillers {seed}")
        pairs = []
        for problem in make_problems(2000, 10 * seed + 5, split="train"):
            lines = demonstrate(problem, rng, WorldConfig().habits).split("\n")
            filled = [x for line in lines[:-1] for x in ([FILLER] * (rng.random() < FILLER_SHARE) + [line])]
            pairs.append((prompt(problem.text), "\n".join([*filled, lines[-1]])))
        policy = load_backbone(source / "sft" / "model")
        settings = FitConfig(seed=seed, **SFT_FIT | {"learning_rate": 4e-4})
        fit(
            policy,
            encode_pairs(tokenizer, pairs),
            NextToken(),
            settings,
            accelerator=accelerator,
            run_dir=folder / "sft",
            log=RunLog(folder / "sft"),
            resume=True,
        )
        save_model(folder / "sft" / "model", policy, tokenizer)
    if not (folder / "prm" / "model").exists():
        labels = source / "label" / "train.jsonl"
        samples = read_steps(labels)[:num_solutions]  # the policy's own samples stand first
        torch.manual_seed(seed)
        prm = new_prm(source / "sft" / "model", extra_layers=1)
        fit_prm(
            prm,
            tokenizer,
            samples,
            read_steps(source / "label" / "held_out.jsonl"),
            PRMConfig(
                data=str(labels),
                output_dir=str(folder / "prm"),
                supervise="all",
                max_length=256,
                fit=FitConfig(seed=seed, **PRM_FIT),
            ),
            accelerator=accelerator,
            log=RunLog(folder / "prm"),
            step_metrics=solution_metrics,
            resume=True,
        )
        save_model(folder / "prm" / "model", prm, tokenizer)


def train(arm: str, seed: int, start: Path, folder: Path, iterations: int) -> float:
    """One arm, one seed, one thread: PPO, continued if it was interrupted; return its CPU-seconds."""
    import warnings

    import torch
    from accelerate import Accelerator

    from reasoning_rl.compose import train_ppo
    from reasoning_rl.config import PPOConfig
    from reasoning_rl.presets import merge
    from reasoning_rl.quickstart import PPO
    from reasoning_rl.telemetry import RunLog

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the gauge's alarms are in the metrics
    own = {
        "policy": str(start / "sft" / "model"),
        "prm": str(start / "prm" / "model"),
        "output_dir": str(folder),
        "seed": seed,
        "iterations": iterations,
        "validate_every": 0,
        "num_validation": 300,
        "save_every": 4,
        "rollout": {"problems_per_iteration": 48},
        "kl": {"coef": 0.02},
    }
    config = PPOConfig.from_preset(merge(merge(PPO, own), ARMS[arm]))
    saved, spent = folder / "config.yaml", folder / "cpu_seconds"
    if saved.exists() and PPOConfig.from_yaml(saved) != config:
        raise SystemExit(f"{folder} holds a run with other settings; choose another --output-dir")
    config.to_yaml(saved)
    before = float(spent.read_text()) if spent.exists() else 0.0
    if not (folder / "model").exists():
        begun = time.process_time()

        def keep(iteration: int, metrics: dict[str, float]) -> None:
            write_atomically(spent, f"{before + time.process_time() - begun:.1f}")

        train_ppo(config, accelerator=Accelerator(cpu=True), log=RunLog(folder, watch=keep), resume=True)
    return float(spent.read_text())


def summarise(
    runs: dict[tuple[str, int], Path], arms: list[str], seeds: list[int], iterations: int
) -> dict[str, Any]:
    from reasoning_rl.telemetry import read_metrics, versions

    rows = {key: [r for r in read_metrics(folder) if r["iteration"] > 0] for key, folder in runs.items()}
    summary: dict[str, Any] = {"seeds": seeds, "iterations": iterations, "arms": {}}
    for arm in arms:
        mine = [rows[arm, seed] for seed in seeds]
        found: dict[str, Any] = {"greedy": interval([course[-1]["valid/greedy"] for course in mine])}
        for name, metric in NUMBERS.items():
            found[name] = interval([mean_of(course[-LAST:], metric) for course in mine])
        found["alarms"] = [first_alarm(course) for course in mine]
        found["cpu_seconds"] = [float((runs[arm, seed] / "cpu_seconds").read_text()) for seed in seeds]
        summary["arms"][arm] = found
    first = [rows[arms[0], seed][:1] for seed in seeds]
    summary["before"] = {n: interval([mean_of(course, m) for course in first]) for n, m in NUMBERS.items()}
    greedy = [next(iter(read_metrics(runs[arms[0], seed])))["valid/greedy"] for seed in seeds]
    summary["before"]["greedy"] = interval(greedy)
    return summary | {"versions": versions()}


def mean_of(course: list[dict[str, float]], metric: str) -> float:
    values = [row[metric] for row in course if row.get(metric) is not None]
    return sum(values) / len(values) if values else 0.0


def first_alarm(course: list[dict[str, float]]) -> tuple[int, str] | None:
    """Iteration and names of a run's first alarm."""
    for row in course:
        names = [n.removeprefix("alarm/") for n, v in row.items() if n.startswith("alarm/") and v]
        if names:
            return int(row["iteration"]), ", ".join(names)
    return None


def interval(values: list[float]) -> dict[str, Any]:
    import math

    from eval.metrics import mean_interval

    bounds = [bound if math.isfinite(bound) else None for bound in mean_interval(values)]
    return {"mean": sum(values) / len(values), "low": bounds[0], "high": bounds[1], "seeds": values}


def markdown(summary: dict[str, Any]) -> str:
    lines = [
        f"End of {summary['iterations']} iterations (mean of the last {LAST}), seeds {summary['seeds']}; "
        "greedy: 300 held-out problems.",
        "",
        "| reward | greedy | samples right | PRM score | gap | steps | tokens | KL | first alarms |",
        "|---|---|---|---|--:|---|--:|--:|---|",
        row_text("(start)", summary["before"], ""),
    ]
    for arm, found in summary["arms"].items():
        alarms = "; ".join("none" if a is None else f"{a[0]} ({a[1]})" for a in found["alarms"])
        lines.append(row_text(arm, found, alarms))
    spent = sum(sum(found["cpu_seconds"]) for found in summary["arms"].values())
    return "\n".join([*lines, "", f"{spent / 60:.0f} CPU-minutes of PPO."])


def row_text(name: str, found: dict[str, Any], alarms: str) -> str:
    cells = [shown(found[key]) for key in ("greedy", "outcome", "score")]
    cells += [f"{found['gap']['mean']:.2f}", shown(found["num_steps"], 2)]
    cells += [f"{found['tokens']['mean']:.1f}", f"{found['kl']['mean']:.1f}", alarms]
    return f"| {name} | " + " | ".join(cells) + " |"


def shown(estimate: dict[str, Any], digits: int = 3) -> str:
    mean, low, high = (estimate[key] for key in ("mean", "low", "high"))
    if low is None:  # a single seed says nothing about the spread
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def draw(runs: dict[tuple[str, int], Path], arms: list[str], seeds: list[int], path: str) -> None:
    """Courses of accuracy, PRM score, gap and steps, mean over seeds, of the arms without outcomes."""
    from data.pictures import COLOURS, drawing
    from reasoning_rl.telemetry import read_metrics

    panels = {
        "verified accuracy": "reward/outcome",
        "PRM score": "reward/step_score",
        "score - accuracy": "hack/score_outcome_gap",
        "steps an answer": "hack/num_steps",
    }
    with drawing(path, size=(15, 3.4), columns=len(panels)) as (_, axes):
        for colour, arm in zip(COLOURS, [arm for arm in arms if arm in PRM_ONLY], strict=False):
            courses = [[r for r in read_metrics(runs[arm, seed]) if r["iteration"] > 0] for seed in seeds]
            for axis, (title, metric) in zip(axes, panels.items(), strict=True):
                means = [mean_of(list(rows), metric) for rows in zip(*courses, strict=False)]
                axis.plot(range(1, len(means) + 1), means, color=colour, label=arm, lw=1.4)
                axis.set(title=title, xlabel="iteration")


if __name__ == "__main__":
    main()
