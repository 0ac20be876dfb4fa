"""A PPO update beside TRL 1.12's, the last release with PPOTrainer: same tiny model, prompts and lengths.

    python benchmarks/ppo_vs_trl.py --rival FOLDER --json ppo_vs_trl.json [--only fixed ragged]

FOLDER holds tiny/ (a 5.8 M parameter Qwen2 with its tokenizer) and trl112/ (trl==1.12.0, installed with
`pip install --no-deps --target FOLDER/trl112`). The work of one update: 64 prompts of 64 tokens, 128 new
tokens (or until EOS), then policy, reference, critic and reward model of the same size, and the update.

Settings: fixed (no EOS, one epoch), ragged (EOS with probability 1/48 a token, at most 128 tokens), bf16
(fixed under bf16 autocast), epochs4 (fixed, four epochs). Every measurement is a process of its own with one
thread; sides take turns; the first update warms up, the median of the others counts. CPU-seconds of the whole
update, generation included.

Sides: ours; compiled, the same with update.compile_layers, which compiles during the warm-up; trl.
Keys of the JSON: SETTING.SIDE {cpu_s, all_cpu_s, peak_rss_mb, phases (share of the time)}, SETTING.ratio.SIDE
(trl / side), SETTING.tokens (new tokens of an update, a side); floor {gflops, fixed, epochs4}: what the FLOPs
alone take on one thread, float32.
"""

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

BATCH, PROMPT, NEW = 64, 64, 128
EOS_RATE = 1 / 48
SETTINGS: dict[str, dict[str, Any]] = {
    "fixed": {},
    "ragged": {"ragged": True},
    "bf16": {"bf16": True},
    "epochs4": {"epochs": 4},
}


def make_prompts(tokenizer: Any, count: int, seed: int = 0) -> list[str]:
    """Return texts of exactly PROMPT tokens."""
    rng = random.Random(seed)
    words = ("students", "total", "apples", "price", "half", "sum", "each", "group", "then", "left", "miles")
    prompts: list[str] = []
    while len(prompts) < count:
        text = "".join(f" {rng.choice(words)} {rng.randint(1, 99)}" for _ in range(PROMPT))
        text = tokenizer.decode(tokenizer.encode(text)[:PROMPT])
        if len(tokenizer.encode(text)) == PROMPT:
            prompts.append(text)
    return prompts


