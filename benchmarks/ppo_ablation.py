"""What each ingredient of PPO buys: Xu et al.'s ladder, and PPO-max minus one at a time. Stability too.

    python benchmarks/ppo_ablation.py --json ppo_ablation.json

For every seed it takes the SFT policy and the PRM of a quickstart run (made first where absent) and runs PPO
once per row, every row on the same number of sampled answers and with the quickstart's reward (delta and
outcome). The learning rates are a multiple of the quickstart's (--stress), constant: at gentle ones nothing
fails, and an ingredient that only prevents failures looks idle. A killed command goes on where it stopped.

rows      The ladder follows Table 3 of arXiv:2404.10719: its recipe without advantage normalisation, large
          batch and reference EMA, which are then added one after the other. PPO-max follows Fig. 5 of
          arXiv:2307.04964: all starred ingredients, then all but one, then none. PPO-ptx is left out: this
          world's demonstrations carry the habits that PPO is to unlearn.
start     accuracy of the SFT policy        final     of the policy when the answers are used up
drop      largest fall of a run's sampled validation accuracy below its best before; the worst of all seeds
collapse  share of seeds that end below their start, or died of non-finite updates

--json FILE keys: rows.NAME {greedy, sampled: {mean, low, high, seeds}, collapsed, worst_drop, died,
settings}; start {greedy, sampled}; answers, stress, problems, seeds, versions. Intervals: 95 % Student-t over
seeds.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ablation import interval, prepare, shown

from data.errors import UserError
from data.machine import cpu_count
from data.settings import read_yaml
from reasoning_rl.config import PPOConfig
from reasoning_rl.presets import merge

QUICKSTART = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"
SMALL, LARGE = 64, 256
"""Answers of an iteration; a quarter of them is a minibatch."""


def batch(answers: int) -> dict[str, Any]:
    return {
        "rollout": {"problems_per_iteration": answers // 4, "samples_per_problem": 4},
        "update": {"minibatch_size": answers // 4},
    }


def ladder(*added: dict[str, Any]) -> dict[str, Any]:
    """Xu et al.'s baseline, which has value norm and clip and the KL, with some of its three factors."""
    row = merge({"preset": "ppo_large_batch"}, batch(SMALL))
    row = merge(row, {"reference_ema": 0.0, "update": {"advantage_norm": False}})
    for change in added:
        row = merge(row, change)
    return row


def ppo_max(*removed: dict[str, Any]) -> dict[str, Any]:
    """The quickstart's PPO-max without some ingredients."""
    row = merge({"preset": "ppo_max", "reward": {"clip": 5.0}, "kl": {"coef": 0.03}}, batch(LARGE))
    row = merge(row, {"critic": {"value_clip_range": 0.5}, "update": {"lam": 0.95}})
    for change in removed:
        row = merge(row, change)
    return row


NORM = {"update": {"advantage_norm": True}}
EMA = {"reference_ema": 0.01}
"""Xu et al.'s code has 0.001 a batch, over hundreds of batches; here are ten."""
WITHOUT: dict[str, dict[str, Any]] = {
    "reward norm and clip": {"reward": {"normalise": "off", "clip": None}},
    "KL": {"kl": {"coef": 0.0}},
    "value clip": {"critic": {"value_clip_range": None}},
    "critic from the PRM": {"critic": {"init": "policy"}},
    "critic pre-training": {"critic": {"pretrain_iterations": 0}},
    "GAE (lambda 1)": {"update": {"lam": 1.0}},
    "policy clip": {"update": {"clip_range": None}},
    "gradient clip": {"update": {"max_grad_norm": None}},
    "small buffer (4 epochs)": {"update": {"epochs": 4}},
}
ROWS: dict[str, dict[str, Any]] = {
    "baseline PPO": ladder(),
    "+ advantage norm": ladder(NORM),
    "+ large batch": ladder(NORM, batch(LARGE)),
    "+ reference EMA": ladder(NORM, batch(LARGE), EMA),
    "PPO-max": ppo_max(),
    **{f"- {name}": ppo_max(change) for name, change in WITHOUT.items()},
    "- all of these": ppo_max(*(c for name, c in WITHOUT.items() if "4 epochs" not in name)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--answers", type=int, default=2560, help="sampled in each run, 64 or 256 at a time")
    parser.add_argument("--stress", type=float, default=4.0, help="times the quickstart's learning rates")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--problems", type=int, default=128, help="held out, of each validation")
    parser.add_argument("--jobs", type=int, default=cpu_count(), help="runs side by side")
    parser.add_argument("--models", default="outputs/seed{seed}", help="quickstart folder of each seed")
    parser.add_argument("--output-dir", default="outputs/ppo_ablation")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.answers % (2 * LARGE):
        parser.error(f"--answers must be a multiple of {2 * LARGE}: validations fall on the same counts")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for seed in args.seeds:
        prepare(args.models.format(seed=seed), seed)
    work = [(name, seed) for seed in args.seeds for name in args.rows]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train, name, seed, vars(args)) for name, seed in work]
        for (name, seed), future in zip(work, futures, strict=True):
            print(f"done: {name}, seed {seed}{future.result()}", flush=True)
    summary = summarise(vars(args))
    print(table(summary))
    if args.json:
        Path(args.json).write_text(json.dumps(summary, indent=1))


