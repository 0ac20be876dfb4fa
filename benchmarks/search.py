"""Test-time search on the arithmetic world: accuracy against generated tokens, with and without step scores.

    python benchmarks/search.py --json search.json --plot docs/search.png

For every seed it takes the SFT policy and the PRM of a quickstart run (made first where absent) and searches
the same held-out problems with each method, n = 1 ... 64. Majority vote, best of N and weighted vote choose
among one pool of independent samples: a point is the mean over random subsets of n. Beam search and DVTS run
once for every n. At each point of a method that uses scores, majority vote is read off its own curve at the
same number of generated tokens (linear between points). Intervals are 95 % Student-t intervals over seeds.

--json FILE keys: curves.METHOD.N {accuracy: {mean, low, high, seeds}, tokens, read_tokens, num_scored} (the
last three means a problem); versus_majority.METHOD.N {tokens, majority, difference} (the same four);
verdict; settings; versions. A run that was interrupted goes on where it stopped.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from ablation import interval, prepare, shown

from data.schema import Problem
from eval.answers import extract_answer
from eval.benchmarks import make_grader
from eval.metrics import mean_interval
from eval.search.choose import choose
from eval.search.rules import Candidate, Choice, Models, Rules
from eval.search.run import read_recorded, search

SAMPLED: dict[str, Choice] = {"majority": "majority", "best of N": "best", "weighted vote": "weighted"}
GUIDED = {"beam": "beam", "DVTS": "dvts"}
NS = (1, 2, 4, 8, 16, 32, 64)
POOL = 80
"""Samples a problem: more than the largest n, for subsets that differ."""
NUM_SUBSETS = 20
LIMITS = {"max_new_tokens": 64, "step_tokens": 16, "splitter": "newline"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--difficulty", default="standard")
    parser.add_argument("--models", default="outputs/seed{seed}", help="quickstart folder of each seed")
    parser.add_argument("--output-dir", default="outputs/search")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plot", metavar="PNG")
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for seed in args.seeds:
        prepare(args.models.format(seed=seed), seed)
    points = [measure_seed(args, seed) for seed in args.seeds]
    summary = summarise(points, args)
    print(table(summary))
    if args.json:
        Path(args.json).write_text(json.dumps(summary, indent=1))
    if args.plot:
        plot(args.plot, summary)


def measure_seed(args: argparse.Namespace, seed: int) -> dict[str, dict[int, dict[str, float]]]:
    """Method -> n -> accuracy and costs of one seed's models."""
    from data.arithmetic import make_problems

    problems = make_problems(args.problems, 1000 + seed, difficulty=args.difficulty)
    models = load_models(args.models.format(seed=seed), seed)

    def run(rules: Rules) -> list[dict[str, Any]]:
        folder = Path(args.output_dir) / f"{args.difficulty}_{seed}" / f"{rules.method}_{rules.n}"
        search(
            problems,
            rules=rules,
            models=models,
            grader=make_grader("arithmetic"),
            extract=lambda response: extract_answer(response, "hash"),
            out_dir=folder,
            seed=seed,
            batch_size=50,
            settings={"difficulty": args.difficulty},
        )
        print(f"done: seed {seed}, {rules.method}, n = {rules.n}", flush=True)
        return list(read_recorded(folder / "search.jsonl").values())

    pool = run(Rules("best_of_n", POOL, **LIMITS))
    grade = grade_once(problems)
    points = {name: {n: from_pool(pool, n, how, grade) for n in NS} for name, how in SAMPLED.items()}
    for name, method in GUIDED.items():
        points[name] = {n: measure(run(Rules(method, n, **LIMITS))) for n in NS if n > 1}
    return points


def load_models(folder: str, seed: int) -> Models:
    import torch

    from prm.model import load_backbone, load_tokenizer
    from prm.scorer import LocalScorer
    from reasoning_rl.rollout.hf import HFGenerator
    from reasoning_rl.world import prompt

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    tokenizer = load_tokenizer(f"{folder}/sft/model")
    return Models(
        generator=HFGenerator(load_backbone(f"{folder}/sft/model"), tokenizer, max_batch=512, seed=seed),
        render=prompt,
        has_ended=lambda sample: sample.token_ids[-1] == tokenizer.eos_token_id,
        scorer=LocalScorer.load(f"{folder}/prm/model"),
    )


def grade_once(problems: Sequence[Problem]) -> Callable[[str, str], bool]:
    """(problem id, response) -> is it correct, each response judged once."""
    grader, by_id = make_grader("arithmetic"), {problem.id: problem for problem in problems}
    known: dict[tuple[str, str], bool] = {}

    def grade(name: str, response: str) -> bool:
        if (name, response) not in known:
            known[name, response] = grader(by_id[name], response).status == "correct"
        return known[name, response]

    return grade


def from_pool(
    rows: list[dict[str, Any]], n: int, how: Choice, grade: Callable[[str, str], bool]
) -> dict[str, float]:
    """What choosing among n of the pool's samples gives, over random subsets; costs are the subset's."""
    rng = Random(f"subsets {n}")
    correct, tokens, num_scored = [], [], []
    for row in rows:
        for _ in range(NUM_SUBSETS):
            chosen = rng.sample(row["candidates"], n)
            candidates = [
                Candidate(one["text"], one["state"], one["tokens"], (), one["score"]) for one in chosen
            ]
            index = choose(candidates, [one["answer"] for one in chosen], how)
            correct.append(index is not None and grade(row["id"], candidates[index].text))
            tokens.append(sum(one.tokens for one in candidates))
            num_scored.append(0 if how == "majority" else len({one.text for one in candidates}))
    read = fmean(row["read_tokens"] for row in rows)
    return {
        "accuracy": fmean(correct),
        "tokens": fmean(tokens),
        "read_tokens": read,
        "num_scored": fmean(num_scored),
    }


