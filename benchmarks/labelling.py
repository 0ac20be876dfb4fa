"""Automatic step labels against the exact oracle of the arithmetic world: accuracy, cost, method by method.

    python benchmarks/labelling.py --work outputs/labelling --json labelling.json
    python benchmarks/labelling.py --policy outputs/quickstart/sft/model --operations 2 4    # quicker

The policy whose rollouts label is trained here (or given: --policy FOLDER): a 0.64 M parameter model on
demonstrations with mistakes, for problems of 3 to 7 operations (--operations); --start spares it learning to
add. So is the judge of the consensus filter. Nothing is downloaded; everything depends on --seed (and the
policy given) alone.

Keys of the JSON: `policy` (accuracy of its answers), `monte_carlo.K` (step_accuracy: labels "some of K
rollouts right" that equal the oracle's; balanced_accuracy: mean over right and wrong steps; soft_accuracy:
the same with the value cut at 1/2; soft_auc; first_error_accuracy: wrong solutions whose first error is
located; rollouts), `planted` (evaluations and accuracy of the binary search on planted errors, by length),
`errors.METHOD.K` (located errors, first_error_accuracy, rollouts, rollouts_per_error, tokens),
`matched` (rollouts an error of each method at the accuracy OmegaPRM reaches), `consensus`.
"""

import argparse
import bisect
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from accelerate import Accelerator
from labelling_tables import show

from data.arithmetic import Difficulty, Habits, demonstrate, label_solution, make_problems
from data.schema import Problem, Sampling, StepSolution
from data.world_tokenizer import word_tokenizer
from eval.benchmarks import make_grader
from prm.checkpoint import save_model
from prm.fit import FitConfig, fit
from prm.labelling.completer import Completer, Estimate, run_searches
from prm.labelling.judge import JudgeFormat, judge_solutions
from prm.labelling.prefixes import PrefixValues, find_first_error, label_every_prefix
from prm.labelling.tree import TreeSettings, grow_tree
from prm.model import load_backbone, load_tokenizer
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.sft import NextToken, encode_pairs
from reasoning_rl.world import WorldConfig, new_policy, prompt

HABITS = Habits(fewer_as_more=0.2, times_as_more=0.2, slip=0.03)
KS = (1, 2, 4, 8, 16, 32)
TREE_KS = (4, 8, 16)
MAX_NEW_TOKENS = 96


class Silent:
    def __call__(self, iteration: int, metrics: Any) -> None:
        return

    def rewind(self, iteration: int) -> None:
        return


@dataclass
class Bench:
    """What the measurements share."""

    policy: Any
    tokenizer: Any
    seed: int
    policy_folder: Path
    lengths: Difficulty

    def completer(self, k: int, seed: int) -> Completer:
        return Completer(
            HFGenerator(self.policy, self.tokenizer, max_batch=512),
            make_grader("arithmetic"),
            prompt=prompt,
            sampling=Sampling(max_new_tokens=MAX_NEW_TOKENS, n=k, seed=1_000_003 * self.seed + seed),
        )


def teach(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], folder: Path, seed: int) -> Any:
    """Fine-tune in place, save, and return the model."""
    config = FitConfig(
        learning_rate=3e-3, batch_size=32, betas=(0.9, 0.98), micro_batch_tokens=2048, seed=seed, log_every=50
    )
    fit(
        model,
        encode_pairs(tokenizer, pairs),
        NextToken(),
        config,
        accelerator=Accelerator(cpu=True),
        run_dir=folder / "run",
        log=Silent(),
    )
    save_model(folder / "model", model, tokenizer)
    return model


def make_policy(
    folder: Path, count: int, seed: int, *, lengths: Difficulty, start: Path | None = None
) -> tuple[Any, Any]:
    """Return (model, tokenizer), trained unless an earlier run left it in `folder`."""
    if (folder / "model").exists():
        return load_backbone(folder / "model"), load_tokenizer(folder / "model")
    rng, tokenizer = Random(f"labelling {seed}"), word_tokenizer()
    problems = make_problems(count, 100 + seed, split="train", difficulty=lengths)
    pairs = [(prompt(p.text), demonstrate(p, rng, HABITS)) for p in problems]
    model = load_backbone(start) if start else new_policy(tokenizer, WorldConfig(), seed)
    return teach(model, tokenizer, pairs, folder, seed), tokenizer


