"""From a model's response to a verdict on its program, for every benchmark of programs.

    grade = make_code_grader()
    grade(problem, "```python\\ndef add(a, b):\\n    return a + b\\n```")

The response may be the rest of the prompt's function, a whole program, or a chat answer with fenced code.
"""

import ast
import re
import time
import warnings
from typing import Any, Literal

from data.errors import UserError
from data.protocols import Grader
from data.schema import Problem, Verdict
from eval.sandbox import Sandbox
from eval.sandbox.client import DEFAULT
from eval.sandbox.verdict import CodeVerdict

TIMEOUT_S = 10.0
"""For the tests of a problem; for each case of a problem with standard input and output."""
REFERENCE_TIMEOUT_S = 60.0
MEMORY_MB = 1024
FLOAT_TOLERANCE = 1e-6
"""Of values that are compared with a reference's, as EvalPlus has it."""
MAX_CHARS = 1 << 20
"""Length of the longest program that is run."""
PartialCredit = Literal["off", "tests", "errors"]
"""What a wrong program is worth to a reward, a right one being worth 1. off: 0. tests: the share of the tests
that hold. errors: -1 when it does not compile, -0.6 when it raises or takes too long, -0.3 when a value is
wrong (CodeRL, arXiv 2207.01780)."""
_ERRORS = {"failed": -0.3, "error": -0.6, "timeout": -0.6}
_DOES_NOT_COMPILE = -1.0

_FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)


def extract_code(response: str, entry_point: str = "") -> str:
    """Return the code in a response: the last fenced block that defines `entry_point`, else the longest
    Python block, else the whole response."""
    blocks = [(tag.strip().lower(), body) for tag, body in _FENCE.findall(response)]
    python = [body for tag, body in blocks if tag in ("", "python", "py", "python3")]
    if not python:
        return response
    name = re.escape(entry_point.rpartition(".")[2])
    defining = [body for body in python if name and re.search(rf"^\s*def\s+{name}\b", body, re.MULTILINE)]
    return defining[-1] if defining else max(python, key=len)


def assemble(problem: Problem, response: str) -> str:
    """Return the program to run: the prompt's part, where the benchmark has one, and the response's code.

    The code continues the prompt as it stands when that compiles; a body that lost its indentation (chat
    models and some samples files strip it) is given it back.
    """
    prefix = problem.meta.get("prefix", "")
    code = extract_code(response, problem.meta.get("entry_point", ""))
    if not prefix:
        return problem.meta.get("preamble", "") + code
    indented = "\n".join("    " + line if line.strip() else line for line in code.strip("\n").split("\n"))
    first = "    " + code.lstrip()
    whole = f"{prefix.rstrip()}\n    pass\n\n{code}"
    attempts = [prefix + code, f"{prefix.rstrip()}\n{code}", f"{prefix.rstrip()}\n{first}"]
    attempts += [f"{prefix.rstrip()}\n{indented}", whole, code]
    return next((text for text in attempts if _compiles(text)), attempts[0])


def _compiles(program: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a model's program is no news to the user
            compile(program, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def make_code_grader(
    *,
    sandbox: Sandbox = DEFAULT,
    timeout_s: float = TIMEOUT_S,
    memory_mb: int = MEMORY_MB,
    partial_credit: PartialCredit = "off",
) -> Grader:
    """Return the grader (problem, response) -> Verdict of problems that data.code_readers reads.

    correct: all tests passed. unjudged: the sandbox or the test broke, or the reference gave no values.
    wrong: everything else, with the sandbox's reason, and with the credit that `partial_credit` gives.
    """
    limits: dict[str, Any] = {"timeout_s": timeout_s, "memory_mb": memory_mb}
    counting: dict[str, Any] = {"count": True} if partial_credit == "tests" else {}
    references: dict[tuple[str, str], tuple[list[Any], float]] = {}

    def values(problem: Problem) -> tuple[list[Any], float]:
        """The reference's values, and the time that a program of a quarter of its speed needs for them."""
        key = (problem.id, problem.answer)
        if key not in references:
            meta = problem.meta
            started = time.monotonic()
            found = sandbox.compute_values(
                meta["reference"], meta["entry_point"], meta["calls"], timeout_s=REFERENCE_TIMEOUT_S
            )
            references[key] = found, 4 * (time.monotonic() - started)
        return references[key]

    def run(problem: Problem, program: str) -> CodeVerdict:
        meta = problem.meta
        match meta["form"]:
            case "check":
                return sandbox.run_check(program, meta["test"], meta["entry_point"], **limits)
            case "asserts":
                return sandbox.run_asserts(program, meta["test"], meta["entry_point"], **limits, **counting)
            case "stdio":
                return sandbox.run_stdio(program, meta["cases"], **limits, **counting)
            case "calls":
                tests = (meta["entry_point"], meta["calls"], meta["expected"])
                options: dict[str, Any] = {"tolerance": FLOAT_TOLERANCE, "sequences": "json"}
            case "differs":
                expected, seconds = values(problem)
                tests = (meta["entry_point"], meta["calls"], expected)
                tolerance = max(meta["tolerance"], FLOAT_TOLERANCE)
                options = {"tolerance": tolerance, "compare": meta["compare"]}
                options["timeout_s"] = max(timeout_s, seconds)
        return sandbox.run_calls(program, *tests, **(limits | options | counting))

    def credit(problem: Problem, program: str, verdict: CodeVerdict) -> float | None:
        match partial_credit:
            case "tests":
                return verdict.num_passed / count_tests(problem)
            case "errors":
                return _ERRORS[verdict.status] if _compiles(program) else _DOES_NOT_COMPILE
        return None

    def grade(problem: Problem, response: str) -> Verdict:
        nothing = _DOES_NOT_COMPILE if partial_credit == "errors" else None
        if not response.strip():
            return Verdict("wrong", "no answer", credit=nothing)
        if len(response) > MAX_CHARS:
            return Verdict("wrong", f"the response has more than {MAX_CHARS:,} characters", credit=nothing)
        program = assemble(problem, response)
        try:
            verdict = run(problem, program)
        except UserError as error:
            return Verdict("unjudged", str(error))
        if verdict.status == "passed":
            return Verdict("correct", "", verdict.seconds)
        if verdict.is_fault:
            return Verdict("unjudged", verdict.reason, verdict.seconds)
        reason = f"{verdict.status}: {verdict.reason}"
        return Verdict("wrong", reason, verdict.seconds, credit(problem, program, verdict))

    return grade


def count_tests(problem: Problem) -> int:
    """Return how many calls, cases or asserts judge the problem's programs; check(candidate) is one."""
    meta = problem.meta
    match meta["form"]:
        case "stdio":
            return len(meta["cases"])
        case "asserts":
            return sum(isinstance(node, ast.Assert) for node in ast.parse(meta["test"]).body) or 1
        case "calls" | "differs":
            return len(meta["calls"]) or 1
    return 1
