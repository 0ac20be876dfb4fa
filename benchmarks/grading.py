"""The answer grader on recorded solutions, beside plain math-verify: agreement, verdicts, CPU-seconds.

    python benchmarks/grading.py --data FOLDER --json grading.json

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
    ratio_gsm8k, ratio_math500   the same for either set alone
    hard, hard_correct           pairs of HARD, and verdicts of ours that are right
    hard_correct_math_verify     the same for math-verify, which takes its own time limit
    hard_per_cpu_second, hard_per_cpu_second_math_verify, hard_ratio
    cases, cases_correct         rows of tests/grader_cases.jsonl without a ruling, and verdicts as labelled
    cases_correct_math_verify    the same for math-verify, with its defaults
    found, found_right, found_right_math_verify
                                 those of the cases that are not equal as text, a hard set that is not our own
                                 choice; and verdicts as labelled
    found_unjudged               verdicts of ours that leave it open
    found_ratio                  math-verify's CPU-seconds / ours, a process of one thread each, without what
                                 it takes to start and to grade one pair
    found_ratio_with_start       the same, start and all imports counted
    slowest_seconds              longest verdict of ours but one (that one may start the worker), wall clock
"""

import argparse
import json
import logging
import resource
import subprocess
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
HARD = (
    (r"\frac{\sqrt{\sqrt{11}+\sqrt{194}}}{15+2\sqrt{33}}",
     r"\frac{\sqrt{\sqrt{11}+\sqrt{194}}}{2\sqrt{33}+15}", True),
    (r"-\frac{2(x^2+6)}{9(x^2-2)\sqrt[3]{x^2-2}^2}",
     r"-\frac{8x^2}{9(x^2-2)^{5/3}}+\frac{2}{3(x^2-2)^{2/3}}", True),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}", True),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{5}}", False),
    (r"\tan^2 y+1", r"\sec^2 y", True),
    (r"\sin(a+b)-\sin(a-b)", r"2\sin b\cos a", True),
    (r"\sin 3x", r"3\sin x-4\sin^3 x", True),
    (r"\sin 3x", r"3\sin x+4\sin^3 x", False),
    (r"\frac{1-\cos 2x}{2}", r"\sin^2 x", True),
    (r"\binom{2n}{n}", r"\frac{(2n)!}{(n!)^2}", True),
    (r"\frac{n(n+1)(2n+1)}{6}", r"\frac{n^3}{3}+\frac{n^2}{2}+\frac{n}{6}", True),
    (r"\frac{n(n+1)(2n+1)}{6}", r"\frac{n^3}{3}+\frac{n^2}{2}-\frac{n}{6}", False),
    (r"(a+b+c)^3-a^3-b^3-c^3", r"3(a+b)(b+c)(c+a)", True),
    (r"x^4+4", r"(x^2+2x+2)(x^2-2x+2)", True),
    (r"x^4+4", r"(x^2+2x+2)(x^2-2x-2)", False),
    (r"\frac{1}{\sqrt{n+1}+\sqrt{n}}", r"\sqrt{n+1}-\sqrt{n}", True),
    (r"\log_2 n", r"\frac{\ln n}{\ln 2}", True),
    (r"\ln\frac{x^2}{y}", r"2\ln x-\ln y", True),
    (r"e^{2x}-e^{-2x}", r"2\sinh 2x", True),
    (r"\frac{e^{ix}+e^{-ix}}{2}", r"\cos x", True),
    (r"\frac{1+\sqrt{5}}{2}", r"\frac{2}{\sqrt{5}-1}", True),
    (r"\sqrt[3]{2+\sqrt{5}}+\sqrt[3]{2-\sqrt{5}}", "1", True),
    (r"\cos\frac{\pi}{5}", r"\frac{1+\sqrt{5}}{4}", True),
    (r"\cos\frac{\pi}{7}", r"\frac{1+\sqrt{5}}{4}", False),
    (r"\arctan 1+\arctan 2+\arctan 3", r"\pi", True),
    (r"e^{\pi\sqrt{163}}", "262537412640768744", False),
    (r"\frac{x^3-y^3}{x-y}", r"x^2+xy+y^2", True),
    (r"\frac{a}{b}+\frac{c}{d}", r"\frac{ad+bc}{bd}", True),
    (r"\frac{a}{b}+\frac{c}{d}", r"\frac{a+c}{b+d}", False),
    (r"2^{n+1}-2^n", r"2^n", True),
    (r"\lfloor\frac{n}{2}\rfloor+\lceil\frac{n}{2}\rceil", "n", True),
    (r"x^2/4+y^2/3=1", r"3x^2+4y^2=12", True),
    (r"34x+45y-20z+100=0", r"-34x-45y+20z-100=0", True),
    (r"y=\frac{3}{4}-\frac{x}{2}", r"2x+4y-3=0", True),
    (r"-3<2x+1\le 7", r"(-2,3]", True),
    (r"-2<x\le 3", r"(-2,3]", True),
    (r"\begin{pmatrix}\sqrt{8}&0\\1&\frac{2}{\sqrt{2}}\end{pmatrix}",
     r"\begin{pmatrix}2\sqrt{2}&0\\1&\sqrt{2}\end{pmatrix}", True),
    (r"\left(\frac{1}{\sqrt{3}},\sqrt{12}\right)", r"\left(\frac{\sqrt{3}}{3},2\sqrt{3}\right)", True),
    (r"\{1+\sqrt{2},1-\sqrt{2}\}", r"\{1\pm\sqrt{2}\}", True),
    (r"\frac{2021\cdot 505\cdot 337}{5}", r"\frac{343943885}{5}", True),
)  # fmt: skip
"""Gold, answer, whether they are the same: what needs algebra."""

