"""PPO-max and its rivals in the offline arithmetic world, at equal sampled tokens: one table.

    python benchmarks/rivals.py --models outputs/seed{seed} --seeds 0 1 2 --json rivals.json

Every run starts from the quickstart's SFT policy of its seed (and, where the row says + PRM, its PRM) and
samples 4,096 responses, about 110,000 tokens: 16 iterations of 64 problems x 4 for the online methods, 4
rounds of 256 x 4 for the iterative ones, 1 round of 1,024 x 4 for the others. Every run is one process with
one thread; a run that was interrupted goes on, one that is finished is not done again.

    accuracy     on 500 test problems, greedy and at temperature 1; mean over the seeds with its 95 % interval
    area         mean accuracy at temperature 1 over the tokens sampled so far, on 300 validation problems:
                 online methods between validations on a straight line, the others keep a round's policy until
                 the next one is trained
    KL           nats a response between the final policy and SFT, on its own samples
    CPU s        of the whole run, sampling and validations included

Learning rates are those of the quickstart (online) and of a few trials on seed 0 (the others): no sweep.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from data.files import write_atomically
from data.machine import cpu_count

ITERATIONS, PROBLEMS, SAMPLES = 16, 64, 4
OUTCOME = {"form": "none", "step_weight": 0.0}
STEPS = {"form": "delta", "step_weight": 1.0}
ONLINE: dict[str, Any] = {
    "iterations": ITERATIONS,
    "validate_every": 4,
    "num_validation": 300,
    "save_every": 8,
    "rollout": {
        "problems_per_iteration": PROBLEMS,
        "samples_per_problem": SAMPLES,
        "max_new_tokens": 64,
        "temperature": 1.0,
        "top_p": 1.0,
    },
    "update": {
        "minibatch_size": 64,
        "micro_batch_tokens": 8192,
        "learning_rate": 5e-4,
        "schedule": "linear",
    },
}
VANILLA = {"preset": "vanilla", "critic": {"learning_rate": 1e-3}}
PPO_MAX = {
    "preset": "ppo_max",
    "kl": {"coef": 0.03},
    "reward": {"clip": 5.0},
    "critic": {"learning_rate": 1e-3, "value_clip_range": 0.5},
    "update": {"lam": 0.95},
}
CRITIC_FREE = {"kl": {"coef": 0.03}}
ROUND: dict[str, Any] = {
    "num_validation": 300,
    "rollout": {"samples_per_problem": SAMPLES, "max_new_tokens": 64},
    "fit": {"learning_rate": 3e-4, "betas": [0.9, 0.98], "epochs": 2, "log_every": 10, "save_every": None},
}
WHOLE = {"rounds": 1, "rollout": {"problems_per_iteration": ITERATIONS * PROBLEMS}}
ITERATED = {"rounds": 4, "rollout": {"problems_per_iteration": ITERATIONS * PROBLEMS // 4}}
IMITATE = {"fit": {"learning_rate": 1e-3}}
NLL = {"preference": {"sft_coef": 1.0}}
"""As in Iterative RPO, arXiv 2404.19733; without it both sides of a pair may lose their likelihood."""
GENTLE = {"fit": {"learning_rate": 1e-4}}
"""Step-DPO's rate is far below SFT's too (arXiv 2406.18629, its code)."""

ARMS: dict[str, tuple[str, bool, list[dict[str, Any]]]] = {
    "RFT": ("rft", False, [WHOLE, IMITATE]),
    "RFT + PRM": ("rft", True, [WHOLE, IMITATE, {"min_step_score": 0.5}]),
    "DPO without NLL": ("dpo", False, [WHOLE]),
    "DPO": ("dpo", False, [WHOLE, NLL]),
    "DPO + PRM": ("dpo", True, [WHOLE, NLL, {"score": "both"}]),
    "step-DPO + PRM": ("dpo", True, [WHOLE, GENTLE, {"pairs": "steps"}]),
    "DPO-Iter": ("dpo", False, [ITERATED, NLL]),
    "DPO-Iter + PRM": ("dpo", True, [ITERATED, NLL, {"score": "both"}]),
    "GRPO": ("ppo", False, [{"preset": "grpo", "algorithm": "grpo"}, CRITIC_FREE]),
    "GRPO + PRM": ("ppo", True, [{"preset": "grpo", "algorithm": "grpo"}, CRITIC_FREE]),
    "RLOO": ("ppo", False, [{"preset": "rloo"}, CRITIC_FREE]),
    "RLOO + PRM": ("ppo", True, [{"preset": "rloo"}, CRITIC_FREE]),
    "REINFORCE++": ("ppo", False, [{"preset": "reinforce_pp"}, CRITIC_FREE]),
    "REINFORCE++ + PRM": ("ppo", True, [{"preset": "reinforce_pp"}, CRITIC_FREE]),
    "vanilla PPO": ("ppo", False, [VANILLA]),
    "vanilla PPO + PRM": ("ppo", True, [VANILLA]),
    "PPO-max": ("ppo", False, [PPO_MAX, {"critic": {"init": "policy"}}]),
    "PPO-max + PRM": ("ppo", True, [PPO_MAX]),
}
"""Row -> (what runs it, whether it sees the PRM, settings laid over one another)."""


def main() -> None:
    options = read_options()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    names = options.rows or list(ARMS)
    if unknown := [name for name in names if name not in ARMS]:
        raise SystemExit(f"unknown row '{unknown[0]}'; known: {', '.join(ARMS)}")
    models = {seed: options.models.format(seed=seed) for seed in options.seeds}
    missing = [f"{folder}/{part}/model" for folder in models.values() for part in ("sft", "prm")]
    if missing := [path for path in missing if not Path(path, "config.json").exists()]:
        raise SystemExit(f"{missing[0]}: missing; make it with stepwell quickstart --seed N --output-dir ...")
    work = [(name, seed) for seed in options.seeds for name in ("SFT", *names)]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(run, name, seed, models[seed], folder_of(options.output_dir, name, seed))
            for name, seed in work
        ]
        for (name, seed), future in zip(work, futures, strict=True):
            found = future.result()
            print(
                f"done: {name}, seed {seed}: greedy {found['greedy']:.3f}, sampled {found['sampled']:.3f}, "
                f"{found['tokens']:,.0f} tokens, {found['cpu_seconds']:.0f} CPU s",
                flush=True,
            )
    summary = summarise(["SFT", *names], options.seeds, options.output_dir)
    print(table(summary))
    if options.json:
        write_atomically(options.json, json.dumps(summary, indent=1) + "\n")


def folder_of(output_dir: str, name: str, seed: int) -> str:
    return f"{output_dir}/{name.replace(' ', '_')}_{seed}"


def run(name: str, seed: int, models: str, folder: str) -> dict[str, Any]:
    """Train one row with one seed, unless that is done; measure the policy; return its figures."""
    import torch

    torch.set_num_threads(1)
    record = Path(folder) / "rival.json"
    if record.exists():
        return json.loads(record.read_text(encoding="utf-8"))
    curve: list[dict[str, float]] = []
    spent = Path(folder) / "cpu_seconds.json"
    before = json.loads(spent.read_text()) if spent.exists() else 0.0
    started = time.process_time()
    policy = f"{models}/sft/model"
    if name != "SFT":
        if not Path(folder, "model").exists():
            train(name, seed, models, folder)
            write_atomically(spent, json.dumps(before + time.process_time() - started))
        curve, policy = read_curve(folder), f"{folder}/model"
    result = {
        **measure(policy, f"{models}/sft/model", seed),
        "curve": curve,
        "tokens": curve[-1]["tokens"] if curve else 0.0,
        "cpu_seconds": json.loads(spent.read_text()) if spent.exists() else 0.0,
    }
    write_atomically(record, json.dumps(result) + "\n")
    return result


def train(name: str, seed: int, models: str, folder: str) -> None:
    from accelerate import Accelerator

    from reasoning_rl.telemetry import RunLog

    config, go = configure(name, seed, models, folder)
    saved = Path(folder) / "config.yaml"
    if saved.exists() and type(config).from_yaml(saved) != config:
        raise SystemExit(f"{folder} holds a run with other settings; choose another --output-dir")
    config.to_yaml(saved)
    go(config, accelerator=Accelerator(cpu=True), log=RunLog(folder), resume=True)


def configure(name: str, seed: int, models: str, folder: str) -> tuple[Any, Callable[..., Any]]:
    """Return a row's settings and the function that runs them."""
    from reasoning_rl.compose import train_ppo
    from reasoning_rl.compose_preference import train_dpo_iter, train_rft
    from reasoning_rl.config import PPOConfig
    from reasoning_rl.dpo_iter import DPOIterConfig
    from reasoning_rl.presets import merge
    from reasoning_rl.rft import RFTConfig

    kind, with_prm, layers = ARMS[name]
    settings = ONLINE if kind == "ppo" else ROUND
    own: dict[str, Any] = {"policy": f"{models}/sft/model", "output_dir": folder, "seed": seed}
    if with_prm:
        own["prm"] = f"{models}/prm/model"
    if kind == "ppo":
        own["reward"] = STEPS if with_prm else OUTCOME
    for layer in (*layers, own):
        settings = merge(settings, layer)
    make, go = {
        "ppo": (PPOConfig.from_preset, train_ppo),
        "dpo": (DPOIterConfig.from_dict, train_dpo_iter),
        "rft": (RFTConfig.from_dict, train_rft),
    }[kind]
    return make(settings), go


