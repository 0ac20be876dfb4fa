"""What each change for speed is worth in a PPO update: predicted from FLOPs and bytes, then measured.

    python benchmarks/ppo_changes.py --model FOLDER/tiny --json ppo_changes.json     # about 20 minutes

The update of benchmarks/ppo_vs_trl.py (64 prompts of 64 tokens, up to 128 new ones, four models of 5.8 M
parameters, one thread). A run as it is and a run with one change taken back (or, where the name begins with
"+", with an option switched on) take turns, each in a process of its own; the first update warms
up, medians of the others. Predictions use the rates of a large matrix product and of a large copy, timed in
the same run, and count the work that the change saves, not what it costs.

Keys of the JSON: CHANGE {setting, predicted_s, measured_s, with_s, without_s}; rates {gflops, gbytes}.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ppo_vs_trl as update

BATCH, PROMPT, NEW, EOS_RATE = update.BATCH, update.PROMPT, update.NEW, update.EOS_RATE
BUDGET = 8 * (PROMPT + NEW)


@dataclass(frozen=True)
class Sizes:
    """Work and traffic of one token of the tiny model, and what this machine does of it in a second."""

    linear_flops: float
    """Of one token through the decoder's matrices, forward."""
    head_flops: float
    cache_bytes: float
    """Keys and values of one token in all layers, float32."""
    flops: float
    bytes: float


def sizes_of(model: Path) -> Sizes:
    c = json.loads((model / "config.json").read_text())
    width, layers = c["hidden_size"], c["num_hidden_layers"]
    kv = c["num_key_value_heads"] * width // c["num_attention_heads"]
    linear = 2 * layers * (2 * width * width + 2 * width * kv + 3 * width * c["intermediate_size"])
    gflops, gbytes = rates()
    return Sizes(linear, 2 * width * c["vocab_size"], 2 * kv * layers * 4, gflops * 1e9, gbytes * 1e9)


def rates() -> tuple[float, float]:
    """Return GFLOP/s of a float32 matrix product of 1024 and GB/s (read and written) of a copy of 256 MB."""
    import torch

    torch.set_num_threads(1)
    a, b, big = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.zeros(2**26)
    other = torch.zeros_like(big)

    def best(work: Callable[[], Any], amount: float) -> float:
        found = []
        for _ in range(8):
            started = time.process_time()
            work()
            found.append(amount / (time.process_time() - started))
        return max(found) / 1e9

    return best(lambda: a @ b, 2 * 1024**3), best(lambda: other.copy_(big), 8 * 2**26)


# --- the changes: what taking one back does, and what it should cost -------------------------------------


def plain_cache() -> None:
    from transformers import DynamicCache

    from reasoning_rl.rollout import hf

    hf.roomy_cache = lambda config: DynamicCache(config=config)


def keep_finished_rows() -> None:
    from reasoning_rl.rollout import hf

    hf.FULL_ENOUGH = 0.0


def unsorted_micro_batches() -> None:
    from reasoning_rl import shares

    shares.micro_batches = in_order


def in_order(lengths: Any, max_tokens: int) -> list[Any]:
    """Rows as they come, cut under the same budget of padded tokens."""
    import torch

    groups: list[list[int]] = [[]]
    for row in range(len(lengths)):
        longest = max(int(lengths[other]) for other in [*groups[-1], row])
        if groups[-1] and (len(groups[-1]) + 1) * longest > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return [torch.tensor(group) for group in groups]


def pass_of_the_actor(s: Sizes) -> float:
    return (BATCH * (PROMPT + NEW) * s.linear_flops + BATCH * NEW * s.head_flops) / s.flops


def copies_of_the_cache(s: Sizes) -> float:
    """Each token reads and writes all keys and values before it."""
    return sum(2 * BATCH * (PROMPT + t) * s.cache_bytes for t in range(1, NEW)) / s.bytes


def tokens_after_the_end(s: Sizes) -> float:
    unused = BATCH * NEW - sum(drawn_lengths())
    return unused * (s.linear_flops + s.head_flops) / s.flops