def oracle(problem: Problem, steps: Sequence[str]) -> StepSolution:
    return label_solution(problem, "\n".join(steps))


# --- measurements ----------------------------------------------------------------------------------------


def sample_solutions(
    bench: Bench, problems: Sequence[Problem], each: int
) -> list[tuple[Problem, tuple[str, ...], bool]]:
    """Return distinct (problem, steps, answer is right) sampled from the policy."""
    drawn = bench.completer(each, 1).sample([(p, ()) for p in problems], each)
    found = []
    for problem, row in zip(problems, drawn, strict=True):
        for steps, right in dict.fromkeys((c.steps, c.is_correct) for c in row):
            if steps and right is not None:
                found.append((problem, steps, right))
    return found


def measure_monte_carlo(bench: Bench, solutions: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return label quality by K, and located errors by K for the solutions with a wrong answer.

    One draw of the largest K; smaller ones are its first rollouts, as independent as fresh ones.
    """
    completer = bench.completer(max(KS), 2)
    keys = list(dict.fromkeys((p.text, s[:k]) for p, s, _ in solutions for k in range(1, len(s))))
    by_text = {p.text: p for p, _, _ in solutions}
    estimates = completer.evaluate([(by_text[text], prefix) for text, prefix in keys])
    known = dict(zip(keys, estimates, strict=True))
    labels, errors = {}, {}
    for k in KS:
        cut = {key: Estimate(e.continuations[:k]) for key, e in known.items()}
        rows = []
        for problem, steps, right in solutions:
            search = label_every_prefix(steps, right)
            found = _answer(search, lambda prefix, text=problem.text, cut=cut: cut[text, prefix])
            rows.append((oracle(problem, steps), found, right))
        labels[str(k)] = _label_quality(rows) | {"rollouts": k * len(keys)}
        wrong = [(truth, found) for truth, found, right in rows if not right]
        needed = {
            (truth.problem, found.steps[:n]) for truth, found in wrong for n in range(1, len(found.steps))
        }
        tokens = sum(c.tokens for key in needed for c in cut[key].continuations)
        errors[str(k)] = _errors(wrong, len(wrong) + k * len(needed), tokens)
    return labels, errors


def measure_binary_search(bench: Bench, solutions: Sequence[Any], k: int) -> dict[str, Any]:
    completer = bench.completer(k, 3)
    wrong = [(p, s) for p, s, right in solutions if not right]
    found = run_searches(completer, [(p, find_first_error(s, False)) for p, s in wrong])
    rows = [(oracle(p, s), f) for (p, s), f in zip(wrong, found, strict=True)]
    return _errors(rows, len(wrong) + completer.cost.rollouts, completer.cost.tokens)


def measure_tree(bench: Bench, problems: Sequence[Problem], k: int, searches: int) -> dict[str, Any]:
    completer = bench.completer(k, 4)
    settings = TreeSettings(searches=searches, length_scale=float(MAX_NEW_TOKENS))
    trees = run_searches(completer, [(p, grow_tree(settings)) for p in problems])
    rows = [(oracle(p, f.steps), f) for p, t in zip(problems, trees, strict=True) for f in t.found]
    return _errors(rows, completer.cost.rollouts, completer.cost.tokens)


def measure_planted(bench: Bench, problems: Sequence[Problem], k: int) -> dict[str, Any]:
    """Plant one wrong result in each gold solution, let the error spread, and search for it."""
    rng, planted = Random(bench.seed), []
    for problem in problems:
        gold = problem.solution.split("\n")
        at = rng.randrange(len(gold))
        steps = (*gold[:at], *[_off_by_one(step) for step in gold[at:]])
        planted.append((problem, steps, at))
    completer = bench.completer(k, 5)
    found = run_searches(completer, [(p, find_first_error(s, False)) for p, s, _ in planted])
    rows: dict[int, list[tuple[int, bool]]] = {}
    for (_, steps, at), f in zip(planted, found, strict=True):
        rows.setdefault(len(steps), []).append((f.evaluations, f.first_error == at))
    return {
        str(length): {
            "solutions": len(of),
            "most_evaluations": max(e for e, _ in of),
            "allowed": math.ceil(math.log2(length)) + 1,
            "brute_force": length - 1,
            "accuracy": sum(hit for _, hit in of) / len(of),
        }
        for length, of in sorted(rows.items())
    }


def measure_consensus(
    bench: Bench, solutions: Sequence[Any], folder: Path, count: int, k: int
) -> dict[str, Any]:
    """Train a judge on oracle labels of other problems, and keep what it and the rollouts agree on.

    The judge writes "#### i" for a first error in step i, and the number of steps where there is none.
    """
    if (folder / "model").exists():
        judge = load_backbone(folder / "model")
    else:
        problems = make_problems(count, 200 + bench.seed, split="train", difficulty=bench.lengths)
        pairs = []
        for problem, steps, _ in sample_solutions(replace(bench, seed=bench.seed + 50), problems, 1):
            first = oracle(problem, steps).first_error
            pairs.append((_question(problem.text, steps), f"#### {len(steps) if first == -1 else first}"))
        judge = teach(load_backbone(bench.policy_folder), bench.tokenizer, pairs, folder, bench.seed)

    def read(response: str, num_steps: int) -> int | None:
        digits = response.removeprefix("#### ")
        if not digits.isdecimal() or int(digits) > num_steps:
            return None
        return -1 if int(digits) == num_steps else int(digits)

    verdicts = judge_solutions(
        HFGenerator(judge, bench.tokenizer),
        [(p.text, s) for p, s, _ in solutions],
        sampling=Sampling(max_new_tokens=8, temperature=0.0),
        form=JudgeFormat(_question, read),
    )
    completer = bench.completer(k, 6)
    found = run_searches(completer, [(p, label_every_prefix(s, right)) for p, s, right in solutions])
    rows = [
        (oracle(p, s).first_error, f.first_error, verdict)
        for (p, s, _), f, verdict in zip(solutions, found, verdicts, strict=True)
    ]
    kept = [(truth, f) for truth, f, verdict in rows if f == verdict]
    return {
        "k": k,
        "solutions": len(rows),
        "rollouts_alone": sum(truth == f for truth, f, _ in rows) / len(rows),
        "judge_alone": sum(truth == verdict for truth, _, verdict in rows) / len(rows),
        "kept": len(kept) / len(rows),
        "agreed": sum(truth == f for truth, f in kept) / max(len(kept), 1),
    }


# --- figures ---------------------------------------------------------------------------------------------


def _answer(search: Any, lookup: Any) -> PrefixValues:
    """Run a search on estimates that are already there."""
    answer = None
    while True:
        try:
            asked = search.send(answer)
        except StopIteration as stop:
            return stop.value
        answer = [lookup(prefix) for prefix in asked]


def _label_quality(rows: Sequence[tuple[StepSolution, PrefixValues, bool]]) -> dict[str, float]:
    pairs = [
        (truth == 1, value)
        for solution, found, _ in rows
        for truth, value in zip(solution.labels, found.values, strict=True)
        if value is not None
    ]
    right, wrong = [v for t, v in pairs if t], [v for t, v in pairs if not t]
    if not right or not wrong:
        raise SystemExit("the policy's steps are all right or all wrong: train it longer, or less")
    kept, caught = sum(v > 0 for v in right) / len(right), sum(v == 0 for v in wrong) / len(wrong)
    ranked = sorted(v for v in wrong)
    above = sum((bisect.bisect_left(ranked, v) + bisect.bisect_right(ranked, v)) / 2 for v in right)
    located = [truth.first_error == f.first_error for truth, f, right in rows if not right]
    return {
        "steps": len(pairs),
        "step_accuracy": (kept * len(right) + caught * len(wrong)) / len(pairs),
        "balanced_accuracy": (kept + caught) / 2,
        "right_kept": kept,
        "wrong_caught": caught,
        "soft_accuracy": (sum(v >= 0.5 for v in right) + sum(v < 0.5 for v in wrong)) / len(pairs),
        "soft_auc": above / len(right) / len(wrong),
        "first_error_accuracy": sum(located) / len(located),
    }


def _errors(
    rows: Sequence[tuple[StepSolution, PrefixValues]], rollouts: int, tokens: int
) -> dict[str, float]:
    hits = sum(truth.first_error == found.first_error for truth, found in rows)
    return {
        "errors": len(rows),
        "first_error_accuracy": hits / max(len(rows), 1),
        "rollouts": rollouts,
        "rollouts_per_error": rollouts / max(len(rows), 1),
        "tokens_per_error": tokens / max(len(rows), 1),
    }


def matched(errors: dict[str, Any]) -> dict[str, Any]:
    """For each K of OmegaPRM: what brute force pays for an error at the least K that is as accurate."""
    out = {}
    for k, tree in errors["omega_prm"].items():
        enough = [
            (row["rollouts_per_error"], int(brute))
            for brute, row in errors["monte_carlo"].items()
            if row["first_error_accuracy"] >= tree["first_error_accuracy"]
        ]
        cost, brute = min(enough, default=(None, None))
        out[k] = {
            "accuracy": tree["first_error_accuracy"],
            "omega_prm": tree["rollouts_per_error"],
            "monte_carlo": cost,
            "monte_carlo_k": brute,
            "ratio": cost / tree["rollouts_per_error"] if cost else None,
        }
    return out


def _off_by_one(step: str) -> str:
    head, _, value = step.rpartition(" ")
    return f"{head} {int(value) + 1}"


def _question(problem: str, steps: Sequence[str]) -> str:
    return prompt(problem) + "".join(f"{step}\n" for step in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("outputs/labelling"))
    parser.add_argument("--policy", type=Path, help="folder of a trained policy; else one is trained")
    parser.add_argument("--start", type=Path, help="folder of a policy to train from, not from scratch")
    parser.add_argument("--demonstrations", type=int, default=60_000)
    parser.add_argument("--judge-samples", type=int, default=12_000)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--each", type=int, default=4, help="solutions sampled a problem")
    parser.add_argument("--operations", type=int, nargs=2, default=[3, 7], help="least and most a problem")
    parser.add_argument("--searches", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    started = time.process_time()
    lengths = Difficulty(*args.operations)
    if args.policy:
        policy, tokenizer, home = load_backbone(args.policy), load_tokenizer(args.policy), args.policy
    else:
        policy, tokenizer = make_policy(
            args.work / "policy", args.demonstrations, args.seed, lengths=lengths, start=args.start
        )
        home = args.work / "policy" / "model"
    bench = Bench(policy, tokenizer, args.seed, home, lengths)
    problems = make_problems(args.problems, 300 + args.seed, split="test", difficulty=lengths)
    solutions = sample_solutions(bench, problems, args.each)
    labels, brute = measure_monte_carlo(bench, solutions)
    errors = {
        "monte_carlo": brute,
        "binary_search": {str(k): measure_binary_search(bench, solutions, k) for k in TREE_KS},
        "omega_prm": {str(k): measure_tree(bench, problems, k, args.searches) for k in TREE_KS},
    }
    result = {
        "problems": len(problems),
        "solutions": len(solutions),
        "policy": {"accuracy": sum(right for _, _, right in solutions) / len(solutions)},
        "monte_carlo": labels,
        "planted": measure_planted(bench, problems, max(KS)),
        "errors": errors,
        "matched": matched(errors),
        "consensus": measure_consensus(bench, solutions, args.work / "judge", args.judge_samples, 8),
        "cpu_s": time.process_time() - started,
    }
    sys.stdout.write(show(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