def read_curve(folder: str) -> list[dict[str, float]]:
    """Return tokens sampled so far and accuracy at every validation; `held` says that nothing was learned
    between it and the one before."""
    from reasoning_rl.telemetry import read_metrics

    tokens, curve = 0.0, []
    held = float(any(Path(folder).glob("round_*")))
    for row in read_metrics(folder):
        tokens += row.get("rollout/tokens", 0.0)
        if "valid/sampled" in row:
            curve.append({"tokens": tokens, "sampled": row["valid/sampled"], "held": held})
    return curve


def measure(policy: str, reference: str, seed: int) -> dict[str, float]:
    """Return accuracy on 500 test problems, greedy and sampled, and the KL to the reference."""
    from data.arithmetic import make_problems
    from data.schema import Sampling
    from eval.benchmarks import grade_arithmetic
    from prm.model import load_backbone, load_tokenizer
    from reasoning_rl.rollout.hf import HFGenerator
    from reasoning_rl.world import prompt

    problems = make_problems(500, 10 * seed, split="test")
    model, tokenizer = load_backbone(policy), load_tokenizer(policy)
    generator = HFGenerator(model, tokenizer)
    found = {}
    for how, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        sampling = Sampling(max_new_tokens=128, temperature=temperature, seed=seed)
        drawn = [group[0] for group in generator.generate([prompt(p.text) for p in problems], sampling)]
        right = sum(
            grade_arithmetic(p, s.text).status == "correct" for p, s in zip(problems, drawn, strict=True)
        )
        found[how] = right / len(problems)
    return {**found, "kl": kl_per_response(model, load_backbone(reference), drawn)}


