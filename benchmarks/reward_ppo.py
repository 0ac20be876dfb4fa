"""From pairs to a policy: two reward models, PPO-max from one of them, a duel that the other one judges.

    python benchmarks/reward_ppo.py --models outputs/seed{seed} --seeds 0 1 2 --json reward_ppo.json

For every seed, from the quickstart's SFT policy: its samples on --problems problems give pairs of a right and
a wrong answer; two reward models learn from a half of the problems each (`stepwell rm`). PPO-max is paid by
the first alone (`--reward-model`); nothing verified reaches the policy. Then it meets the SFT policy on 500
held-out problems, judged by the first model, by the second, which PPO never saw, and by the verified answer.
The first judge against the last is how far the reward was overdone.

Every part is kept under --output-dir; the same command continues what was interrupted. One thread.

--json FILE keys: seeds.SEED {pairs, rm_accuracy, gold_accuracy, greedy {sft, ppo}, kl, duels.JUDGE {win, tie,
lose}, cpu_seconds}; mean.NAME {mean, low, high} over the seeds (95 % Student-t); course: greedy accuracy and
reward of each seed at every validation of PPO (300 problems); versions.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from rivals import measure

from data.files import read_jsonl, write_atomically

PPO: dict[str, Any] = {
    "preset": "ppo_max",
    "validate_every": 4,
    "num_validation": 300,
    "save_every": 4,
    "rollout": {
        "problems_per_iteration": 64,
        "samples_per_problem": 4,
        "max_new_tokens": 64,
        "temperature": 1.0,
        "top_p": 1.0,
    },
    "reward": {"form": "none", "step_weight": 0.0, "clip": 5.0},
    "kl": {"coef": 0.03},
    "critic": {"init": "reward_model", "learning_rate": 1e-3, "value_clip_range": 0.5},
    "update": {
        "minibatch_size": 64,
        "micro_batch_tokens": 8192,
        "learning_rate": 5e-4,
        "schedule": "linear",
        "lam": 0.95,
    },
}
RM_FIT = {"learning_rate": 1e-3, "betas": [0.9, 0.98], "epochs": 3, "log_every": 20, "save_every": None}
JUDGES = ("its own reward model", "the other one", "the verified answer")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--problems", type=int, default=2000, help="problems that pairs are made from")
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--models", default="outputs/seed{seed}", help="quickstart folder of each seed")
    parser.add_argument("--output-dir", default="outputs/reward_ppo")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(1)
    found = {}
    for seed in args.seeds:
        folder = Path(args.output_dir) / f"seed{seed}"
        record = folder / "result.json"
        if not record.exists():
            started = time.process_time()
            result = run(f"{args.models.format(seed=seed)}/sft/model", folder, seed, args)
            result["cpu_seconds"] = round(time.process_time() - started)
            write_atomically(record, json.dumps(result, indent=1) + "\n")
        found[seed] = json.loads(record.read_text(encoding="utf-8"))
        print(f"seed {seed}: {json.dumps(found[seed])}", flush=True)
    summary = summarise(found, Path(args.output_dir))
    print(table(summary))
    if args.json:
        write_atomically(args.json, json.dumps(summary, indent=1) + "\n")


def run(sft: str, folder: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    pairs = [folder / f"pairs_{half}.jsonl" for half in range(2)]
    if not all(path.exists() for path in pairs):
        make_pairs(sft, pairs, args.problems, seed)
    models = [train_reward_model(sft, path, folder / f"rm_{half}", seed) for half, path in enumerate(pairs)]
    policy = train_policy(sft, models[0], folder / "ppo", seed, args.iterations)
    judges = dict(zip(JUDGES, (*models, None), strict=True))
    ours = measure(policy, sft, seed)
    return {
        "pairs": sum(1 for path in pairs for _ in read_jsonl(path)),
        "rm_accuracy": held_out(folder / "rm_0"),
        "gold_accuracy": held_out(folder / "rm_1"),
        "greedy": {"sft": measure(sft, sft, seed)["greedy"], "ppo": ours["greedy"]},
        "kl": ours["kl"],
        "duels": {
            name: duel(policy, sft, judge, folder / f"duel_{place}", seed)
            for place, (name, judge) in enumerate(judges.items())
        },
    }


def make_pairs(sft: str, paths: list[Path], num_problems: int, seed: int) -> None:
    """Write pairs of a right and a wrong sample, two a problem at most; every other problem to each file."""
    from data.arithmetic import make_problems
    from data.schema import Sampling
    from eval.benchmarks import grade_arithmetic
    from prm.model import load_backbone, load_tokenizer
    from reasoning_rl.rollout.hf import HFGenerator
    from reasoning_rl.world import prompt

    problems = make_problems(num_problems, 10 * seed + 7, split="train")
    generator = HFGenerator(load_backbone(sft), load_tokenizer(sft), max_batch=256, seed=seed)
    drawn = generator.generate(
        [prompt(p.text) for p in problems], Sampling(max_new_tokens=64, temperature=1.0, n=4, seed=seed)
    )
    rows: list[list[dict[str, str]]] = [[], []]
    for place, (problem, group) in enumerate(zip(problems, drawn, strict=True)):
        texts: dict[bool, list[str]] = {True: [], False: []}
        for text in dict.fromkeys(s.text for s in group if s.finish_reason == "stop"):
            texts[grade_arithmetic(problem, text).status == "correct"].append(text)
        rows[place % 2] += [
            {"prompt": prompt(problem.text), "chosen": right, "rejected": wrong}
            for right, wrong in zip(texts[True][:2], texts[False][:2], strict=False)
        ]
    for path, half in zip(paths, rows, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in half))


def train_reward_model(sft: str, pairs: Path, folder: Path, seed: int) -> str:
    from accelerate import Accelerator

    from reasoning_rl.compose_preference import pair_metrics
    from reasoning_rl.reward_model import RMConfig, train_reward
    from reasoning_rl.telemetry import RunLog

    if not (folder / "model").exists():
        values = {
            "model": sft,
            "data": str(pairs),
            "output_dir": str(folder),
            "fit": {**RM_FIT, "seed": seed},
        }
        train_reward(
            RMConfig.from_dict(values),
            accelerator=Accelerator(cpu=True),
            log=RunLog(folder),
            pair_metrics=pair_metrics,
            resume=True,
        )
    return str(folder / "model")


def held_out(folder: Path) -> float:
    """Share of the held-out pairs that a reward model orders right."""
    from reasoning_rl.telemetry import read_metrics

    return next(row["valid/accuracy"] for row in reversed(read_metrics(folder)) if "valid/accuracy" in row)


def train_policy(sft: str, reward_model: str, folder: Path, seed: int, iterations: int) -> str:
    from accelerate import Accelerator

    from reasoning_rl.compose import train_ppo
    from reasoning_rl.config import PPOConfig
    from reasoning_rl.presets import merge
    from reasoning_rl.telemetry import RunLog

    own = {"policy": sft, "reward_model": reward_model, "output_dir": str(folder), "seed": seed}
    config = PPOConfig.from_preset(merge(PPO, own | {"iterations": iterations}))
    if not (folder / "model").exists():
        train_ppo(config, accelerator=Accelerator(cpu=True), log=RunLog(folder), resume=True)
    return str(folder / "model")


def duel(first: str, second: str, judge: str | None, folder: Path, seed: int) -> dict[str, float]:
    from reasoning_rl.compose_duel import run_duel
    from reasoning_rl.duel import DuelConfig

    config = DuelConfig(output_dir=str(folder), reward_model=judge, seed=10 * seed + 8, split="test")
    result = run_duel(first, second, config)
    return {name: result[name]["value"] for name in ("win", "tie", "lose")}


def summarise(found: dict[int, dict[str, Any]], output_dir: Path) -> dict[str, Any]:
    from eval.metrics import mean_interval
    from reasoning_rl.telemetry import read_metrics, versions

    def over_seeds(read: Any) -> dict[str, float]:
        values = [read(result) for result in found.values()]
        low, high = mean_interval(values)
        return {"mean": sum(values) / len(values), "low": low, "high": high}

    mean = {
        "reward model, held-out pairs": over_seeds(lambda r: r["rm_accuracy"]),
        "the other one, held-out pairs": over_seeds(lambda r: r["gold_accuracy"]),
        "SFT, greedy accuracy": over_seeds(lambda r: r["greedy"]["sft"]),
        "PPO-max, greedy accuracy": over_seeds(lambda r: r["greedy"]["ppo"]),
        "KL to SFT, nats a response": over_seeds(lambda r: r["kl"]),
    }
    for judge in JUDGES:
        for name in ("win", "tie", "lose"):
            mean[f"{name}, judged by {judge}"] = over_seeds(lambda r, j=judge, n=name: r["duels"][j][n])
    runs = [read_metrics(output_dir / f"seed{seed}" / "ppo") for seed in found]
    course = [
        {
            "iteration": rows[0]["iteration"],
            "greedy": [row["valid/greedy"] for row in rows],
            "reward": [row["valid/greedy_reward"] for row in rows],
        }
        for rows in zip(*([row for row in run if "valid/greedy" in row] for run in runs), strict=True)
    ]
    return {"seeds": found, "mean": mean, "course": course, "versions": versions()}


def table(summary: dict[str, Any]) -> str:
    lines = [f"{len(summary['seeds'])} seeds", "| | mean [95 %] |", "|---|---|"]
    for name, of in summary["mean"].items():
        lines.append(f"| {name} | {of['mean']:.3f} [{of['low']:.3f}, {of['high']:.3f}] |")
    lines += ["", "| iteration | greedy accuracy of each seed | its reward |", "|--:|---|---|"]
    for at in summary["course"]:
        accuracy, reward = (", ".join(f"{v:.2f}" for v in at[name]) for name in ("greedy", "reward"))
        lines.append(f"| {at['iteration']} | {accuracy} | {reward} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
