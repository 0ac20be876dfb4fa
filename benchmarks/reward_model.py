"""A small pairwise reward model trained from nothing on HH-RLHF pairs, beside baselines that read no order.

    python benchmarks/reward_model.py --data FOLDER --json reward_model.json --seed 0 1 2

A byte-level BPE and a decoder of about 1 M parameters first read the training dialogues as plain text; the
reward model is then trained on the pairs, by Bradley-Terry with the LM loss beside it. The stopping point is
chosen on held-out *training* prompts; the test file is scored once. Prompts lose their oldest tokens beyond
the model's window, and responses what exceeds 600 characters (for the baselines too).

Printed is the share of test pairs in which the chosen response has the larger reward, with Wilson's 95 %
interval. Baselines: the longer response; and logistic regression on the difference of the two responses'
bags of words (tf-idf of words and word pairs). One thread, about five minutes of CPU time a seed.
"""

import argparse
import json
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
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from data.errors import UserError
from data.files import write_atomically
from data.preference_readers import read_preferences
from data.schema import Preference
from data.world_tokenizer import byte_bpe_tokenizer
from eval.metrics import mean_interval, sign_test
from prm.fit import FitConfig
from reasoning_rl.compose_preference import pair_metrics
from reasoning_rl.preference_examples import split_by_prompt
from reasoning_rl.reward_model import ResponseRewardModel, RMConfig, fit_reward

VOCABULARY = 2048
MAX_LENGTH = 224
RESPONSE_CHARACTERS = 600
HOLDOUT = 0.12


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    train, test = (
        [cut(pair) for pair in read_preferences(options.data / f"hh_rlhf_{split}.jsonl.gz")]
        for split in ("train", "test")
    )
    margins = {"longer response": length_margins(test), "bag of words": word_margins(train, test)}
    seconds = {}
    for seed in options.seed:
        started = time.process_time()
        margins[f"reward model, seed {seed}"] = train_and_score(train, test, seed)
        seconds[f"reward model, seed {seed}"] = time.process_time() - started
    rows = [
        {"method": name, **summary(values), "cpu_seconds": seconds.get(name)}
        for name, values in margins.items()
    ]
    result: dict[str, Any] = {"train_pairs": len(train), "test_pairs": len(test), "rows": rows}
    learned = [row for row in rows if row["method"].startswith("reward model")]
    if len(learned) > 1:
        result["mean"] = float(np.mean([row["accuracy"] for row in learned]))
        result["interval"] = list(mean_interval([row["accuracy"] for row in learned]))
    result["against_words"] = {
        row["method"]: compare(margins[row["method"]], margins["bag of words"]) for row in learned
    }
    print_table(result)
    if options.json:
        write_atomically(options.json, json.dumps(result, indent=1) + "\n")


def cut(pair: Preference) -> Preference:
    """The pair with responses of at most RESPONSE_CHARACTERS: one in twenty is longer."""
    sides = {side: getattr(pair, side)[:RESPONSE_CHARACTERS] for side in ("chosen", "rejected")}
    return replace(pair, **sides)


def train_and_score(train: Sequence[Preference], test: Sequence[Preference], seed: int) -> np.ndarray:
    """Return reward(chosen) - reward(rejected) of every test pair, the model trained from random weights."""
    fitting, held_out = split_by_prompt(train, HOLDOUT, seed)
    texts = [pair.prompt + pair.chosen for pair in fitting]
    tokenizer = byte_bpe_tokenizer(texts, VOCABULARY)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        backbone = new_decoder(len(tokenizer), MAX_LENGTH, **ends)
        encoded = [ids[-MAX_LENGTH:] for ids in tokenizer(texts)["input_ids"]]
        pretrain(backbone, encoded, epochs=1, seed=seed, run_dir=f"{folder}/lm")
        torch.manual_seed(seed)
        model = fit_reward(
            backbone,
            tokenizer,
            fitting,
            held_out,
            rm_config(seed, f"{folder}/rm"),
            accelerator=Accelerator(cpu=True),
            log=Progress("RM"),
            pair_metrics=pair_metrics,
        )
    scorer = ResponseRewardModel(model, tokenizer)
    prompts = [pair.prompt for pair in test]
    sides = [scorer.score_responses(prompts, [getattr(p, s) for p in test]) for s in ("chosen", "rejected")]
    # A response longer than the window has no reward: the pair counts as a tie, which is no hit.
    return np.array([0.0 if c is None or r is None else c - r for c, r in zip(*sides, strict=True)])


def rm_config(seed: int, output_dir: str) -> RMConfig:
    return RMConfig(
        data="",
        output_dir=output_dir,
        max_length=MAX_LENGTH,
        cut_prompt=True,
        lm_coef=0.1,
        keep_best="valid/accuracy",
        fit=FitConfig(
            epochs=2,
            max_updates=150,
            batch_size=32,
            learning_rate=5e-4,
            warmup_ratio=0.1,
            weight_decay=0.1,
            micro_batch_tokens=8192,
            overlong="skip",
            log_every=25,
            validate_every=25,
            save_every=None,
            seed=seed,
        ),
    )


def length_margins(test: Sequence[Preference]) -> np.ndarray:
    return np.array([len(pair.chosen) - len(pair.rejected) for pair in test], dtype=float)


def word_margins(train: Sequence[Preference], test: Sequence[Preference]) -> np.ndarray:
    """Logistic regression without intercept on the difference of the responses' word counts."""
    words = TfidfVectorizer(
        ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, min_df=2, norm=None
    )
    words.fit([text for pair in train for text in (pair.chosen, pair.rejected)])

    def differences(pairs: Sequence[Preference]) -> Any:
        return words.transform([p.chosen for p in pairs]) - words.transform([p.rejected for p in pairs])

    found = differences(train)
    labels = np.repeat([1, 0], len(train))
    model = LogisticRegression(fit_intercept=False, C=0.001, max_iter=500)
    model.fit(vstack([found, -found]), labels)
    return model.decision_function(differences(test))


def summary(margins: np.ndarray) -> dict[str, float]:
    return pair_metrics(margins.tolist(), np.zeros(len(margins)).tolist())


def compare(margins: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    """McNemar on the same pairs: right where the other is wrong, and the reverse."""
    better = int(((margins > 0) & (baseline <= 0)).sum())
    worse = int(((margins <= 0) & (baseline > 0)).sum())
    return {"better": better, "worse": worse, "p": sign_test(better, worse)}


def print_table(result: Mapping[str, Any]) -> None:
    print(f"HH-RLHF: {result['train_pairs']} training pairs, {result['test_pairs']} test pairs")
    print(f"{'method':<24} {'accuracy':>8}  {'95 %':<13}  {'ECE':>5}  {'CPU s':>5}")
    for row in result["rows"]:
        seconds = f"{row['cpu_seconds']:.0f}" if row["cpu_seconds"] else ""
        bounds = f"{row['accuracy_low']:.3f} - {row['accuracy_high']:.3f}"
        calibration = "" if row["method"] == "longer response" else f"{row['ece']:.3f}"
        print(f"{row['method']:<24} {row['accuracy']:>8.3f}  {bounds:<13}  {calibration:>5}  {seconds:>5}")
    if "mean" in result:
        low, high = result["interval"]
        print(f"mean over seeds {result['mean']:.3f} [{low:.3f}, {high:.3f}]")
    for name, found in result["against_words"].items():
        print(
            f"{name} against the bag of words: right alone {found['better']}, wrong alone {found['worse']}, "
            f"p {found['p']:.3f}"
        )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with hh_rlhf_{train,test}.jsonl.gz")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one model is trained per seed")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