def folder_of(name: str, seed: int, args: dict[str, Any]) -> Path:
    """One folder a run; what the name leaves out is compared with config.yaml in it."""
    words = "".join(c if c.isalnum() else "_" for c in name).strip("_")
    return Path(args["output_dir"]) / f"{words}_{seed}"


def settings(name: str, seed: int, args: dict[str, Any]) -> PPOConfig:
    """The row's settings in this world: its short answers, and rates that fit a model of 0.6 M parameters."""
    row, quickstart = ROWS[name], read_yaml(QUICKSTART)
    answers = row["rollout"]["problems_per_iteration"] * row["rollout"]["samples_per_problem"]
    models = args["models"].format(seed=seed)
    world = {
        "policy": f"{models}/sft/model",
        "prm": f"{models}/prm/model",
        "output_dir": str(folder_of(name, seed, args)),
        "seed": seed,
        "iterations": args["answers"] // answers,
        "validate_every": 2 * LARGE // answers,
        "num_validation": args["problems"],
        "save_every": 2 * LARGE // answers,
        "keep_checkpoints": 1,
        "rollout": {"max_new_tokens": 64, "temperature": 1.0, "top_p": 1.0, "top_k": 0},
        "critic": {"learning_rate": args["stress"] * quickstart["critic"]["learning_rate"]},
        "update": {
            "learning_rate": args["stress"] * quickstart["update"]["learning_rate"],
            "micro_batch_tokens": quickstart["update"]["micro_batch_tokens"],
        },
    }
    return PPOConfig.from_preset(merge(world, row))


def train(name: str, seed: int, args: dict[str, Any]) -> str:
    """One row, one seed, one thread, continued if it was interrupted; returns "" or how it died."""
    import torch
    from accelerate import Accelerator

    from reasoning_rl.compose import train_ppo
    from reasoning_rl.telemetry import RunLog

    torch.set_num_threads(1)
    config = settings(name, seed, args)
    folder = Path(config.output_dir)
    saved, death = folder / "config.yaml", folder / "died.txt"
    if saved.exists() and PPOConfig.from_yaml(saved) != config:
        raise SystemExit(f"{folder} holds a run with other settings; choose another --output-dir")
    config.to_yaml(saved)
    if death.exists():
        return f" (died: {death.read_text().strip()})"
    if not (folder / "model").exists():
        try:
            train_ppo(config, accelerator=Accelerator(cpu=True), log=RunLog(folder), resume=True)
        except UserError as error:
            if "not finite" not in str(error):
                raise
            death.write_text(str(error))
            return f" (died: {error})"
    return ""


def summarise(args: dict[str, Any]) -> dict[str, Any]:
    from eval.metrics import mean_interval
    from reasoning_rl.telemetry import read_metrics, versions

    rows: dict[str, Any] = {}
    start: dict[str, list[float]] = {"greedy": [], "sampled": []}
    for name in args["rows"]:
        folders = [folder_of(name, seed, args) for seed in args["seeds"]]
        runs = [curve(read_metrics(folder)) for folder in folders]
        died = [(folder / "died.txt").exists() for folder in folders]
        rows[name] = {
            how: interval(mean_interval, [run[how][-1] for run in runs]) for how in ("greedy", "sampled")
        }
        fell = [run["sampled"][-1] < run["sampled"][0] for run in runs]
        rows[name] |= {
            "collapsed": sum(map(max, fell, died)) / len(runs),
            "died": sum(died),
            "worst_drop": max(drop(run["sampled"]) for run in runs),
            "settings": ROWS[name],
        }
        for how, values in start.items():
            values[:] = [run[how][0] for run in runs]
    return {
        "rows": rows,
        "start": {how: interval(mean_interval, values) for how, values in start.items()},
        **{key: args[key] for key in ("answers", "stress", "seeds", "problems")},
        "versions": versions(),
    }


def curve(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Validation accuracies in the order of training, the first before it."""
    return {
        how: [row[f"valid/{how}"] for row in rows if f"valid/{how}" in row] for how in ("greedy", "sampled")
    }


def drop(values: list[float]) -> float:
    """Return the largest fall below the best before, >= 0."""
    return max(max(values[: k + 1]) - value for k, value in enumerate(values))


def table(summary: dict[str, Any]) -> str:
    lines = [
        f"PPO on {summary['answers']:,} sampled answers at {summary['stress']:g} times the quickstart's "
        f"learning rates, seeds {summary['seeds']}; accuracy on {summary['problems']} held-out problems",
        "| settings | final, greedy | final, sampled | collapse | worst drop |",
        "|---|---|---|--:|--:|",
        f"| (after SFT) | {shown(summary['start']['greedy'])} | {shown(summary['start']['sampled'])} | | |",
    ]
    for name, row in summary["rows"].items():
        lines.append(
            f"| {name} | {shown(row['greedy'])} | {shown(row['sampled'])} | {row['collapsed']:.0%} "
            f"| {row['worst_drop']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
