"""Reinforcement learning from unit tests in the built-in world of programs, against its rivals.

    python benchmarks/code_rl.py --json code_rl.json

For every seed a small policy learns to write programs from demonstrations with bad habits (SFT). Every arm
starts from it and samples the same number of programs for training:

    PPO-max, tests            1 when all tests pass, else 0
    PPO-max, tests + PRM      and a code PRM's step rewards (delta form); a step is a statement
    PPO, batch 64             Xu et al., arXiv 2404.10719, Table 3: reward 10, lambda 1, KL 0.1, value norm
    + advantage norm          the same, and each line below adds to the one above
    + large batch             512
    + reference EMA
    DPO                       pairs of a right and a wrong sample of the SFT policy
    DPO + NLL                 and the chosen program's loss a token (arXiv 2404.19733)
    DPO-Iter                  in rounds, each from the policy of the round before, which is the reference too

The PRM learns from the tests alone: from each prefix of the SFT policy's programs, continuations are sampled
and run (Monte Carlo). Its tokens are counted apart. Every policy then answers held-out problems: greedily,
and with --samples at temperature 1, from which come pass@1, pass@k and n@k (n submissions out of k samples,
those that fail a shown test left out). Intervals are 95 % Student-t intervals over seeds.

A run that was stopped goes on where it was: the same command again.

--json FILE keys: arms.NAME.METRIC {mean, low, high, seeds}, METRIC greedy, sampled, pass_at_k, n_at_k, hard,
kl (nats a response, of the last batch), tokens, cpu_seconds (0 for what an earlier attempt did);
prm {step_auc, step_accuracy ...} against the world's oracle, label_tokens; seeds; settings; versions.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

XU: dict[str, Any] = {
    "reward": {"normalise": "off", "clip": 20.0, "outcome_weight": 10.0},
    "kl": {"coef": 0.1},
    "critic": {"pretrain_iterations": 0, "value_clip_range": 0.2, "value_norm": True},
    "update": {"lam": 1.0, "advantage_norm": False, "minibatch_size": 16},
    "rollout": {"problems_per_iteration": 16},
}
ADVANTAGE_NORM: dict[str, Any] = {"update": {"advantage_norm": True}}
LARGE_BATCH: dict[str, Any] = {"rollout": {"problems_per_iteration": 128}, "update": {"minibatch_size": 128}}
REFERENCE_EMA: dict[str, Any] = {"reference_ema": 0.05}
"""Once an iteration, and there are few: 0.001, the value for hundreds of updates, would do nothing here."""
PPO_ARMS: dict[str, list[dict[str, Any]]] = {
    "PPO-max, tests": [],
    "PPO-max, tests + PRM": [{"reward": {"form": "delta", "step_weight": 1.0}, "critic": {"init": "prm"}}],
    "PPO, batch 64": [XU],
    "+ advantage norm": [XU, ADVANTAGE_NORM],
    "+ large batch": [XU, ADVANTAGE_NORM, LARGE_BATCH],
    "+ reference EMA": [XU, ADVANTAGE_NORM, LARGE_BATCH, REFERENCE_EMA],
}
DPO_ARMS = {"DPO": (1, 0.0), "DPO + NLL": (1, 1.0), "DPO-Iter": (4, 0.0)}
"""Rounds, and the weight of the chosen program's own loss."""
ARMS = ("SFT", *PPO_ARMS, *DPO_ARMS)
METRICS = {
    "greedy": "pass@1 greedy",
    "sampled": "pass@1 sampled",
    "pass_at_k": "pass@{k}",
    "n_at_k": "{n}@{samples}",
    "hard": "longer programs, greedy",
    "kl": "KL (nats)",
    "tokens": "tokens",
    "cpu_seconds": "CPU s",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument(
        "--rollouts", type=int, default=3072, help="programs that an arm samples to learn from"
    )
    parser.add_argument("--demonstrations", type=int, default=12_000)
    parser.add_argument("--label-problems", type=int, default=1200)
    parser.add_argument("--problems", type=int, default=300, help="held-out problems")
    parser.add_argument("--samples", type=int, default=20, help="samples a held-out problem")
    parser.add_argument("--k", type=int, default=10, help="of pass@k")
    parser.add_argument("--submissions", type=int, default=1, help="n of n@samples")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output-dir", default="outputs/code_rl")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(args.threads)
    results = {seed: Seed(seed, args).run() for seed in args.seeds}
    summary = summarise(results, args)
    print(table(summary))
    if args.json:
        Path(args.json).write_text(json.dumps(summary, indent=1))


class Seed:
    """All stages of one seed, under one folder."""

    def __init__(self, seed: int, args: argparse.Namespace) -> None:
        from accelerate import Accelerator

        self.seed, self.args = seed, args
        self.folder = Path(args.output_dir) / f"seed{seed}"
        self.accelerator = Accelerator(cpu=True)
        self.sft = str(self.folder / "sft" / "model")

    def run(self) -> dict[str, Any]:
        sft = self.stage("sft", self.train_sft)
        arms = {"SFT": sft | {"kl": 0.0}}
        prm: dict[str, Any] = {}
        for name in self.args.arms:
            if name == "PPO-max, tests + PRM":
                labels = self.stage("label", self.label)
                prm = self.stage("prm", self.train_prm) | {"label_tokens": labels["tokens"]}
            if name in PPO_ARMS:
                arms[name] = self.stage(name, lambda name=name: self.train_ppo(name))
            elif name in DPO_ARMS:
                arms[name] = self.stage(name, lambda name=name: self.train_dpo(name))
        for name in arms:
            model = self.sft if name == "SFT" else str(self.arm_folder(name) / "model")
            arms[name] |= self.stage(f"eval {name}", lambda model=model: self.evaluate(model))
        return {"arms": arms, "prm": prm}

    def stage(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stage's record, from an earlier run where that finished it."""
        path = self.folder / f"{name.replace(' ', '_')}.json"
        if not path.exists():
            started = time.process_time()
            record = run()
            if "cpu_seconds" not in record and not name.startswith("eval"):
                record["cpu_seconds"] = round(time.process_time() - started, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, indent=1))
        record = json.loads(path.read_text())
        print(f"seed {self.seed}, {name}: {shown_record(record)}", flush=True)
        return record

    def arm_folder(self, name: str) -> Path:
        return self.folder / name.replace(" ", "_").replace(",", "")

    def train_sft(self) -> dict[str, Any]:
        from data.world_tokenizer import program_tokenizer
        from prm.checkpoint import save_model
        from prm.fit import FitConfig, fit
        from reasoning_rl.program_world import SFT_FIT, program_demonstrations
        from reasoning_rl.sft import NextToken, encode_pairs
        from reasoning_rl.telemetry import RunLog
        from reasoning_rl.world import WorldConfig, new_policy

        folder, tokenizer = self.folder / "sft", program_tokenizer()
        policy = new_policy(tokenizer, WorldConfig(), self.seed)
        pairs = encode_pairs(tokenizer, program_demonstrations(self.args.demonstrations, 10 * self.seed + 1))
        fit(
            policy,
            pairs,
            NextToken(),
            FitConfig(seed=self.seed, **SFT_FIT),
            accelerator=self.accelerator,
            run_dir=folder,
            log=RunLog(folder),
            resume=True,
        )
        save_model(folder / "model", policy, tokenizer)
        return {"tokens": sum(map(len, pairs))}

    def label(self) -> dict[str, Any]:
        """Monte Carlo labels of the SFT policy's statements."""
        from prm.labelling.settings import LabelConfig
        from reasoning_rl.labelling import label_benchmark
        from reasoning_rl.program_world import LABEL

        config = LabelConfig(
            model=self.sft,
            output_dir=str(self.folder / "label"),
            limit=self.args.label_problems,
            seed=10 * self.seed + 2,
            **LABEL,
        )
        labelled, _ = label_benchmark("programs", config)
        return {"tokens": labelled.cost.tokens, "rollouts": labelled.cost.rollouts}

    def train_prm(self) -> dict[str, Any]:
        """A PRM on these labels, and how well it knows the oracle's."""
        from eval.metrics import solution_metrics
        from prm.fit import FitConfig
        from prm.scorer import LocalScorer
        from prm.train import PRMConfig, train_prm
        from reasoning_rl.program_world import PRM_FIT, labelled_program_samples
        from reasoning_rl.telemetry import RunLog

        folder = self.folder / "prm"
        config = PRMConfig(
            data=str(self.folder / "label" / "labels.jsonl"),
            model=self.sft,
            extra_layers=1,
            supervise="all",
            output_dir=str(folder),
            fit=FitConfig(seed=self.seed, **PRM_FIT),
        )
        model = train_prm(
            config,
            accelerator=self.accelerator,
            log=RunLog(folder),
            step_metrics=solution_metrics,
            resume=(folder / "checkpoints").exists(),
        )
        known = labelled_program_samples(self.generator(self.sft), 300, 10 * self.seed + 3)
        scores = LocalScorer.load(model).score([s.problem for s in known], [s.steps for s in known])
        metrics = solution_metrics([s.labels for s in known], scores, 0.5)
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def train_ppo(self, name: str) -> dict[str, Any]:
        from reasoning_rl.compose import train_ppo
        from reasoning_rl.config import PPOConfig
        from reasoning_rl.presets import merge
        from reasoning_rl.program_world import PROGRAM_PPO
        from reasoning_rl.telemetry import RunLog, read_metrics

        folder = self.arm_folder(name)
        values = merge(
            PROGRAM_PPO,
            {"policy": self.sft, "output_dir": str(folder), "seed": self.seed, "num_validation": 0},
        )
        for changes in PPO_ARMS[name]:
            values = merge(values, changes)
        if values["reward"]["form"] != "none":
            values["prm"] = str(self.folder / "prm" / "model")
        batch = math.prod(values["rollout"][key] for key in ("problems_per_iteration", "samples_per_problem"))
        values["iterations"] = self.args.rollouts // batch
        train_ppo(
            PPOConfig.from_preset(values), accelerator=self.accelerator, log=RunLog(folder), resume=True
        )
        rows = [row for row in read_metrics(folder) if row["iteration"] > 0]
        return {
            "tokens": int(sum(row["rollout/tokens"] for row in rows)),
            "kl": rows[-1]["policy/kl_per_response"],
            "outcomes": [round(row["reward/outcome"], 4) for row in rows],
        }

    def train_dpo(self, name: str) -> dict[str, Any]:
        from reasoning_rl.compose_preference import train_dpo_iter
        from reasoning_rl.dpo_iter import DPOIterConfig
        from reasoning_rl.program_world import PROGRAM_DPO
        from reasoning_rl.telemetry import RunLog, read_metrics

        folder, (rounds, sft_coef) = self.arm_folder(name), DPO_ARMS[name]
        samples = PROGRAM_DPO["rollout"]["samples_per_problem"]
        values = PROGRAM_DPO | {
            "policy": self.sft,
            "output_dir": str(folder),
            "seed": self.seed,
            "rounds": rounds,
            "preference": PROGRAM_DPO["preference"] | {"sft_coef": sft_coef},
            "num_validation": 0,
            "rollout": PROGRAM_DPO["rollout"]
            | {"problems_per_iteration": self.args.rollouts // rounds // samples},
        }
        train_dpo_iter(
            DPOIterConfig.from_dict(values), accelerator=self.accelerator, log=RunLog(folder), resume=True
        )
        rows = [row for row in read_metrics(folder) if row["iteration"] > 0]
        return {
            "tokens": int(sum(row["rollout/tokens"] for row in rows)),
            "pairs": [row["pairs/count"] for row in rows],
        }

    def evaluate(self, model: str) -> dict[str, Any]:
        """Shares of held-out problems solved: greedily, by one sample, by k, by n chosen from all."""
        from data.grading import grade_all
        from data.programs import make_programs
        from eval.benchmarks import make_grader
        from eval.metrics import pass_at_k
        from eval.submissions import n_at_k

        args, grader = self.args, make_grader("programs")
        problems = make_programs(args.problems, 10 * self.seed)
        harder = make_programs(args.problems, 10 * self.seed, difficulty="hard")
        shares = {}
        for name, some in (("greedy", problems), ("hard", harder)):
            texts = [group[0] for group in self.answers(model, some, 1, 0.0)]
            shares[name] = mean(v.status == "correct" for v in grade_all(grader, some, texts))
        groups = self.answers(model, problems, args.samples, 1.0)
        owners = [p for p in problems for _ in range(args.samples)]
        shown = [replace(p, id=f"{p.id}/public", meta={**p.meta, **p.meta["public"]}) for p in owners]
        flat = [text for group in groups for text in group]
        right, public = (
            [v.status == "correct" for v in grade_all(grader, some, flat)] for some in (owners, shown)
        )
        rows = [slice(k, k + args.samples) for k in range(0, len(flat), args.samples)]
        counts = [sum(right[row]) for row in rows]
        return shares | {
            "sampled": mean(count / args.samples for count in counts),
            "pass_at_k": mean(pass_at_k(args.samples, count, args.k) for count in counts),
            "n_at_k": mean(n_at_k(public[r], right[r], args.submissions, args.samples) for r in rows),
        }

    def answers(self, model: str, problems: Any, n: int, temperature: float) -> list[list[str]]:
        from data.schema import Sampling
        from reasoning_rl.program_world import MAX_NEW_TOKENS
        from reasoning_rl.world import prompt

        sampling = Sampling(max_new_tokens=2 * MAX_NEW_TOKENS, n=n, temperature=temperature, seed=self.seed)
        drawn = self.generator(model).generate([prompt(p.text) for p in problems], sampling)
        return [[sample.text for sample in group] for group in drawn]

    def generator(self, model: str) -> Any:
        from prm.model import load_backbone, load_tokenizer
        from reasoning_rl.rollout.hf import HFGenerator

        return HFGenerator(load_backbone(model), load_tokenizer(model), max_batch=500, seed=self.seed)


def mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)


def summarise(results: dict[int, dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    from eval.metrics import mean_interval
    from reasoning_rl.telemetry import versions

    def over_seeds(records: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
        if any(metric not in record for record in records):
            return None
        values = [record[metric] for record in records]
        bounds = [bound if math.isfinite(bound) else None for bound in mean_interval(values)]
        return {"mean": mean(values), "low": bounds[0], "high": bounds[1], "seeds": values}

    names = list(next(iter(results.values()))["arms"])
    arms = {
        name: {
            metric: found
            for metric in METRICS
            if (found := over_seeds([result["arms"][name] for result in results.values()], metric))
        }
        for name in names
    }
    prms = [result["prm"] for result in results.values() if result["prm"]]
    prm = {metric: over_seeds(prms, metric) for metric in (prms[0] if prms else ())}
    return {
        "arms": arms,
        "prm": prm,
        "seeds": list(results),
        "settings": {key: value for key, value in vars(args).items() if key not in ("json", "output_dir")},
        "versions": versions(),
    }


def table(summary: dict[str, Any]) -> str:
    settings = summary["settings"]
    heads = [
        text.format(k=settings["k"], n=settings["submissions"], samples=settings["samples"])
        for text in METRICS.values()
    ]
    lines = [
        f"{settings['problems']} held-out problems, {settings['rollouts']:,} programs sampled by each arm, "
        f"seeds {summary['seeds']}",
        "| | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name, arm in summary["arms"].items():
        lines.append(f"| {name} | " + " | ".join(shown(arm.get(metric)) for metric in METRICS) + " |")
    if summary["prm"]:
        prm = summary["prm"]
        lines.append(
            f"\ncode PRM against the oracle: AUC {shown(prm['step_auc'])}, step accuracy "
            f"{shown(prm['step_accuracy'])}, from {shown(prm['label_tokens'])} tokens of labelling"
        )
    return "\n".join(lines)


def shown(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return ""
    if estimate["mean"] >= 100:
        return f"{estimate['mean']:,.0f}"
    if estimate["low"] is None:  # a single seed says nothing about the spread
        return f"{estimate['mean']:.3f}"
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def shown_record(record: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:,.4g}" for k, v in record.items() if isinstance(v, int | float))


if __name__ == "__main__":
    main()