def policy_of(tiny: str, ragged: bool) -> Any:
    """The tiny policy, whose EOS comes never, or at every token with probability EOS_RATE."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, attn_implementation="sdpa")
    width, size = model.config.hidden_size, model.config.vocab_size
    head = torch.nn.Linear(width, size)
    head.weight = model.lm_head.weight
    with torch.no_grad():
        head.bias.zero_()
        head.bias[model.config.eos_token_id] = math.log(EOS_RATE * size) if ragged else -30.0
    model.lm_head = head
    return model


def ours(
    tiny: str,
    updates: int,
    *,
    ragged: bool = False,
    bf16: bool = False,
    epochs: int = 1,
    old_logprobs: str = "sampled",
    compile_layers: bool = False,
) -> dict:
    import torch
    from accelerate import Accelerator

    from data.schema import Problem, Verdict
    from prm.model import classifier, load_tokenizer, new_prm
    from prm.scorer import LocalScorer
    from reasoning_rl.config import PPOConfig
    from reasoning_rl.models import critic_from_policy
    from reasoning_rl.ppo import Learner, run_ppo

    tokenizer = load_tokenizer(tiny)
    problems = [Problem(str(i), text, "0") for i, text in enumerate(make_prompts(tokenizer, 512))]
    prm = new_prm(tiny)
    torch.nn.init.normal_(classifier(prm).weight, std=0.05)
    policy, reference = policy_of(tiny, ragged), policy_of(tiny, ragged)
    marks, shares, tokens = [], [], []

    class Log:
        def __call__(self, iteration: int, metrics: Any) -> None:
            marks.append(time.process_time())
            shares.append({k[5:]: v for k, v in metrics.items() if k.startswith("time/")})
            tokens.append(metrics["rollout/tokens"])

        def rewind(self, iteration: int) -> None:
            marks.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig.from_preset(
            {
                "preset": "vanilla",
                "policy": tiny,
                "prm": tiny,
                "output_dir": folder,
                "iterations": updates,
                "validate_every": 0,
                "num_validation": 0,
                "save_every": 0,
                "rollout": {
                    "problems_per_iteration": BATCH,
                    "samples_per_problem": 1,
                    "max_new_tokens": NEW,
                    "old_logprobs": old_logprobs,
                },
                "kl": {"coef": 0.05},
                "critic": {"value_clip_range": 0.2, "learning_rate": 1e-5},
                "update": {
                    "epochs": epochs,
                    "minibatch_size": BATCH,
                    "micro_batch_tokens": 8 * (PROMPT + NEW),
                    "learning_rate": 1e-5,
                    "compile_layers": compile_layers,
                },
            }
        )
        accelerator = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no")
        run_ppo(
            config,
            learner=Learner(
                config, accelerator, policy=policy, reference=reference, critic=critic_from_policy(policy)
            ),
            tokenizer=tokenizer,
            problems=problems,
            render=lambda text: text,
            scorer=LocalScorer(prm, tokenizer),
            grader=lambda problem, response: Verdict("wrong"),
            log=Log(),
        )
    return _result(marks, tokens, shares)


def trl(tiny: str, updates: int, *, ragged: bool = False, bf16: bool = False, epochs: int = 1) -> dict:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny, padding_side="left")
    prompts = [tokenizer.encode(text) for text in make_prompts(tokenizer, 512)]
    policy, reference = policy_of(tiny, ragged), policy_of(tiny, ragged)
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    marks, tokens = [], []

    class Marks(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.process_time())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.process_time())
            tokens.append(float(BATCH * NEW))

    with tempfile.TemporaryDirectory() as folder:
        args = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=BATCH // 8,
            total_episodes=BATCH * updates,
            num_ppo_epochs=epochs,
            num_mini_batches=1,
            response_length=NEW,
            local_rollout_forward_batch_size=64,
            num_sample_generations=0,
            temperature=1.0,
            use_cpu=True,
            bf16=bf16,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            learning_rate=1e-5,
            kl_coef=0.05,
            disable_tqdm=True,
            stop_token="eos" if ragged else None,
        )
        PPOTrainer(
            args=args,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            callbacks=[Marks()],
        ).train()
    return _result(marks, tokens, [])


def _result(marks: list[float], tokens: list[float], shares: list[dict[str, float]]) -> dict:
    """From the CPU time at the start and after each update; the first update warms up."""
    seconds = [after - before for before, after in zip(marks, marks[1:], strict=False)][1:]
    phases: dict[str, float] = {}
    for name in shares[-1] if shares else ():
        phases[name] = statistics.median(share[name] for share in shares[1:])
    whole = sum(phases.values())
    return {
        "cpu_s": seconds,
        "tokens": statistics.median(tokens[1:]),
        "phases": {name: round(v / whole, 3) for name, v in phases.items()},
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


SIDES: dict[str, Callable[..., dict]] = {
    "ours": ours,
    "compiled": partial(ours, compile_layers=True),
    "trl": trl,
}


# --- one process a measurement ---------------------------------------------------------------------------


def run_child(setting: str, side: str, rival: Path, updates: int) -> dict[str, Any]:
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *([str(rival / "trl112")] if side == "trl" else [])]
    command = [sys.executable, __file__, "--child", setting, side, "--rival", str(rival)]
    done = subprocess.run(
        [*command, "--updates", str(updates)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRL_EXPERIMENTAL_SILENCE": "1"},
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise SystemExit(f"{setting} {side} failed:\n{done.stderr[-2000:]}")
    return json.loads(found[-1][7:])


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [s for run in runs for s in run["cpu_s"]]
    return {
        "cpu_s": round(statistics.median(seconds), 2),
        "all_cpu_s": [round(s, 2) for s in seconds],
        "peak_rss_mb": round(max(run["peak_rss_mb"] for run in runs)),
        "tokens": round(statistics.median(run["tokens"] for run in runs)),
        "phases": runs[-1]["phases"],
    }


def floor(tiny: Path) -> dict[str, float]:
    """CPU-seconds of the FLOPs alone: generation, reference, value and reward passes, an update an epoch."""
    import torch

    torch.set_num_threads(1)
    c = json.loads((tiny / "config.json").read_text())
    width, layers = c["hidden_size"], c["num_hidden_layers"]
    kv = c["num_key_value_heads"] * width // c["num_attention_heads"]
    linear = 2 * layers * (2 * width * width + 2 * width * kv + 3 * width * c["intermediate_size"])
    length = PROMPT + NEW
    tokens, heads = BATCH * length, BATCH * NEW * 2 * width * c["vocab_size"]
    body = tokens * (linear + 4 * layers * (length / 2) * width)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    rates = []
    for _ in range(6):
        started = time.process_time()
        for _ in range(8):
            a @ b
        rates.append(2 * 1024**3 * 8 / (time.process_time() - started) / 1e9)
    rate = max(rates) * 1e9
    once, epoch = 4 * body + 2 * heads, 6 * body + 3 * heads
    return {"gflops": rate / 1e9, "fixed": (once + epoch) / rate, "epochs4": (once + 4 * epoch) / rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rival", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2, help="processes a side and setting")
    parser.add_argument("--updates", type=int, default=4, help="updates a process, the first a warm-up")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2)
    args = parser.parse_args()
    if args.child:
        import torch
        from transformers.utils import logging

        torch.set_num_threads(1)
        logging.set_verbosity_error()
        setting, side = args.child
        torch.manual_seed(0)
        found = SIDES[side](str(args.rival / "tiny"), args.updates, **SETTINGS[setting])
        sys.stdout.write("RESULT " + json.dumps(found) + "\n")
        return
    result: dict[str, Any] = {}
    for setting in args.only:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
        for _ in range(args.rounds):
            for side in args.sides:
                runs[side].append(run_child(setting, side, args.rival, args.updates))
        result[setting] = {side: summarise(of) for side, of in runs.items()}
        if "trl" in args.sides:
            rival = result[setting]["trl"]["cpu_s"]
            result[setting]["ratio"] = {
                side: round(rival / result[setting][side]["cpu_s"], 2) for side in args.sides if side != "trl"
            }
    result["floor"] = {name: round(value, 1) for name, value in floor(args.rival / "tiny").items()}
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def show(result: dict[str, Any]) -> None:
    bound = result["floor"]
    out = [
        f"one update of {BATCH} prompts x ({PROMPT} + up to {NEW}) tokens, one thread, medians; floor at "
        f"{bound['gflops']:.0f} GFLOP/s: {bound['fixed']} CPU-s (1 epoch), {bound['epochs4']} (4 epochs)",
        "",
        "| setting | side | CPU-s | new tokens | peak MiB | share of the time |",
        "|---|---|--:|--:|--:|---|",
    ]
    for setting, sides in result.items():
        for side in SIDES:
            if setting != "floor" and side in sides:
                of = sides[side]
                shares = ", ".join(f"{name} {share:.0%}" for name, share in of["phases"].items())
                row = (setting, side, f"{of['cpu_s']:.1f}", f"{of['tokens']:,}", of["peak_rss_mb"], shares)
                out.append("| " + " | ".join(map(str, row)) + " |")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