CASES = Path(__file__).resolve().parent.parent / "tests" / "grader_cases.jsonl"
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

    def ours(chosen: list[tuple[str, str]]) -> None:
        for gold, response in chosen:
            start = time.monotonic()
            verdicts.append(grade(gold, response))
            times.append(time.monotonic() - start)

    def rivals(chosen: list[tuple[str, str]]) -> tuple[float, list[bool]]:
        return cpu_seconds(lambda: [plain_math_verify(gold, response) for gold, response in chosen])

    own, _ = cpu_seconds(lambda: ours(pairs[: len(solved)]))
    own_math, _ = cpu_seconds(lambda: ours(pairs[len(solved) :]))
    theirs, plain = rivals(pairs[: len(solved)])
    theirs_math, plain_math = rivals(pairs[len(solved) :])
    ratios = {"ratio_gsm8k": theirs / own, "ratio_math500": theirs_math / own_math}
    own, theirs, plain = own + own_math, theirs + theirs_math, plain + plain_math
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
        **ratios,
        **measure_hard(),
        **measure_cases(),
        **measure_found(found_pairs()),
        "slowest_seconds": sorted(times)[-2],
    }


def measure_hard() -> dict[str, Any]:
    """Return the figures of HARD. Neither side pays for its imports: ours less one start of the worker."""
    integral = ("1", r"\int_0^1 2x dx")
    plain_math_verify("1/2", "$0.5$")
    start = min(cpu_seconds(lambda: grade(*integral, timeout_s=20))[0] for _ in range(3))
    verdicts: list[bool] = []

    def ours() -> None:
        verdicts.extend(grade(g, p, timeout_s=20).status == "correct" for g, p, _ in HARD)
        grade(*integral, timeout_s=20)  # so that there is a start to subtract

    own = cpu_seconds(ours)[0] - start
    theirs, plain = cpu_seconds(lambda: [plain_math_verify(g, f"${p}$") for g, p, _ in HARD])
    labels = [same for _, _, same in HARD]
    return {
        "hard": len(HARD),
        "hard_correct": sum(a == b for a, b in zip(verdicts, labels, strict=True)),
        "hard_correct_math_verify": sum(bool(a) == b for a, b in zip(plain, labels, strict=True)),
        "hard_per_cpu_second": len(HARD) / own,
        "hard_per_cpu_second_math_verify": len(HARD) / theirs,
        "hard_ratio": theirs / own,
    }


def measure_cases() -> dict[str, Any]:
    """Return how many of the other graders' own test cases each side judges as labelled."""
    cases = [row for _, row in read_jsonl(CASES) if "ruling" not in row]

    def plain(case: dict[str, Any]) -> bool:
        from math_verify import parse, verify

        return bool(verify(parse(case["gold"]), parse(case["answer"])))

    return {
        "cases": len(cases),
        "cases_correct": sum(
            (grade(c["gold"], c["answer"], timeout_s=20).status == "correct") == c["same"] for c in cases
        ),
        "cases_correct_math_verify": sum(plain(c) == c["same"] for c in cases),
    }


