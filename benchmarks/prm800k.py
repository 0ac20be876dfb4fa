"""A small PRM trained from nothing on PRM800K phase 1, against baselines that read no mathematics.

    python benchmarks/prm800k.py --data FOLDER --json prm800k.json --seed 0 1

A byte-level BPE and a decoder of about 0.7 M parameters first read the training steps as plain text; the PRM
is then trained on the human labels of the training file. The stopping point is chosen on held-out *training*
problems, the test file is scored once. Neutral ratings count as correct. Each labelled step is one example:
the two steps before it and the step. The problem is left out: a few hundred are soon known by heart, and on
held-out problems reading them was no gain.

The printed figure is the AUC over all labelled test steps, with 95 % intervals from resampling test problems.
Baselines: the majority class; logistic regression on step number and length; and, stronger than it sounds,
logistic regression on the step's words. One thread, about ten minutes of CPU time a seed.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from from_scratch import Progress, new_decoder, pretrain
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.errors import UserError
from data.files import write_atomically
from data.schema import StepSolution
from data.step_readers import read_steps
from data.world_tokenizer import byte_bpe_tokenizer
from eval.metrics import solution_metrics
from prm.fit import FitConfig
from prm.model import new_prm
from prm.scorer import LocalScorer
from prm.train import PRMConfig, fit_prm, split_by_problem

VOCABULARY = 2048
CONTEXT_STEPS = 2
MAX_LENGTH = 512
HOLDOUT = 0.12
RESAMPLES = 2000
BASELINES = ("step number and length", "words of the step")


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    train = one_step_examples(read_steps(options.data / "prm800k_phase1_train.jsonl.gz"))
    test = one_step_examples(read_steps(options.data / "prm800k_phase1_test.jsonl.gz"))
    labels = np.array([solution.labels[-1] for solution in test])
    groups = np.unique([solution.problem for solution in test], return_inverse=True)[1]
    scores = {"majority class": np.ones(len(test)), **fit_baselines(train, test)}
    seconds = {}
    for seed in options.seed:
        started = time.process_time()
        scores[f"PRM, seed {seed}"] = train_and_score(train, test, seed)
        seconds[f"PRM, seed {seed}"] = time.process_time() - started
    if len(options.seed) > 1:
        each = [scores[f"PRM, seed {seed}"] for seed in options.seed]
        scores[f"PRM, mean of {len(each)} seeds"] = np.mean(each, axis=0)
    weights = resample_weights(groups, RESAMPLES, seed=0)
    rows = [
        {
            "method": name,
            "auc": roc_auc_score(labels, values),
            "interval": interval(resampled_auc(labels, values, weights)),
            "gaps": {
                baseline: difference(labels, values, scores[baseline], weights)
                for baseline in (*BASELINES, "majority class")
                if baseline != name
            },
            "cpu_seconds": seconds.get(name),
        }
        for name, values in scores.items()
    ]
    summary = {"test_steps": len(test), "test_problems": int(groups.max()) + 1, "train_steps": len(train)}
    print_table(rows, summary)
    if options.json:
        write_atomically(options.json, json.dumps({**summary, "rows": rows}, indent=1) + "\n")


def one_step_examples(solutions: Sequence[StepSolution]) -> list[StepSolution]:
    """Return one solution per labelled step: the step and CONTEXT_STEPS before it, each under its number."""
    examples = []
    for solution in solutions:
        numbered = [f"Step {number}: {text}" for number, text in enumerate(solution.steps, 1)]
        for index, label in enumerate(solution.labels):
            if label is not None:
                steps = tuple(numbered[max(0, index - CONTEXT_STEPS) : index + 1])
                labels = (*[None] * (len(steps) - 1), label)
                meta = {"number": index + 1, "text": solution.steps[index], "problem": solution.problem}
                examples.append(replace(solution, steps=steps, labels=labels, meta=meta, first_error=None))
    return examples


def train_and_score(train: Sequence[StepSolution], test: Sequence[StepSolution], seed: int) -> np.ndarray:
    """Return P(correct) of every test step from a PRM trained from random weights."""
    fitting, held_out = split_by_problem(train, HOLDOUT, seed)
    fitting, held_out, test = without_problem(fitting), without_problem(held_out), without_problem(test)
    tokenizer = byte_bpe_tokenizer([s.steps[-1] for s in fitting], VOCABULARY)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        model = new_decoder(len(tokenizer), MAX_LENGTH, classifier_dropout=0.3)
        texts = tokenizer(["\n" + "\n".join(s.steps) + "\n" for s in fitting])["input_ids"]
        pretrain(model, [ids[:MAX_LENGTH] for ids in texts], epochs=2, seed=seed, run_dir=f"{folder}/lm")
        torch.manual_seed(seed)
        prm = new_prm(model)
        fit_prm(
            prm,
            tokenizer,
            fitting,
            held_out,
            prm_config(seed, f"{folder}/prm"),
            accelerator=Accelerator(cpu=True),
            log=Progress("PRM"),
            step_metrics=solution_metrics,
        )
    scorer = LocalScorer(prm, tokenizer, max_length=MAX_LENGTH)
    rows = scorer.score([s.problem for s in test], [s.steps for s in test])
    return np.array([row[-1] if row[-1] is not None else 0.5 for row in rows])


def without_problem(solutions: Sequence[StepSolution]) -> list[StepSolution]:
    return [replace(solution, problem="") for solution in solutions]


def prm_config(seed: int, output_dir: str) -> PRMConfig:
    return PRMConfig(
        data="",
        output_dir=output_dir,
        supervise="all",
        max_length=MAX_LENGTH,
        keep_best="valid/step_auc",
        fit=FitConfig(
            epochs=1,
            batch_size=64,
            learning_rate=5e-4,
            warmup_ratio=0.1,
            weight_decay=0.1,
            micro_batch_tokens=4096,
            overlong="skip",
            log_every=50,
            validate_every=50,
            seed=seed,
        ),
    )


def fit_baselines(train: Sequence[StepSolution], test: Sequence[StepSolution]) -> dict[str, np.ndarray]:
    """Return the test scores of regressions that read no meaning."""
    labels = [int(solution.labels[-1] > 0.5) for solution in train]
    shallow = make_pipeline(StandardScaler(), LogisticRegression())
    shallow.fit(number_and_length(train), labels)
    words = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, min_df=2),
        LogisticRegression(max_iter=500),
    )
    words.fit([s.meta["text"] for s in train], labels)
    return {
        BASELINES[0]: shallow.predict_proba(number_and_length(test))[:, 1],
        BASELINES[1]: words.predict_proba([s.meta["text"] for s in test])[:, 1],
    }


def number_and_length(solutions: Sequence[StepSolution]) -> np.ndarray:
    """Return (N, 3): step number, characters, words and signs."""
    texts = [s.meta["text"] for s in solutions]
    numbers = [s.meta["number"] for s in solutions]
    tokens = [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]
    return np.column_stack([numbers, [len(text) for text in texts], tokens]).astype(float)


def resample_weights(groups: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Return (number, N): how often each step stands in each resampling of the problems with replacement."""
    count = groups.max() + 1
    draws = np.random.default_rng(seed).integers(count, size=(number, count))
    return np.stack([np.bincount(draw, minlength=count)[groups] for draw in draws])


