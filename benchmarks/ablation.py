"""What each reward buys in the quickstart's world, at equal numbers of sampled tokens.

    python benchmarks/ablation.py --json ablation.json

For every seed it takes the SFT policy and the PRM of a quickstart run (made first where absent), then runs
PPO with each reward: the verified outcome alone; the PRM alone in sum, delta and min form; delta + outcome.
All else is the quickstart's. Accuracy is read off each run's validation curve at the same number of sampled
tokens: what the most frugal run used in all. Intervals are 95 % Student-t intervals over seeds.

--json FILE keys: arms.NAME {greedy, sampled: {mean, low, high, seeds}} at `tokens` sampled tokens, and
{num_steps, score, outcome, kl} of the last iteration; before {greedy, sampled}; iterations; seeds; versions.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from data.machine import cpu_count

ARMS: dict[str, dict[str, Any]] = {
    "outcome": {
        "reward": {"form": "none", "step_weight": 0.0, "outcome_weight": 1.0},
        "critic": {"init": "policy"},  # no PRM anywhere
    },
    "PRM sum": {"reward": {"form": "sum", "outcome_weight": 0.0}},
    "PRM delta": {"reward": {"form": "delta", "outcome_weight": 0.0}},
    "PRM min": {"reward": {"form": "min", "outcome_weight": 0.0}},
    "PRM delta + outcome": {"reward": {"form": "delta", "outcome_weight": 1.0}},
}
MONITORS = {
    "num_steps": "hack/num_steps",
    "score": "reward/step_score",
    "outcome": "reward/outcome",
    "kl": "policy/kl_per_response",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=cpu_count(), help="runs side by side")
    parser.add_argument("--models", default="outputs/seed{seed}", help="quickstart folder of each seed")
    parser.add_argument("--output-dir", default="outputs/ablation")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for seed in args.seeds:
        prepare(args.models.format(seed=seed), seed)
    work = [
        (name, seed, args.models.format(seed=seed), f"{args.output_dir}/{name.replace(' ', '_')}_{seed}")
        for seed in args.seeds
        for name in ARMS
    ]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train, *item, args.iterations) for item in work]
        for item, future in zip(work, futures, strict=True):
            future.result()
            print(f"done: {item[0]}, seed {item[1]}", flush=True)
    summary = summarise(work, args.iterations, args.seeds)
    print(table(summary))
    if args.json:
        Path(args.json).write_text(json.dumps(summary, indent=1))


def prepare(folder: str, seed: int) -> None:
    """The quickstart of a seed, unless its models are there."""
    if not (Path(folder) / "prm" / "model" / "config.json").exists():
        command = [sys.executable, "-m", "reasoning_rl.cli", "quickstart"]
        subprocess.run([*command, "--seed", str(seed), "--output-dir", folder], check=True)


def train(name: str, seed: int, models: str, output_dir: str, iterations: int) -> None:
    """One arm, one seed, one thread: PPO to `iterations`, continued if it was interrupted."""
    import torch
    from accelerate import Accelerator

    from reasoning_rl.compose import train_ppo
    from reasoning_rl.config import PPOConfig
    from reasoning_rl.presets import merge
    from reasoning_rl.quickstart import PPO
    from reasoning_rl.telemetry import RunLog

    torch.set_num_threads(1)
    own = {
        "policy": f"{models}/sft/model",
        "prm": f"{models}/prm/model",
        "output_dir": output_dir,
        "seed": seed,
        "iterations": iterations,
        "validate_every": 4,
        "num_validation": 300,
        "save_every": 8,
        **ARMS[name],
    }
    config = PPOConfig.from_preset(merge(PPO, own))
    saved = Path(output_dir) / "config.yaml"
    if saved.exists() and PPOConfig.from_yaml(saved) != config:
        raise SystemExit(f"{output_dir} holds a run with other settings; choose another --output-dir")
    config.to_yaml(saved)
    if not (Path(output_dir) / "model").exists():
        train_ppo(config, accelerator=Accelerator(cpu=True), log=RunLog(output_dir), resume=True)


def summarise(work: list[tuple[str, int, str, str]], iterations: int, seeds: list[int]) -> dict[str, Any]:
    from eval.metrics import mean_interval
    from reasoning_rl.telemetry import read_metrics, versions

    runs = {(name, seed): read_metrics(folder) for name, seed, _, folder in work}
    tokens = min(sum(row.get("rollout/tokens", 0) for row in rows) for rows in runs.values())
    summary: dict[str, Any] = {"tokens": int(tokens), "iterations": iterations, "seeds": seeds, "arms": {}}
    for name in ARMS:
        curves = [runs[name, seed] for seed in seeds]
        arm: dict[str, Any] = {}
        for how in ("greedy", "sampled"):
            values = [at_tokens(rows, f"valid/{how}", tokens) for rows in curves]
            arm[how] = interval(mean_interval, values)
        arm |= {
            key: sum(rows[-1][metric] for rows in curves) / len(seeds) for key, metric in MONITORS.items()
        }
        summary["arms"][name] = arm
    first = [runs["outcome", seed][0] for seed in seeds]
    summary["before"] = {
        how: interval(mean_interval, [row[f"valid/{how}"] for row in first]) for how in ("greedy", "sampled")
    }
    return summary | {"versions": versions()}


def interval(mean_interval: Any, values: list[float]) -> dict[str, Any]:
    bounds = [bound if math.isfinite(bound) else None for bound in mean_interval(values)]
    return {"mean": sum(values) / len(values), "low": bounds[0], "high": bounds[1], "seeds": values}


def at_tokens(rows: list[dict[str, float]], name: str, tokens: float) -> float:
    """The curve's value at `tokens` sampled tokens, linear between validations."""
    used, before = 0.0, (0.0, 0.0)
    for row in rows:
        used += row.get("rollout/tokens", 0)
        if name not in row:
            continue
        if used >= tokens and used > before[0]:
            share = (tokens - before[0]) / (used - before[0])
            return before[1] + share * (row[name] - before[1])
        before = (used, row[name])
    return before[1]


def table(summary: dict[str, Any]) -> str:
    tokens, seeds = summary["tokens"], summary["seeds"]
    lines = [
        f"accuracy on 300 held-out problems at {tokens:,} sampled tokens, seeds {seeds}",
        "| reward | greedy | sampled | steps | PRM score | outcome | KL (nats) |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    before = summary["before"]
    lines.append(f"| (after SFT) | {shown(before['greedy'])} | {shown(before['sampled'])} | | | | |")
    for name, arm in summary["arms"].items():
        numbers = " | ".join(f"{arm[key]:.2f}" for key in MONITORS)
        lines.append(f"| {name} | {shown(arm['greedy'])} | {shown(arm['sampled'])} | {numbers} |")
    return "\n".join(lines)


def shown(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:  # a single seed says nothing about the spread
        return f"{estimate['mean']:.3f}"
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


if __name__ == "__main__":
    main()