def found_pairs() -> list[tuple[str, str, bool]]:
    """Return (gold, answer, same) of the other graders' cases that text alone does not settle."""
    cases = [row for _, row in read_jsonl(CASES) if "ruling" not in row]
    return [(c["gold"], c["answer"], c["same"]) for c in cases if _plain(c["gold"]) != _plain(c["answer"])]


def _plain(text: str) -> str:
    return "".join(text.split()).strip("$.")


def measure_found(pairs: list[tuple[str, str, bool]]) -> dict[str, Any]:
    """Return the figures of pairs, each side in a process of its own."""
    sides = {}
    for side in ("stepwell", "math-verify"):
        start = min(_run_side(side, [])[0] for _ in range(2))
        total, said = _run_side(side, pairs)
        sides[side] = total, total - start, said
    own, other = sides["stepwell"], sides["math-verify"]

    def right(said: list[str]) -> int:
        return sum((one == "correct") == same for one, (_, _, same) in zip(said, pairs, strict=True))

    return {
        "found": len(pairs),
        "found_right": right(own[2]),
        "found_right_math_verify": right(other[2]),
        "found_unjudged": own[2].count("unjudged"),
        "found_per_cpu_second": len(pairs) / own[1],
        "found_per_cpu_second_math_verify": len(pairs) / other[1],
        "found_ratio": other[1] / own[1],
        "found_ratio_with_start": other[0] / own[0],
    }


def _run_side(side: str, pairs: list[tuple[str, str, bool]]) -> tuple[float, list[str]]:
    """CPU-seconds of a process and of all that it started, and its verdicts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.run(
        [sys.executable, __file__, "--side", side],
        input=json.dumps(pairs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, json.loads(child.stdout)


def judge_pairs(side: str) -> None:
    """Grade the pairs of standard input; print the verdicts."""
    pairs = json.load(sys.stdin)
    if side == "stepwell":
        grade(r"1", r"\int_0^1 2x dx", timeout_s=20)  # so that there is a start to subtract
        said = [grade(gold, answer, timeout_s=20).status for gold, answer, _ in pairs]
        WORKER.close()
    else:
        logging.getLogger("math_verify").setLevel(logging.CRITICAL)
        plain_math_verify("1", r"$\int_0^1 2x dx$")
        said = [
            "correct" if plain_math_verify(g, a if "$" in a else f"${a}$") else "wrong" for g, a, _ in pairs
        ]
    sys.stdout.write(json.dumps(said))


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
    for label, key in (
        (f"right, {figures['hard']} hard expressions", "hard_correct"),
        (f"as labelled, {figures['cases']} cases of other graders", "cases_correct"),
        (f"right, {figures['found']} found pairs, {figures['found_unjudged']} unjudged", "found_right"),
    ):
        table.add_row(label, str(figures[key]), str(figures[f"{key}_math_verify"]))
    rates = (figures[key] for key in ("hard_per_cpu_second", "hard_per_cpu_second_math_verify"))
    table.add_row("hard expressions per CPU-second", *(f"{rate:.0f}" for rate in rates))
    rates = (figures[key] for key in ("found_per_cpu_second", "found_per_cpu_second_math_verify"))
    table.add_row("found pairs per CPU-second", *(f"{rate:.0f}" for rate in rates))
    console.print(table)
    console.print(
        f"math-verify's cost / ours: {figures['ratio']:.1f} (GSM8K {figures['ratio_gsm8k']:.1f}, "
        f"MATH-500 {figures['ratio_math500']:.1f}, hard expressions {figures['hard_ratio']:.1f}, found pairs "
        f"{figures['found_ratio']:.1f}, with start {figures['found_ratio_with_start']:.1f})"
    )
    for row in figures["disagreements"] + figures["math500_others"]:
        console.print(json.dumps(row), markup=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Grade recorded solutions and compare with math-verify.")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder with solutions/ and math/")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--side", choices=("stepwell", "math-verify"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        judge_pairs(arguments.side)
        return
    if not arguments.data.is_dir():
        sys.exit(f"{arguments.data}: no such folder; give the data folder with --data")
    figures = measure(arguments.data)
    show(figures, Console())
    if arguments.json:
        write_atomically(arguments.json, json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
