"""Tokens per second of every rollout backend, beside transformers' own `generate`, on one tiny model.

    python benchmarks/rollouts.py --json rollouts.json                  # about 10 minutes on 2 quiet cores
    python benchmarks/rollouts.py --iteration --json iteration.json     # where a PPO iteration's time goes
    python benchmarks/rollouts.py --scoring --json scoring.json         # a PRM by torch and by vLLM

The model is made here: Qwen2, 5.8 M random parameters, vocabulary 4096; prompts of 32 to 96 random words, 128
new tokens at temperature 1. Backends take turns, each in a process of its own, with --threads threads; a rate
is the best of --rounds (other work on a machine only ever takes away). vLLM's lines need the extra.

--json FILE keys: sides.NAME {start_seconds (imports and weights, to the first token), rates {sequences:
tokens/s}, peak_rss_mb (with children), sync_ms, sync_mb (vLLM: the policy's weights into the engine, median
of 5)}; ratio: vllm float32 / plain at 256 sequences; ratio_bfloat16, ratio_hf likewise; floor {gflops, rate}:
what the FLOPs of the linear layers alone allow; threads, tokens, versions. --iteration: sides.NAME {seconds
{phase: mean of an iteration}, share}. --scoring: sides.NAME {solutions_per_second, largest_difference}.
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

from rollouts_tables import PHASES, TABLES, ratios, versions

VOCABULARY, WIDTH, INNER, LAYERS = 4096, 256, 768, 6
SIDES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hf": {},
    "vllm float32": {"backend": "vllm", "dtype": "float32"},
    "vllm compiled": {"backend": "vllm", "dtype": "float32", "enforce_eager": False},
    "vllm bfloat16": {"backend": "vllm", "dtype": "bfloat16"},
    "vllm-server": {"backend": "vllm-server", "dtype": "float32"},
}
"""Name -> what of EngineConfig it sets."""
ITERATION_SIDES = ("hf", "vllm float32")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 512], help="sequences")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a sequence")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--iteration", action="store_true", help="shares of a PPO iteration instead")
    parser.add_argument("--iterations", type=int, default=4, help="with --iteration; the first is left out")
    parser.add_argument("--scoring", action="store_true", help="PRM scoring instead")
    parser.add_argument("--solutions", type=int, default=200, help="with --scoring")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "SIDE"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        kind, side = args.worker
        print(json.dumps(WORKERS[kind](side, args)), flush=True)
        return
    kind = "iteration" if args.iteration else "scoring" if args.scoring else "rollout"
    chosen = {"iteration": ITERATION_SIDES, "scoring": ("local", "vllm"), "rollout": args.sides}[kind]
    with tempfile.TemporaryDirectory(prefix="rollouts-") as folder:
        {"iteration": make_world, "scoring": make_prm, "rollout": make_model}[kind](folder)
        sides = {}
        for side in chosen:
            sides[side] = run_side(kind, side, folder, args.threads)
            print(f"done: {side}", file=sys.stderr, flush=True)
    summary = {"sides": sides, "threads": args.threads, "tokens": args.tokens, "versions": versions()}
    if kind == "rollout":
        summary |= ratios(sides) | {"floor": floor(args.threads)}
    print(TABLES[kind](summary))
    if args.json:
        Path(args.json).write_text(json.dumps(summary, indent=1))


def run_side(kind: str, side: str, folder: str, threads: int) -> dict[str, Any]:
    """One side's measurements, made in a process of its own: peak memory and start-up are then its own."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "STEPWELL_DEVICE": "cpu",
    }
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", kind, side, "--folder", folder]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{side}: the measurement ended with code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# --- the work --------------------------------------------------------------------------------------------


def make_model(folder: str) -> None:
    """Write the tiny model and a tokenizer of whole words into `folder`."""
    import torch
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    words_tokenizer().save_pretrained(folder)
    Qwen2ForCausalLM(tiny_config(VOCABULARY, 0, 1)).save_pretrained(folder)