def padding(s: Sizes) -> float:
    """In the reference's and the critic's forward, and three times that for each of two models that learn."""
    import torch

    from reasoning_rl.types import micro_batches

    lengths = torch.tensor([PROMPT + length for length in drawn_lengths()])
    padded = [
        sum(len(rows) * int(lengths[rows].max()) for rows in cut(lengths, BUDGET))
        for cut in (in_order, micro_batches)
    ]
    return (padded[0] - padded[1]) * s.linear_flops * (2 + 2 * 3) / s.flops


def drawn_lengths() -> list[int]:
    rng = random.Random(0)
    return [next((t for t in range(1, NEW) if rng.random() < EOS_RATE), NEW) for _ in range(BATCH)]


def elementwise(s: Sizes) -> float:
    """Half of the bytes between the products: 34 bytes a token, layer and unit of width in bf16 (the plan's
    formula of activations), twice that in float32, written and read once forward, twice backward; two models
    learn, two only look. Negative: it is a gain over the run as it is."""
    width, layers = 256, 6
    moved = 2 * 34 * layers * width * BATCH * (PROMPT + NEW) * 2
    return -(moved * (2 * 3 + 2) / 2) / s.bytes


@dataclass(frozen=True)
class Change:
    setting: str
    predict: Callable[[Sizes], float]
    take_back: Callable[[], None] = lambda: None
    options: tuple[tuple[str, Any], ...] = ()
    """Of ppo_vs_trl.ours."""


CHANGES = {
    "sampler's logprobs instead of a pass of the actor": Change(
        "fixed", pass_of_the_actor, options=(("old_logprobs", "recomputed"),)
    ),
    "key-value cache written in place": Change("fixed", copies_of_the_cache, plain_cache),
    "finished rows leave the batch": Change("ragged", tokens_after_the_end, keep_finished_rows),
    "micro-batches of rows of like length": Change("ragged", padding, unsorted_micro_batches),
    "+ decoder layers compiled": Change("fixed", elementwise, options=(("compile_layers", True),)),
}


def run_child(model: Path, change: str, setting: str, updates: int) -> list[float]:
    command = [sys.executable, __file__, "--model", str(model), "--updates", str(updates)]
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [*command, "--child", change, setting],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise SystemExit(f"{change or 'as it is'} failed:\n{done.stderr[-2000:]}")
    return json.loads(found[-1][7:])


def child(model: Path, name: str, setting: str, updates: int) -> list[float]:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    change = CHANGES.get(name)
    if change:
        change.take_back()
    options = dict(change.options) if change else {}
    return update.ours(str(model), updates, **update.SETTINGS[setting], **options)["cpu_s"]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="the tiny Qwen2 with its tokenizer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--updates", type=int, default=4, help="updates a process, the first a warm-up")
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.child:
        print("RESULT " + json.dumps(child(args.model, *args.child, args.updates)))
        return
    sizes = sizes_of(args.model)
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):
        for setting in dict.fromkeys(CHANGES[name].setting for name in args.only):
            names = [name for name in args.only if CHANGES[name].setting == setting]
            for name in ("", *names):
                seconds.setdefault((name, setting), []).extend(
                    run_child(args.model, name, setting, args.updates)
                )
    result: dict[str, Any] = {}
    for name in args.only:
        change = CHANGES[name]
        as_it_is = statistics.median(seconds["", change.setting])
        changed = statistics.median(seconds[name, change.setting])
        result[name] = {
            "setting": change.setting,
            "predicted_s": change.predict(sizes),
            "measured_s": changed - as_it_is,
            "with_s": as_it_is,
            "without_s": changed,
        }
    result["rates"] = {"gflops": sizes.flops / 1e9, "gbytes": sizes.bytes / 1e9}
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def table(result: dict[str, Any]) -> str:
    speed = result["rates"]
    lines = [
        f"CPU-seconds an update, one thread; {speed['gflops']:.0f} GFLOP/s, {speed['gbytes']:.1f} GB/s",
        "",
        "| change | lengths | predicted gain | measured gain | with it | without |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, row in result.items():
        if name != "rates":
            gain, kept, without = row["measured_s"], row["with_s"], row["without_s"]
            predicted = row["predicted_s"]
            if name.startswith("+"):  # measured the other way round
                gain, predicted, kept, without = -gain, -predicted, without, kept
            numbers = " | ".join(f"{number:.1f}" for number in (predicted, gain, kept, without))
            lines.append(f"| {name} | {row['setting']} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
