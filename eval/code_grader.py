"""From a model's response to a verdict on its program, for every benchmark of programs.

    grade = make_code_grader()
    grade(problem, "```python\\ndef add(a, b):\\n    return a + b\\n```")

The response may be the rest of the prompt's function, a whole program, or a chat answer with fenced code.
"""

import ast
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from data.errors import UserError
from data.protocols import Grader
from data.schema import Problem, Verdict
from eval.answers import in_fence
from eval.sandbox import Sandbox
from eval.sandbox.client import DEFAULT
from eval.sandbox.verdict import CodeVerdict

TIMEOUT_S = 10.0
"""For the tests of a problem; for each case of a problem with standard input and output."""
REFERENCE_TIMEOUT_S = 300.0
PLUS_TIMEOUT_S, PLUS_CALL_TIMEOUT_S = 60.0, 4.0
"""EvalPlus' limits for all inputs of a problem and for one; the latter is four times the reference's where
that is more."""
MEMORY_MB = 1024
FLOAT_TOLERANCE = 1e-6
"""Of values that are compared with those stored as JSON."""
MAX_CHARS = 1 << 20
"""Length of the longest program that is run."""
PartialCredit = Literal["off", "tests", "errors"]
"""What a wrong program is worth to a reward, a right one being worth 1. off: 0. tests: the share of the tests
that hold. errors: -1 when it does not compile, -0.6 when it raises or takes too long, -0.3 when a value is
wrong (CodeRL, arXiv 2207.01780)."""
_ERRORS = {"failed": -0.3, "error": -0.6, "timeout": -0.6}
_DOES_NOT_COMPILE = -1.0


def extract_code(response: str, entry_point: str = "") -> str:
    """Return the code in a response: its fenced block (eval.answers.in_fence), else the whole response."""
    found = in_fence(response, entry_point)
    return response if found is None else found


def assemble(problem: Problem, response: str) -> str:
    """Return the program to run: the prompt's part, where the benchmark has one, and the response's code.

    The code continues the prompt as it stands when that compiles; a body that lost its indentation (chat
    models and some samples files strip it) is given it back. Its lines `from __future__ import ...`, which
    nothing may precede, go above the prompt.
    """
    prefix = problem.meta.get("prefix", "")
    code = extract_code(response, problem.meta.get("entry_point", ""))
    if not prefix:
        return problem.meta.get("preamble", "") + code
    future, code = _split_future(code)
    prefix = future + prefix
    indented = "\n".join("    " + line if line.strip() else line for line in code.strip("\n").split("\n"))
    first = "    " + code.lstrip()
    whole = f"{prefix.rstrip()}\n    pass\n\n{code}"
    attempts = [prefix + code, f"{prefix.rstrip()}\n{code}", f"{prefix.rstrip()}\n{first}"]
    attempts += [f"{prefix.rstrip()}\n{indented}", whole, code]
    return next((text for text in attempts if _compiles(text)), attempts[0])


def _split_future(code: str) -> tuple[str, str]:
    """The lines of a whole program that import from __future__, and the other lines."""
    if "__future__" not in code or not _compiles(code):
        return "", code
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = ast.parse(code).body
    lines = re.split(r"\r\n?|\n", code)  # what Python counts as lines, which str.splitlines does not
    future = ""
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                future += lines[number] + "\n"
                lines[number] = ""
    return future, "\n".join(lines)


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
    references: dict[tuple[str, str], dict[str, Any]] = {}

    def compare_options(problem: Problem) -> dict[str, Any]:
        """The reference's values, what else is right, and limits by the time that it takes."""
        key = (problem.id, problem.answer)
        if key not in references:
            meta = problem.meta
            task = (meta["entry_point"], meta["calls"])
            found = sandbox.compute_values(meta["reference"], *task, timeout_s=REFERENCE_TIMEOUT_S)
            seconds = [taken for _, taken in found]
            options = {
                "expected": [value for value, _ in found],
                "timeout_s": max(timeout_s, PLUS_TIMEOUT_S, 4 * sum(seconds)),
                "call_timeout_s": max(PLUS_CALL_TIMEOUT_S, 4 * max(seconds, default=0.0)),
            }
            if meta.get("other_reading"):
                other = sandbox.compute_values(meta["other_reading"], *task, timeout_s=REFERENCE_TIMEOUT_S)
                options["others"] = [value for value, _ in other]
            references[key] = options
        return references[key]

    def run(problem: Problem, program: str) -> CodeVerdict:
        meta = problem.meta
        match meta["form"]:
            case "check":
                prompt = f"{meta.get('prefix', '').rstrip()}\n    pass\n" if meta.get("prefix") else ""
                return sandbox.run_check(program, meta["test"], meta["entry_point"], prompt=prompt, **limits)
            case "asserts":
                return sandbox.run_asserts(program, meta["test"], meta["entry_point"], **limits, **counting)
            case "stdio":
                return sandbox.run_stdio(program, meta["cases"], **limits, **counting)
            case "calls":
                tests = (meta["entry_point"], meta["calls"], meta["expected"])
                options: dict[str, Any] = {"tolerance": FLOAT_TOLERANCE, "sequences": "json"}
            case "differs":
                options = dict(compare_options(problem))
                tests = (meta["entry_point"], meta["calls"], options.pop("expected"))
                options |= {"tolerance": meta["tolerance"], "compare": meta["compare"]}
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


def make_public_check(grade: Grader) -> Callable[[Problem, str], bool | None]:
    """Return the function (problem, response) -> does it pass the tests that the problem's statement shows?

    None where it shows none, or where `grade` cannot judge.
    """

    def passes(problem: Problem, response: str) -> bool | None:
        if "public" not in problem.meta:
            return None
        shown = replace(problem, meta={**problem.meta, **problem.meta["public"]})
        verdict = grade(shown, response)
        return None if verdict.status == "unjudged" else verdict.status == "correct"

    return passes