def measure(rows: list[dict[str, Any]]) -> dict[str, float]:
    costs = {name: fmean(row[name] for row in rows) for name in ("tokens", "read_tokens", "num_scored")}
    return {"accuracy": fmean(row["verdict"] == "correct" for row in rows)} | costs


def summarise(
    points: list[dict[str, dict[int, dict[str, float]]]], args: argparse.Namespace
) -> dict[str, Any]:
    from reasoning_rl.telemetry import versions

    curves: dict[str, Any] = {}
    versus: dict[str, Any] = {}
    for name in points[0]:
        for n in points[0][name]:
            seeds = [one[name][n] for one in points]
            costs = {key: fmean(one[key] for one in seeds) for key in ("tokens", "read_tokens", "num_scored")}
            accuracy = interval(mean_interval, [one["accuracy"] for one in seeds])
            curves.setdefault(name, {})[n] = {"accuracy": accuracy} | costs
            if name == "majority":
                continue
            majority = [at_tokens(one["majority"], one[name][n]["tokens"]) for one in points]
            gaps = [one["accuracy"] - other for one, other in zip(seeds, majority, strict=True)]
            versus.setdefault(name, {})[n] = {
                "tokens": costs["tokens"],
                "majority": fmean(majority),
                "difference": interval(mean_interval, gaps),
            }
    verdict = {name: judge(entries) for name, entries in versus.items()}
    return {
        "curves": curves,
        "versus_majority": versus,
        "verdict": verdict,
        "settings": {"seeds": args.seeds, "problems": args.problems, "difficulty": args.difficulty}
        | {"pool": POOL, "num_subsets": NUM_SUBSETS, "width": Rules("beam", 4).width, **LIMITS},
        "versions": versions(),
    }


def at_tokens(curve: dict[int, dict[str, float]], tokens: float) -> float:
    """A curve's accuracy at so many tokens: linear between its points, its last one beyond them."""
    before = None
    for point in curve.values():
        if point["tokens"] >= tokens:
            if before is None:
                return point["accuracy"]
            share = (tokens - before["tokens"]) / (point["tokens"] - before["tokens"])
            return before["accuracy"] + share * (point["accuracy"] - before["accuracy"])
        before = point
    assert before is not None
    return before["accuracy"]


def judge(entries: dict[int, dict[str, Any]]) -> str:
    """In words: at which n > 1 a method is above majority vote at equal tokens on every seed."""
    counted = {n: entry["difference"]["seeds"] for n, entry in entries.items() if n > 1}
    above = [n for n, gaps in counted.items() if min(gaps) > 0]
    if len(above) == len(counted):
        return "above majority vote at equal tokens, on every seed and at every n > 1"
    if not above:
        return "not above majority vote at equal tokens on every seed at any n"
    rest = ", ".join(str(n) for n in counted if n not in above)
    return f"above majority vote at equal tokens on every seed, but not at n = {rest}"


def table(summary: dict[str, Any]) -> str:
    settings = summary["settings"]
    lines = [
        f"accuracy on {settings['problems']} held-out {settings['difficulty']} problems, seeds "
        f"{settings['seeds']}; tokens and scored texts are means a problem; above majority: accuracy minus "
        "majority vote's at equal generated tokens",
        "",
        "| method | n | generated tokens | read tokens | scored texts | accuracy | above majority |",
        "|---|--:|--:|--:|--:|---|---|",
    ]
    for name, curve in summary["curves"].items():
        for n, point in curve.items():
            gap = summary["versus_majority"].get(name, {}).get(n)
            cells = [f"{point[key]:,.1f}" for key in ("tokens", "read_tokens", "num_scored")]
            difference = "" if gap is None else signed(gap["difference"])
            lines.append(
                f"| {name} | {n} | {' | '.join(cells)} | {shown(point['accuracy'])} | {difference} |"
            )
    return "\n".join([*lines, "", *(f"{name}: {text}." for name, text in summary["verdict"].items())])


def signed(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['mean']:+.3f}"
    return f"{estimate['mean']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"


def plot(path: str, summary: dict[str, Any]) -> None:
    """Accuracy against tokens, one line a method, shaded between the seeds' extremes."""
    from data.pictures import COLOURS, SOFT, drawing

    with drawing(path, size=(7, 4.2)) as (_, axis):
        for (name, curve), colour in zip(summary["curves"].items(), (SOFT, *COLOURS), strict=False):
            xs = [point["tokens"] for point in curve.values()]
            seeds = [point["accuracy"]["seeds"] for point in curve.values()]
            axis.plot(xs, [fmean(one) for one in seeds], color=colour, marker="o", markersize=3, label=name)
            axis.fill_between(xs, [min(s) for s in seeds], [max(s) for s in seeds], color=colour, alpha=0.08)
        axis.set_xscale("log", base=2)
        ticks = [2**k for k in range(5, 12)]
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set(xlabel="generated tokens a problem", ylabel="accuracy", ylim=(0, 1))
        axis.set_title("Search on the arithmetic world: mean and range of the seeds", fontsize=10)


if __name__ == "__main__":
    main()
