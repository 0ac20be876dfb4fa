"""The code sandbox on reference solutions: how many pass, and how many programs a CPU-second judges.

    python benchmarks/sandbox.py --data FOLDER --json sandbox.json

Judges the 164 HumanEval references and the 974 of MBPP in `<data>/code/`, one after another. No model, no
network. CPU-seconds are user and system time of this process, the judge, the fork server and every program,
start-up and end included; the network, file and process isolation is in force while measuring.

Keys of --json:
    isolation                    what kept the programs in
    humaneval, humaneval_passed  programs judged in the timed rounds, and those that passed
    rounds                       how often the 164 were judged
    cpu_seconds, programs_per_cpu_second, programs_per_second     of the HumanEval rounds (the last is wall
    clock) mbpp, mbpp_passed            references judged once, and those that passed mbpp_others
    list of {id, status, reason} for the rest
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from data.code_readers import read_code_problems
from data.files import write_atomically
from eval.code_grader import make_code_grader
from eval.sandbox import Sandbox

DEFAULT_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def spent() -> float:
    """CPU-seconds of this process and of all ended children, theirs included."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(data: Path, rounds: int) -> dict[str, Any]:
    """Return the figures described in the module docstring."""
    problems = read_code_problems("humaneval", data / "code" / "humaneval.jsonl")
    before, started, passed = spent(), time.monotonic(), 0
    with Sandbox() as sandbox:
        for _ in range(rounds):
            for problem in problems:
                meta = problem.meta
                verdict = sandbox.run_check(problem.solution, meta["test"], meta["entry_point"])
                passed += verdict.status == "passed"
        isolation = str(sandbox.isolation())
    wall, cpu = time.monotonic() - started, spent() - before

    mbpp = read_code_problems("mbpp", data / "code" / "mbpp.jsonl")
    with Sandbox() as sandbox:
        grade = make_code_grader(sandbox=sandbox, timeout_s=30.0)
        verdicts = {problem.id: grade(problem, problem.solution) for problem in mbpp}
    others = [
        {"id": name, "status": verdict.status, "reason": verdict.reason}
        for name, verdict in verdicts.items()
        if verdict.status != "correct"
    ]
    return {
        "isolation": isolation,
        "rounds": rounds,
        "humaneval": rounds * len(problems),
        "humaneval_passed": passed,
        "cpu_seconds": round(cpu, 3),
        "programs_per_cpu_second": round(rounds * len(problems) / cpu, 1),
        "programs_per_second": round(rounds * len(problems) / wall, 1),
        "mbpp": len(mbpp),
        "mbpp_passed": len(mbpp) - len(others),
        "mbpp_others": others,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Judge reference programs and count CPU-seconds.")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with code/")
    parser.add_argument("--rounds", type=int, default=3, help="times the HumanEval references are judged")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        sys.exit(f"{arguments.data}: no such folder; give the data folder with --data")
    figures = measure(arguments.data, arguments.rounds)
    for name, value in figures.items():
        Console().print(f"{name}: {json.dumps(value)}", markup=False, highlight=False, soft_wrap=True)
    if arguments.json:
        write_atomically(arguments.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
