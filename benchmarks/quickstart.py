"""The quickstart over several seeds: accuracy before and after, the PRM against the oracle, time, memory.

    python benchmarks/quickstart.py --seeds 0 1 2 --json quickstart.json

Runs `stepwell quickstart` for every seed whose summary is not there yet, one after the other, and prints one
table with the mean over seeds and its 95 % Student-t interval.

--json FILE keys: rows.NAME {values (one a seed), mean, low, high}, where NAME is sft or ppo with split and
way of decoding, a PRM metric, or seconds of a stage; seeds; versions; machine.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from eval.metrics import mean_interval

PRM_METRICS = ("step_accuracy", "step_auc", "first_error_f1", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", default="outputs/seed{seed}", help="quickstart folder of each seed")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    summaries = [summary_of(args.models.format(seed=seed), seed) for seed in args.seeds]
    rows = {name: row(values) for name, values in collect(summaries).items()}
    print(table(rows, args.seeds))
    if args.json:
        record = {"rows": rows, "seeds": args.seeds, "versions": summaries[0]["versions"]}
        record["machine"] = [summary["machine"] for summary in summaries]
        Path(args.json).write_text(json.dumps(record, indent=1))


def summary_of(folder: str, seed: int) -> dict[str, Any]:
    path = Path(folder) / "summary.json"
    if not path.exists():
        # A process of its own: peak memory is then this run's alone.
        command = [sys.executable, "-m", "reasoning_rl.cli", "quickstart"]
        subprocess.run([*command, "--seed", str(seed), "--output-dir", folder], check=True)
    return json.loads(path.read_text())


def collect(summaries: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Row name -> one value a seed."""
    columns: dict[str, list[float]] = {}
    for summary in summaries:
        for when, accuracies in summary["accuracy"].items():
            for name, estimate in accuracies.items():
                columns.setdefault(f"{when} {name.replace('_', ' ')}", []).append(estimate["value"])
        for name in PRM_METRICS:
            columns.setdefault(f"prm {name.replace('_', ' ')}", []).append(summary["prm"][name])
        for name, stage in summary["stages"].items():
            columns.setdefault(f"seconds {name}", []).append(stage["seconds"])
        columns.setdefault("seconds in all", []).append(summary["seconds"])
        peak = max(stage["peak_rss_mb"] for stage in summary["stages"].values())
        columns.setdefault("peak RSS, MiB", []).append(peak)
    return columns


def row(values: list[float]) -> dict[str, Any]:
    bounds = [bound if math.isfinite(bound) else None for bound in mean_interval(values)]
    return {"values": values, "mean": sum(values) / len(values), "low": bounds[0], "high": bounds[1]}


def table(rows: dict[str, dict[str, Any]], seeds: list[int]) -> str:
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean [95 %] |"]
    lines.append("|---|" + "--:|" * (len(seeds) + 1))
    for name, entry in rows.items():
        digits = 0 if name.startswith(("seconds", "peak")) else 3
        cells = [f"{value:.{digits}f}" for value in entry["values"]]
        interval = f"{entry['mean']:.{digits}f}"
        if entry["low"] is not None:
            interval += f" [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"
        lines.append(f"| {name} | {' | '.join(cells)} | {interval} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