def resampled_auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.array([roc_auc_score(labels, scores, sample_weight=weight) for weight in weights])


def interval(values: np.ndarray) -> list[float]:
    """Return the 95 % percentile interval."""
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]


def difference(
    labels: np.ndarray, scores: np.ndarray, baseline: np.ndarray, weights: np.ndarray
) -> Mapping[str, Any]:
    """Return the AUC difference, its interval from the same resamplings for both, and the share below 0."""
    gaps = resampled_auc(labels, scores, weights) - resampled_auc(labels, baseline, weights)
    gap = roc_auc_score(labels, scores) - roc_auc_score(labels, baseline)
    return {"gap": float(gap), "interval": interval(gaps), "share_not_above": float((gaps <= 0).mean())}


def print_table(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, int]) -> None:
    print(
        f"PRM800K phase 1: {summary['train_steps']} labelled training steps; "
        f"test: {summary['test_steps']} steps of {summary['test_problems']} problems"
    )
    print(f"{'method':<24} {'AUC':>5}  {'95 %':<13}  {'CPU s':>5}")
    for row in rows:
        seconds = f"{row['cpu_seconds']:.0f}" if row["cpu_seconds"] else ""
        bounds = "{:.3f} - {:.3f}".format(*row["interval"])
        print(f"{row['method']:<24} {row['auc']:.3f}  {bounds:<13}  {seconds:>5}")
        for baseline, gap in row["gaps"].items():
            if row["method"].startswith("PRM") and baseline in BASELINES:
                bounds = "{:+.3f} to {:+.3f}".format(*gap["interval"])
                print(
                    f"    minus {baseline}: {gap['gap']:+.3f} ({bounds}, {gap['share_not_above']:.3f} <= 0)"
                )
    print("differences: on the same resampled problems; the last figure is the share of them without a gain")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with prm800k_phase1_{train,test}.jsonl.gz"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one PRM is trained per seed")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
