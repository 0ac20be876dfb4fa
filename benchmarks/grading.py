"""The answer grader on recorded solutions, beside plain math-verify: agreement, verdicts, CPU-seconds.

    python benchmarks/grading.py --data ../shared/data --json grading.json

Reads `<data>/solutions/gsm8k_example_model_solutions.jsonl` (question, ground_truth, and four solvers with a
solution and a recorded is_correct each) and `<data>/math/math500.jsonl` (each gold solution must be judged
correct against its answer). No model, no network. CPU-seconds include the worker processes.

Keys of --json:
    solutions, agreement         graded GSM8K solutions and the share whose verdict is the recorded one
    agreement_math_verify        the same share for plain math-verify
    unjudged                     GSM8K solutions without a verdict
    disagreements                list of {row, solver, gold, answer, recorded, status, reason}
    math500, math500_correct     MATH-500 gold solutions graded, and those judged correct
    math500_correct_math_verify  those plain math-verify accepts
    math500_others               list of {row, status, reason} for the rest (no problem text)
    cpu_seconds, cpu_seconds_math_verify     of ours and of plain math-verify over the same pairs
    ratio                        cpu_seconds_math_verify / cpu_seconds
    slowest_seconds              longest verdict of ours but one (that one may start the worker), wall clock
"""

import argparse
import json
import logging
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.files import read_jsonl, write_atomically
from eval.answers import extract_answer
from eval.math_grader import WORKER, grade

SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
DEFAULT_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def gsm8k_cases(path: Path) -> list[dict[str, Any]]:
    """Return one case for each recorded solution."""
    cases = []
    for number, row in read_jsonl(path):
        gold = row["ground_truth"].rsplit("A:", 1)[1].strip()
        for solver in SOLVERS:
            cases.append(
                {
                    "row": number,
                    "solver": solver,
                    "gold": gold,
                    "response": row[solver]["solution"],
                    "recorded": row[solver]["is_correct"],
                }
            )
    return cases


def math_cases(path: Path) -> list[dict[str, Any]]:
    """Return one case for each problem: its own solution against its answer."""
    return [
        {"row": number, "gold": row["answer"], "response": row["solution"]}
        for number, row in read_jsonl(path)
    ]


def plain_math_verify(gold: str, response: str) -> bool:
    """Return what math-verify alone says, whole response in, with its own timeouts."""
    from math_verify import parse, verify

    return verify(parse(f"\\boxed{{{gold}}}"), parse(response))


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return (CPU-seconds of this process and its ended children, result); the worker is ended too."""
    WORKER.close()
    before = _spent()
    result = work()
    WORKER.close()
    return _spent() - before, result


def _spent() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(data: Path) -> dict[str, Any]:
    """Return the figures described in the module docstring."""
    import math_verify  # noqa: F401 - its import belongs to neither side's CPU-seconds

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    solved = gsm8k_cases(data / "solutions" / "gsm8k_example_model_solutions.jsonl")
    problems = math_cases(data / "math" / "math500.jsonl")
    pairs = [(case["gold"], case["response"]) for case in solved + problems]

    grade(r"\sqrt{8}", r"2\sqrt{2} + 0")
    times, verdicts = [], []

    def ours() -> None:
        for gold, response in pairs:
            start = time.monotonic()
            verdicts.append(grade(gold, response))
            times.append(time.monotonic() - start)

    own, _ = cpu_seconds(ours)
    theirs, plain = cpu_seconds(lambda: [plain_math_verify(gold, response) for gold, response in pairs])
    disagreements = [
        {
            **{key: case[key] for key in ("row", "solver", "gold", "recorded")},
            "answer": extract_answer(case["response"], "math") or "",
            "status": verdict.status,
            "reason": verdict.reason,
        }
        for case, verdict in zip(solved, verdicts, strict=False)
        if verdict.status != ("correct" if case["recorded"] else "wrong")
    ]
    others = [
        {"row": case["row"], "status": verdict.status, "reason": verdict.reason}
        for case, verdict in zip(problems, verdicts[len(solved) :], strict=True)
        if verdict.status != "correct"
    ]
    recorded = [case["recorded"] for case in solved]
    agreed = sum(a == b for a, b in zip(plain[: len(solved)], recorded, strict=True))
    return {
        "solutions": len(solved),
        "agreement": 1 - len(disagreements) / len(solved),
        "agreement_math_verify": agreed / len(solved),
        "unjudged": sum(verdict.status == "unjudged" for verdict in verdicts[: len(solved)]),
        "disagreements": disagreements,
        "math500": len(problems),
        "math500_correct": len(problems) - len(others),
        "math500_correct_math_verify": sum(plain[len(solved) :]),
        "math500_others": others,
        "cpu_seconds": own,
        "cpu_seconds_math_verify": theirs,
        "ratio": theirs / own,
        "slowest_seconds": sorted(times)[-2],
    }


def show(figures: dict[str, Any], console: Console) -> None:
    table = Table(title="Answer grading")
    for heading in ("", "stepwell", "math-verify"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row(
        f"agreement, {figures['solutions']} GSM8K solutions",
        f"{figures['agreement']:.4f}",
        f"{figures['agreement_math_verify']:.4f}",
    )
    table.add_row("unjudged", str(figures["unjudged"]), "-")
    table.add_row(
        f"correct, {figures['math500']} MATH-500 gold solutions",
        str(figures["math500_correct"]),
        str(figures["math500_correct_math_verify"]),
    )
    table.add_row("CPU-seconds", f"{figures['cpu_seconds']:.2f}", f"{figures['cpu_seconds_math_verify']:.2f}")
    table.add_row("slowest verdict, wall seconds", f"{figures['slowest_seconds']:.2f}", "-")
    console.print(table)
    console.print(f"math-verify's cost / ours: {figures['ratio']:.1f}")
    for row in figures["disagreements"] + figures["math500_others"]:
        console.print(json.dumps(row), markup=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Grade recorded solutions and compare with math-verify.")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with solutions/ and math/")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        sys.exit(f"{arguments.data}: no such folder; give the data folder with --data")
    figures = measure(arguments.data)
    show(figures, Console())
    if arguments.json:
        write_atomically(arguments.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
