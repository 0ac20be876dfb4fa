"""Speed, use and memory of one GPU, part by part, and a short PPO course on it: one command, under 8 minutes.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --device cpu --seconds 20          # a smoke check without a GPU

Needs torch, transformers, accelerate and pydantic, and PYTHONPATH=. where Stepwell is not installed.

Parts: SFT, PRM training, PRM scoring, rollouts (transformers) and a whole PPO iteration with a PRM, of
decoders of 0.1 and 0.5 billion parameters (random weights, float32, bf16 autocast; the frozen PRM and
reference in bf16), each by the function that a run calls. Then, in a small model, the course:
SFT from scratch on demonstrations with bad habits in the arithmetic world's `hard` problems, a PRM on its
labelled samples, PPO-max on the PRM's scores and the verified answers until the time is up.

Seconds are medians of repeats after a warm-up, with torch.cuda.synchronize on both sides. MFU is the model's
FLOPs (every product that the method asks for: nothing computed again, no padding) over the rate of a large
bf16 matrix product in the same run, and over the data sheet's dense bf16 peak where the device is known.
`rollouts` and the PPO iteration sample as a run does, with float32 weights and no autocast; `rollouts_bf16`
shows the same with bf16 weights. A part that runs out of memory or time says so, and the rest goes on.

Keys of the JSON:
    device, device_gib, versions, micro_batch_tokens, seconds (all), gemm_tflops,
    peak_tflops (of the data sheet; null: unknown)
    rows      a list; each has size, part and either `failed` (why) or parameters, tokens (of one repeat: all
              of prompt and response, for rollouts the sampled ones), seconds, repeats, warmed_up (false: time
              for one repeat only), tokens_per_s, tflops (model FLOPs a second), mfu, mfu_peak (null: peak
              unknown), peak_gpu_mib (torch.cuda.max_memory_allocated; null on a CPU), phases (PPO: seconds)
    course    difficulty, parameters, seconds.STAGE, sft_loss, prm_step_auc (fresh samples; null: undefined),
              accuracy.{before,after}.{greedy,sampled} {value, low, high (Wilson, 95 %), num_problems},
              iterations, rollouts, peak_gpu_mib, curve: a list of {iteration, seconds, outcome, step_score,
              kl, mismatch}; failed, where it broke off
"""

import argparse
import gc
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SIZES = ("tiny", "0.1b", "0.5b")


def main(argv: list[str] | None = None) -> int:
    args = read_options(argv)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu.py: torch finds no GPU; --device cpu --seconds 20 runs a smoke check without",
            file=sys.stderr,
        )
        return 2
    from gpu_course import COURSES, run_course
    from gpu_parts import PARTS
    from gpu_timing import Place, data_sheet_tflops, gemm_rate

    started = STARTED if argv is None else time.perf_counter()
    place = Place.find(args.device, args.micro_batch_tokens)
    name, gib = describe(place.device)
    rate = gemm_rate(place.device)
    peak = data_sheet_tflops(name)
    result: dict[str, Any] = {
        "device": name,
        "device_gib": gib,
        "versions": versions(),
        "micro_batch_tokens": place.micro_batch_tokens,
        "gemm_tflops": round(rate / 1e12, 4),
        "peak_tflops": peak,
        "rows": [],
        "course": None,
    }
    print(f"{name}, {gib:.0f} GiB: a bf16 product runs at {rate / 1e12:,.1f} TFLOP/s", flush=True)
    course_seconds = args.seconds if args.course != "off" else 0.0
    rows_end = started + args.limit - course_seconds
    for size, part in itertools.product(args.sizes, PARTS):
        row: dict[str, Any] = {"size": size, "part": part}
        if time.perf_counter() < rows_end:
            measure = partial(PARTS[part], size, place, rows_end, rate=rate, peak=peak)
            guard(row, lambda row=row, measure=measure: row.update(measure()))
        else:
            row["failed"] = "out of time"
        result["rows"].append(row)
        print(row_text(row), flush=True)
        write(args.json, result, started)
    if args.course != "off":
        course = result["course"] = {}
        deadline = min(time.perf_counter() + args.seconds, started + args.limit)
        guard(course, lambda: run_course(course, COURSES[args.course], place, deadline, seed=args.seed))
        print(course_text(course), flush=True)
    write(args.json, result, started)
    print(f"{result['seconds']:.0f} s in all", flush=True)
    broken = [row for row in (*result["rows"], result["course"] or {}) if row.get("failed")]
    return int(any(not row["failed"].startswith("out of") for row in broken))


def guard(row: dict[str, Any], work: Callable[[], Any]) -> None:
    """Run a part; what stops it is written into its row, and its memory is free again afterwards."""
    import torch

    try:
        work()
    except Exception as error:  # recorded: the other parts are worth having
        # cuBLAS that finds no room for its workspace says so in its own way.
        if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):
            row["failed"] = "out of memory"
        else:
            traceback.print_exc()
            row["failed"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
    gc.collect()  # models and optimisers refer to one another in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe(device: Any) -> tuple[str, float]:
    """Name of the device and its memory in GiB; of a CPU the machine's."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, round(properties.total_memory / 2**30, 1)
    return "cpu", round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def versions() -> dict[str, Any]:
    """Of the packages that decide; the project itself need not be installed."""
    import platform

    import accelerate
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        **{package.__name__: package.__version__ for package in (torch, transformers, accelerate)},
        "cuda": torch.version.cuda,
    }


def write(path: str | None, result: dict[str, Any], started: float) -> None:
    """After every part: a run that is killed leaves what it has measured."""
    result["seconds"] = round(time.perf_counter() - started, 1)
    if path:
        Path(path).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def row_text(row: dict[str, Any]) -> str:
    head = f"{row['size']:>5} {row['part']:<14}"
    if "failed" in row:
        return f"{head} {row['failed']}"
    memory = "" if row["peak_gpu_mib"] is None else f", peak {row['peak_gpu_mib']:,.0f} MiB"
    sheet = "" if row["mfu_peak"] is None else f" ({row['mfu_peak']:.1%} of the data sheet)"
    text = (
        f"{head} {row['tokens_per_s']:>12,.0f} tokens/s, MFU {row['mfu']:.1%}{sheet}{memory}; "
        f"{row['seconds']:.3f} s, {row['repeats']} repeats"
    )
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row.get("phases", {}).items())
    return f"{text}\n      {phases}" if phases else text


def course_text(course: dict[str, Any]) -> str:
    lines = []
    for when, ways in course.get("accuracy", {}).items():
        for how, found in ways.items():
            lines.append(
                f"course: {when} PPO, {how}: {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] "
                f"of {found['num_problems']} {course['difficulty']} problems"
            )
    if "iterations" in course:
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in course["seconds"].items())
        lines.append(f"course: {course['iterations']} iterations, {course['rollouts']:,} rollouts; {stages}")
    if "failed" in course:
        lines.append(f"course: {course['failed']}")
    return "\n".join(lines)


def read_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="0.1b and 0.5b; on a CPU tiny")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the whole course, SFT included")
    parser.add_argument("--limit", type=float, default=450.0, help="seconds of everything")
    parser.add_argument("--course", choices=("full", "tiny", "off"), help="full; on a CPU tiny")
    parser.add_argument("--micro-batch-tokens", type=int, help="of one forward; by the device's memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args(argv)
    on_cpu = args.device == "cpu"
    args.sizes = args.sizes or (["tiny"] if on_cpu else ["0.1b", "0.5b"])
    args.course = args.course or ("tiny" if on_cpu else "full")
    return args


if __name__ == "__main__":
    sys.exit(main())
