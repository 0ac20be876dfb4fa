"""PRM scoring and training beside TRL 1.12's ways: the same tiny model, the same solutions, one thread.

    python benchmarks/prm_scoring.py --rival FOLDER --json prm_scoring.json

FOLDER holds tiny/ (a 5.8 M parameter Qwen2 with its tokenizer) and trl112/ (trl==1.12.0, installed with
`pip install --no-deps --target FOLDER/trl112`; the last release with PRMTrainer). Every measurement is a
process of its own, so that peak memory is its own too; sides take turns, and the median of the rounds counts.
CPU-seconds are those of the work alone, tokenising included, after a warm-up.

Keys of the JSON: `solutions`, `tokens`; `scoring.SIDE` and `training.SIDE` with `cpu_s` (median),
`all_cpu_s`, `peak_rss_mb`, `per_cpu_s` (solutions), and `tokens_per_cpu_s`; `steps.N` the same of solutions
of N steps, whose lengths differ by a tenth: compare their tokens; `largest_difference` of our scores from one
plain forward a solution; `floor`: what the FLOPs alone take at `gflops` (measured on this machine, one
thread, float32).

Sides of scoring: ours (LocalScorer); docs_loop (TRL's documentation: the pipeline once a step prefix);
pipeline (once a solution, batches of 16); by_hand (length-sorted batches of 16 with a mask). Of training:
ours (fit_prm), trl (PRMTrainer), both in batches of 8 with one update each.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

NUM_SOLUTIONS = 500
PROMPT_TOKENS, STEP_TOKENS = 48, 188
BATCH = 16
TRAIN_BATCH = 8
STEP_COUNTS = (2, 4, 8, 16, 32)


# --- the work --------------------------------------------------------------------------------------------


def make_rows(tokenizer: Any, steps: tuple[int, int] = (8, 12), seed: int = 1) -> list[dict[str, Any]]:
    """Return solutions of `steps` steps, of about PROMPT_TOKENS + STEP_TOKENS tokens, random labels."""
    rng = random.Random(seed)
    words = ("students", "apples", "price", "half", "sum", "group", "class", "hours", "miles", "ratio")
    phrases = ("{a} + {b} = {c}", "so {a} of the students", "then half of {b}", "the total cost is {a}")

    def fill(text: str, size: int, draw: Callable[[], str]) -> str:
        while len(tokenizer.encode(text)) < size:
            text += draw()
        return text

    def phrase() -> str:
        a, b = rng.randint(1, 50), rng.randint(1, 50)
        return " " + rng.choice(phrases).format(a=a, b=b, c=a + b)

    rows = []
    for _ in range(NUM_SOLUTIONS):
        count = rng.randint(*steps)
        size = (STEP_TOKENS + rng.randint(-24, 24)) / count
        rows.append(
            {
                "prompt": fill("", PROMPT_TOKENS, lambda: f" {rng.choice(words)} {rng.randint(1, 99)}"),
                # A phrase overshoots by 2 tokens on average, and the separator is one.
                "completions": [fill(f"Step {k}:", round(size - 3), phrase) for k in range(1, count + 1)],
                "labels": [rng.random() < 0.7 for _ in range(count)],
            }
        )
    return rows


def count_tokens(tokenizer: Any, rows: list[dict[str, Any]]) -> int:
    """Return the tokens of all solutions, one separator a step included."""
    return sum(
        len(tokenizer.encode(r["prompt"])) + sum(len(tokenizer.encode(s)) + 1 for s in r["completions"])
        for r in rows
    )


def measure(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU-seconds of a call, and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


# --- scoring: one function a side, (folder of the model, rows) -> (CPU-seconds, solutions, scores) -------


def score_ours(tiny: str, rows: list[dict[str, Any]]) -> tuple[float, int, Any]:
    from prm.model import load_tokenizer, new_prm
    from prm.scorer import LocalScorer

    prm = new_prm(tiny)
    _spread(prm)
    scorer = LocalScorer(prm, load_tokenizer(tiny))
    problems, steps = [row["prompt"] for row in rows], [row["completions"] for row in rows]
    scorer.score(problems[:BATCH], steps[:BATCH])
    seconds, scores = measure(lambda: scorer.score(problems, steps))
    return seconds, len(rows), {"largest_difference": _differs(scorer, problems, steps, scores)}


def score_docs_loop(tiny: str, rows: list[dict[str, Any]]) -> tuple[float, int, Any]:
    pipe, few = _pipeline(tiny), rows[:12]

    def loop() -> None:
        for row in few:
            for k in range(1, len(row["completions"]) + 1):
                pipe("\n".join((row["prompt"], *row["completions"][:k])) + "\n")[-1]

    return measure(loop)[0], len(few), None


def score_pipeline(tiny: str, rows: list[dict[str, Any]]) -> tuple[float, int, Any]:
    pipe, few = _pipeline(tiny), rows[:128]
    texts = ["\n".join((row["prompt"], *row["completions"])) + "\n" for row in few]
    return measure(lambda: pipe(texts, batch_size=BATCH))[0], len(few), None


def score_by_hand(tiny: str, rows: list[dict[str, Any]]) -> tuple[float, int, Any]:
    import torch

    model, tokenizer = _token_classifier(tiny)
    separator = tokenizer.encode("\n")[-1]

    def score(chosen: list[dict[str, Any]]) -> None:
        ids = []
        for row in chosen:
            pieces = [[*tokenizer.encode(step), separator] for step in row["completions"]]
            ids.append(tokenizer.encode(row["prompt"]) + [token for piece in pieces for token in piece])
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                batch = [ids[i] for i in order[start : start + BATCH]]
                width = max(map(len, batch))
                tokens = torch.full((len(batch), width), tokenizer.pad_token_id)
                mask = torch.zeros_like(tokens)
                for k, row_ids in enumerate(batch):
                    tokens[k, : len(row_ids)] = torch.tensor(row_ids)
                    mask[k, : len(row_ids)] = 1
                scores = model(input_ids=tokens, attention_mask=mask).logits.softmax(-1)[..., 1]
                for k in range(len(batch)):
                    scores[k][tokens[k] == separator].tolist()

    score(rows[:BATCH])
    return measure(lambda: score(rows))[0], len(rows), None


# --- training --------------------------------------------------------------------------------------------


def train_ours(tiny: str, rows: list[dict[str, Any]]) -> tuple[float, int, Any]:
    from accelerate import Accelerator

    from data.schema import StepSolution
    from prm.model import load_tokenizer, new_prm
    from prm.train import PRMConfig, fit_prm

    solutions = [
        StepSolution(row["prompt"], tuple(row["completions"]), tuple(map(float, row["labels"])), id=str(i))
        for i, row in enumerate(rows)
    ]
    prm, tokenizer = new_prm(tiny), load_tokenizer(tiny)

    class Silent:
        def __call__(self, iteration: int, metrics: Any) -> None:
            return

        def rewind(self, iteration: int) -> None:
            return

    with tempfile.TemporaryDirectory() as folder:
        config = PRMConfig.from_dict(
            {
                "data": "",
                "output_dir": folder,
                "supervise": "all",
                "fit": {"batch_size": TRAIN_BATCH, "log_every": 50, "micro_batch_tokens": 512},
            }
        )
        run = {"accelerator": Accelerator(cpu=True), "log": Silent()}
        return measure(lambda: fit_prm(prm, tokenizer, solutions, [], config, **run))[0], len(rows), None


def train_trl(tiny: str, rows: list[dict[str, Any]]) -> tuple[float, int, Any]:
    from datasets import Dataset
    from trl.experimental.prm import PRMConfig, PRMTrainer

    model, tokenizer = _token_classifier(tiny)
    with tempfile.TemporaryDirectory() as folder:
        settings = PRMConfig(
            output_dir=folder,
            per_device_train_batch_size=TRAIN_BATCH,
            num_train_epochs=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=50,
            disable_tqdm=True,
        )
        trainer = PRMTrainer(
            model=model, args=settings, processing_class=tokenizer, train_dataset=Dataset.from_list(rows)
        )
        return measure(trainer.train)[0], len(rows), None


SIDES: dict[str, dict[str, Callable[..., tuple[float, int, Any]]]] = {
    "scoring": {
        "ours": score_ours,
        "by_hand": score_by_hand,
        "pipeline": score_pipeline,
        "docs_loop": score_docs_loop,
    },
    "training": {"ours": train_ours, "trl": train_trl},
}


def _token_classifier(tiny: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(tiny, num_labels=2, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(tiny)


def _pipeline(tiny: str) -> Any:
    from transformers import pipeline

    model, tokenizer = _token_classifier(tiny)
    pipe = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
    pipe("a warm-up\n")
    return pipe


def _spread(prm: Any) -> None:
    """Give the zero head weights, so that scores differ and can be compared."""
    import torch

    from prm.model import classifier

    torch.manual_seed(0)
    torch.nn.init.normal_(classifier(prm).weight, std=0.05)  # far from 0 and 1


def _differs(scorer: Any, problems: Any, steps: Any, scores: Any) -> float:
    """Largest difference from a plain forward of one solution at a time, over the first solutions."""
    import torch

    from prm.model import encode_solution

    worst = 0.0
    with torch.inference_mode():
        for problem, solution, found in list(zip(problems, steps, scores, strict=True))[:20]:
            encoded = encode_solution(scorer.tokenizer, problem, solution, joiner=scorer.joiner)
            plain = scorer.model.eval()(torch.tensor([encoded.input_ids])).logits.softmax(-1)[0, :, 1]
            worst = max(
                worst,
                *(abs(float(plain[end]) - s) for end, s in zip(encoded.step_ends, found, strict=True)),
            )
    return worst


# --- one process a measurement ---------------------------------------------------------------------------


def child(kind: str, side: str, tiny: str, steps: list[int]) -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    from prm.model import load_tokenizer

    rows = make_rows(load_tokenizer(tiny), (steps[0], steps[1]))
    seconds, count, extra = SIDES[kind][side](tiny, rows)
    tokens = count_tokens(load_tokenizer(tiny), rows[:count])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"cpu_s": seconds, "solutions": count, "tokens": tokens, "peak_rss_mb": peak, **(extra or {})}
    sys.stdout.write("RESULT " + json.dumps(result) + "\n")


def run_child(kind: str, side: str, rival: Path, steps: tuple[int, int] = (8, 12)) -> dict[str, Any]:
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *([str(rival / "trl112")] if side == "trl" else [])]
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, side, "--rival", str(rival), "--steps", *map(str, steps)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRL_EXPERIMENTAL_SILENCE": "1"},
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise SystemExit(f"{kind} {side} failed:\n{done.stderr[-2000:]}")
    return json.loads(found[-1][7:])


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["cpu_s"] for run in runs]
    median = statistics.median(seconds)
    return {
        "cpu_s": round(median, 2),
        "all_cpu_s": [round(s, 2) for s in seconds],
        "per_cpu_s": round(runs[0]["solutions"] / median, 2),
        "tokens_per_cpu_s": round(runs[0]["tokens"] / median),
        "peak_rss_mb": round(max(run["peak_rss_mb"] for run in runs)),
    }


def floor(tiny: Path, tokens: int) -> dict[str, float]:
    """CPU-seconds that the FLOPs alone take: forward, and forward with backward, at a measured rate."""
    import torch

    torch.set_num_threads(1)
    c = json.loads((tiny / "config.json").read_text())
    width, layers = c["hidden_size"], c["num_hidden_layers"]
    kv = c["num_key_value_heads"] * width // c["num_attention_heads"]
    linear = 2 * layers * (2 * width * width + 2 * width * kv + 3 * width * c["intermediate_size"])
    attention = 4 * layers * (tokens / NUM_SOLUTIONS / 2) * width
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    rates = []
    for _ in range(6):
        seconds, _ = measure(lambda: [a @ b for _ in range(8)])
        rates.append(2 * 1024**3 * 8 / seconds / 1e9)
    forward = tokens * (linear + attention) / max(rates) / 1e9
    return {"gflops": max(rates), "scoring_cpu_s": forward, "training_cpu_s": 3 * forward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rival", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--steps", nargs=2, type=int, default=[8, 12])
    args = parser.parse_args()
    tiny = args.rival / "tiny"
    if args.child:
        child(*args.child, str(tiny), args.steps)
        return
    from prm.model import load_tokenizer

    tokenizer = load_tokenizer(str(tiny))
    rows = make_rows(tokenizer)
    tokens = count_tokens(tokenizer, rows)
    result: dict[str, Any] = {"solutions": NUM_SOLUTIONS, "tokens": tokens}
    for kind, rounds in (("scoring", args.rounds), ("training", args.train_rounds)):
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES[kind]}
        for _ in range(rounds):
            for side in SIDES[kind]:
                runs[side].append(run_child(kind, side, args.rival))
        result[kind] = {side: summarise(of) for side, of in runs.items() if of}
        if kind == "scoring" and rounds:
            result["largest_difference"] = max(run["largest_difference"] for run in runs["ours"])
            result["steps"] = {
                n: summarise([run_child("scoring", "ours", args.rival, (n, n))]) for n in STEP_COUNTS
            }
    result["floor"] = {k: round(v, 1) for k, v in floor(tiny, tokens).items()}
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def show(result: dict[str, Any]) -> None:
    mean = result["tokens"] / result["solutions"]
    out = [f"{result['solutions']} solutions of {mean:.0f} tokens, one thread, medians", ""]
    for kind in ("scoring", "training"):
        bound = result["floor"][f"{kind}_cpu_s"]
        out += [f"| {kind} | CPU-s for all | solutions per CPU-s | peak MiB |", "|---|---|---|---|"]
        for side, of in result[kind].items():
            seconds = result["solutions"] / of["per_cpu_s"]
            out.append(f"| {side} | {seconds:.1f} | {of['per_cpu_s']:.1f} | {of['peak_rss_mb']} |")
        out += [f"| floor (FLOPs) | {bound:.1f} | {result['solutions'] / bound:.1f} | |", ""]
    if "steps" in result:
        out += ["| steps a solution | solutions per CPU-s | tokens per CPU-s |", "|---|---|---|"]
        out += [
            f"| {n} | {of['per_cpu_s']:.1f} | {of['tokens_per_cpu_s']:,} |"
            for n, of in result["steps"].items()
        ]
        out.append(
            f"\nlargest difference from one plain forward a solution: {result['largest_difference']:.1e}"
        )
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