def kl_per_response(policy: Any, reference: Any, samples: Any) -> float:
    """Return the mean of log pi - log pi_ref over whole responses that the policy sampled, in nats."""
    import torch

    from reasoning_rl.reference_logprobs import response_logprobs
    from reasoning_rl.sft import EncodedPair, NextToken

    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(samples), 50):
            pairs = [
                EncodedPair([*s.prompt_ids, *s.token_ids], len(s.prompt_ids))
                for s in samples[start : start + 50]
            ]
            batch = NextToken().collate(pairs)
            difference = response_logprobs(policy, batch) - response_logprobs(reference, batch)
            total += float(difference.double().sum())
    return total / len(samples)


def summarise(names: list[str], seeds: list[int], output_dir: str) -> dict[str, Any]:
    from eval.metrics import mean_interval
    from reasoning_rl.telemetry import versions

    runs = {
        (name, seed): json.loads(Path(folder_of(output_dir, name, seed), "rival.json").read_text())
        for name in names
        for seed in seeds
    }
    tokens = min(found["tokens"] for (name, _), found in runs.items() if name != "SFT")
    rows = {}
    for name in names:
        mine = [runs[name, seed] for seed in seeds]
        values = {
            **{key: [found[key] for found in mine] for key in ("greedy", "sampled", "kl", "cpu_seconds")},
            "area": [area(found["curve"], tokens) for found in mine] if name != "SFT" else [],
        }
        rows[name] = {key: interval(mean_interval, found) for key, found in values.items() if found}
    return {"tokens": int(tokens), "seeds": seeds, "rows": rows, "versions": versions()}


def area(curve: list[dict[str, float]], tokens: float) -> float:
    """Return the mean of a curve over [0, tokens]: straight between points, or held until the next one."""
    total = 0.0
    for before, after in zip(curve, curve[1:], strict=False):
        right = min(after["tokens"], tokens)
        width = right - before["tokens"]
        if width <= 0:
            break
        if after["held"]:
            total += width * before["sampled"]
        else:
            share = width / (after["tokens"] - before["tokens"])
            reached = before["sampled"] + share * (after["sampled"] - before["sampled"])
            total += width * (before["sampled"] + reached) / 2
    return total / tokens


def interval(mean_interval: Any, values: list[float]) -> dict[str, Any]:
    bounds = [bound if math.isfinite(bound) else None for bound in mean_interval(values)]
    return {"mean": sum(values) / len(values), "low": bounds[0], "high": bounds[1], "seeds": values}


def table(summary: dict[str, Any]) -> str:
    lines = [
        f"500 test problems after {summary['tokens']:,} sampled tokens, seeds {summary['seeds']}",
        "| method | greedy | sampled | area | KL | CPU s |",
        "|---|---|---|---|--:|--:|",
    ]
    for name, row in summary["rows"].items():
        cells = [shown(row[key]) if key in row else "" for key in ("greedy", "sampled", "area")]
        seconds = f"{row['cpu_seconds']['mean']:.0f}" if row["cpu_seconds"]["mean"] else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {row['kl']['mean']:.2f} | {seconds} |")
    return "\n".join(lines)


def shown(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:  # a single seed says nothing about the spread
        return f"{estimate['mean']:.3f}"
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", help="only these rows of the table")
    parser.add_argument("--jobs", type=int, default=cpu_count(), help="runs side by side")
    parser.add_argument("--models", default="outputs/seed{seed}", help="quickstart folder of each seed")
    parser.add_argument("--output-dir", default="outputs/rivals")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