def tiny_config(vocabulary: int, eos: int, pad: int) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=eos,
        bos_token_id=None,
        pad_token_id=pad,
    )


def words_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", "<pad>", *(f"w{i}" for i in range(VOCABULARY - 2))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )


def random_words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(f"w{rng.randrange(VOCABULARY - 2)}" for _ in range(rng.randint(low, high)))


def measure_rollout(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Start-up, rates at every size, peak memory and weight sync of one backend."""
    started = time.perf_counter()
    generate, engine = (plain_side if side == "plain" else engine_side)(side, args)
    rng = random.Random(0)
    generate([random_words(rng, 32, 96)] * 4, 2)
    report: dict[str, Any] = {"start_seconds": round(time.perf_counter() - started, 2), "rates": {}}
    for size in args.sizes:
        prompts = [random_words(rng, 32, 96) for _ in range(size)]
        rates = []
        for _ in range(args.rounds):
            begun = time.perf_counter()
            tokens = generate(prompts, args.tokens)
            rates.append(tokens / (time.perf_counter() - begun))
        report["rates"][str(size)] = round(max(rates))
    if engine is not None and hasattr(engine, "push"):
        report |= measure_sync(engine, args.folder)
    if hasattr(engine, "close"):
        engine.close()
    return report | {"peak_rss_mb": peak_rss_mb()}


def plain_side(side: str, args: argparse.Namespace) -> tuple[Callable[[list[str], int], int], Any]:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.folder).eval(), words_tokenizer()

    def generate(prompts: list[str], tokens: int) -> int:
        encoded = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            ids = model.generate(
                input_ids=encoded.input_ids,
                attention_mask=encoded.attention_mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=tokens,
            )
        return int((ids[:, encoded.input_ids.shape[1] :] != tokenizer.pad_token_id).sum())

    return generate, None


def engine_side(side: str, args: argparse.Namespace) -> tuple[Callable[[list[str], int], int], Any]:
    from data.schema import Sampling
    from prm.model import load_tokenizer
    from reasoning_rl.rollout.make import make_generator
    from reasoning_rl.rollout.settings import EngineConfig

    limits = {"max_num_seqs": 512, "max_model_len": 512, "kv_gib": 2.0} if SIDES[side] else {}
    config = EngineConfig(**SIDES[side], **limits)
    # A server that starts reads its weights from the folder; `trains` lets it take others later.
    engine = make_generator(
        config, path=args.folder, tokenizer=load_tokenizer(args.folder), max_batch=512, trains=True
    )

    def generate(prompts: list[str], tokens: int) -> int:
        drawn = engine.generate(prompts, Sampling(max_new_tokens=tokens))
        return sum(len(sample.token_ids) for group in drawn for sample in group)

    return generate, engine


def measure_sync(engine: Any, folder: str) -> dict[str, Any]:
    """Median milliseconds and MB of giving the engine the policy's weights, after one sync to set it up."""
    from prm.model import load_backbone
    from reasoning_rl.rollout.vllm_weights import ActorWeights

    weights = ActorWeights(load_backbone(folder))
    seconds = []
    for version in range(1, 7):
        engine.push(weights, version)
        seconds.append(engine.sync.last.seconds)
    return {
        "sync_ms": round(1000 * statistics.median(seconds[1:]), 1),
        "sync_mb": round(engine.sync.last.num_bytes / 1e6, 1),
    }


# --- a PPO iteration -------------------------------------------------------------------------------------


def make_world(folder: str) -> None:
    """A policy and a PRM of the tiny model's size over the arithmetic world."""
    import torch
    from transformers import Qwen2ForCausalLM

    from data.world_tokenizer import word_tokenizer
    from prm.checkpoint import save_model
    from prm.model import new_prm

    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    config = tiny_config(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    policy = Qwen2ForCausalLM(config)
    save_model(f"{folder}/policy", policy, tokenizer)
    save_model(f"{folder}/prm", new_prm(policy), tokenizer)


def measure_iteration(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Mean seconds of each phase over a short PPO run of 256 rollouts an iteration."""
    from reasoning_rl.cli import main as stepwell

    output = f"{args.folder}/{side.replace(' ', '_')}"
    options = {
        "policy": f"{args.folder}/policy",
        "prm": f"{args.folder}/prm",
        "output-dir": output,
        "iterations": args.iterations,
        "num-validation": 0,
        "num-problems": 1024,
        "rollout.problems-per-iteration": 64,
        "rollout.samples-per-problem": 4,
        "rollout.max-new-tokens": args.tokens,
        "critic.pretrain-iterations": 0,
        **{f"rollout.engine.{name}": value for name, value in SIDES[side].items()},
    }
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        stepwell(["ppo", *(word for name, value in options.items() for word in (f"--{name}", str(value)))])
    finally:
        sys.stdout = stdout
    lines = Path(output, "timing.jsonl").read_text(encoding="utf-8").splitlines()
    # The first iteration warms caches up.
    rows = [row for row in map(json.loads, lines) if row["iteration"] > 1]
    seconds = {
        phase: statistics.fmean(row.get(f"time/{phase}_seconds", 0.0) for row in rows) for phase in PHASES
    }
    total = sum(seconds.values())
    return {
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "share": {phase: round(value / total, 3) for phase, value in seconds.items()},
        "peak_rss_mb": peak_rss_mb(),
    }


# --- scoring ---------------------------------------------------------------------------------------------


def make_prm(folder: str) -> None:
    """A two-class PRM of the tiny model's size, with a random head: scores that differ."""
    import torch

    from prm.checkpoint import save_model
    from prm.model import classifier, new_prm

    torch.manual_seed(0)
    prm = new_prm(tiny_config(VOCABULARY, 0, 1))
    torch.nn.init.normal_(classifier(prm).weight, std=0.05)
    save_model(folder, prm, words_tokenizer())


def measure_scoring(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Solutions a second of one backend: about 250 tokens in 8 to 12 steps each."""
    started = time.perf_counter()
    from prm.formats import load_scorer

    scorer = load_scorer(args.folder, backend=side)
    rng = random.Random(0)
    problems = [random_words(rng, 40, 56) for _ in range(args.solutions)]
    steps = [[random_words(rng, 16, 24) for _ in range(rng.randint(8, 12))] for _ in problems]
    scorer.score(problems[:2], steps[:2])
    start = time.perf_counter() - started
    rates = []
    for _ in range(args.rounds):
        begun = time.perf_counter()
        scores = scorer.score(problems, steps)
        rates.append(len(problems) / (time.perf_counter() - begun))
    expected = scores
    if side == "vllm":
        scorer.close()
        expected = load_scorer(args.folder).score(problems, steps)
    gaps = [abs(a - b) for x, y in zip(scores, expected, strict=True) for a, b in zip(x, y, strict=True)]
    return {
        "start_seconds": round(start, 2),
        "solutions_per_second": round(max(rates), 1),
        "largest_difference": max(gaps),
        "peak_rss_mb": peak_rss_mb(),
    }


WORKERS = {"rollout": measure_rollout, "iteration": measure_iteration, "scoring": measure_scoring}


def peak_rss_mb() -> int:
    """Of this process plus its largest child that has ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024)


def floor(threads: int) -> dict[str, float]:
    """Tokens/s if nothing but the linear layers' products took time, at this machine's measured speed."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    left, right = torch.randn(256, 2048), torch.randn(2048, 2048)
    rates = []
    for _ in range(8):
        begun = time.perf_counter()
        for _ in range(8):
            left @ right
        rates.append(8 * 2 * 256 * 2048**2 / (time.perf_counter() - begun))
    torch.set_num_threads(before)
    layer = WIDTH * WIDTH * 2 + 2 * WIDTH * WIDTH // 2 + 3 * WIDTH * INNER  # q, o; k, v; gate, up, down
    products = 2 * (LAYERS * layer + VOCABULARY * WIDTH)
    return {"gflops": round(max(rates) / 1e9, 1), "rate": round(max(rates) / products)}


if __name__ == "__main__":
    main()
