"""Programming benchmarks -> Problem records: HumanEval, MBPP, their EvalPlus versions, APPS, CodeContests.

    problems = read_code_problems("humaneval", "humaneval.jsonl", limit=10)

A Problem's `text` is what a model is given, `solution` the reference program ("" without one), `answer` a
digest of the tests, so that a run over changed tests is not taken for the same. `meta` holds the tests, one
of these forms:

    check    prefix, test, entry_point      the test defines check(candidate); prefix goes before the code
    asserts  test, entry_point              statements that call the entry point and assert
    calls    entry_point, calls, expected   arguments and values, as JSON has them
    differs  prefix, entry_point, calls, reference, other_reading, tolerance, compare
                                            expected values are the reference's
    stdio    cases                          pairs (input, expected output)

"public", where there is one, holds the fields that take the place of these to run those tests alone that the
problem's statement shows.
"""

import ast
import json
import warnings
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import UserError, did_you_mean
from data.evalplus import COMPARED, OTHER_READINGS, is_judgeable
from data.mbpp_types import python_arguments
from data.public_tests import shown_cases
from data.schema import Problem
from data.sources import Row, field, read_rows, show, texts


def read_code_problems(
    benchmark: str, source: str | Path | None = None, *, split: str | None = None, limit: int | None = None
) -> list[Problem]:
    """Return the problems of a programming benchmark in its order, at most `limit`.

    `source` is a local file, a folder or a hub id with that benchmark's fields; None: its home on the hub.
    Ids are those of published samples files: "HumanEval/0", "Mbpp/2".

    Raises UserError for an unknown benchmark and, with file and line, for rows that lack a field.
    """
    if benchmark not in CODE_BENCHMARKS:
        raise UserError(f"benchmark '{benchmark}' is unknown{did_you_mean(benchmark, CODE_BENCHMARKS)}")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}; leave it out to read every problem")
    home = CODE_BENCHMARKS[benchmark]
    source = home.hub_id if source is None else source
    config = home.config if source == home.hub_id or Path(source).is_dir() else None
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    rows = read_rows(source, split=split or home.split, name=config)
    if benchmark == "mbpp" and split is not None:
        rows = (row for row in rows if _mbpp_split(row) == split)
    for row in islice(rows, limit):
        parts = home.read(row)
        name = parts["id"]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:  # as in data.task_readers: some files hold a problem twice
            parts["id"] = f"{name}-{seen[name]}"
        tests = {key: value for key, value in parts["meta"].items() if key != "public"}
        digest = sha256(json.dumps(tests, sort_keys=True, default=repr).encode()).hexdigest()[:16]
        problems.append(Problem(answer=digest, source=benchmark, **parts))
    if not problems:
        raise UserError(f"{source}: no rows" + (f" of split '{split}'" if split else ""))
    return problems


_PLUS = "task_id, prompt, entry_point, canonical_solution, base_input, plus_input"

# --- HumanEval and MBPP ----------------------------------------------------------------------------------


def _read_humaneval(row: Row) -> dict[str, Any]:
    """task_id, prompt, entry_point, canonical_solution, test."""
    prompt, test, entry_point, solution = (
        field(row, name, str, expected="task_id, prompt, entry_point, canonical_solution, test")
        for name in ("prompt", "test", "entry_point", "canonical_solution")
    )
    return {
        "id": _task_id(row, "HumanEval"),
        "text": prompt,
        "solution": prompt + solution,
        "meta": {"form": "check", "prefix": prompt, "test": test, "entry_point": entry_point},
    }


def _read_humaneval_plus(row: Row) -> dict[str, Any]:
    """As HumanEval, with base_input, plus_input (lists of argument lists) and atol, as EvalPlus releases it;
    or with all of it in the field test, as on the hub."""
    if "base_input" not in row.values and "test" in row.values:
        return _read_humaneval(row)
    prompt, entry_point, solution = (
        field(row, name, str, expected=_PLUS) for name in ("prompt", "entry_point", "canonical_solution")
    )
    meta = _differs(row, entry_point, prompt, prompt + solution, _inputs(row))
    return {"id": _task_id(row, "HumanEval"), "text": prompt, "solution": prompt + solution, "meta": meta}


def _differs(
    row: Row, entry_point: str, prefix: str, reference: str, calls: list[list[Any]]
) -> dict[str, Any]:
    return {
        "form": "differs",
        "prefix": prefix,
        "entry_point": entry_point,
        "calls": calls,
        "tolerance": float(row.values.get("atol") or 0),
        "reference": reference,
        "other_reading": OTHER_READINGS.get(entry_point, ""),
        "compare": COMPARED.get(entry_point, "reference"),
    }


def _read_mbpp(row: Row) -> dict[str, Any]:
    """task_id, text or prompt, code, test_list, and where present challenge_test_list, test_setup_code or
    test_imports. The first test is shown to the model, as the published prompts do: it names the function."""
    text_field = "text" if "text" in row.values else "prompt"
    text = field(row, text_field, str, expected="task_id, text or prompt, code, test_list")
    solution = field(row, "code", str, expected="task_id, text or prompt, code, test_list")
    tests = [*texts(row, "test_list")]
    if "challenge_test_list" in row.values:
        tests += texts(row, "challenge_test_list")
    if not tests:
        raise UserError(f"{row.where}: field 'test_list' is empty; give at least one assert")
    setup = [str(row.values.get("test_setup_code") or "")]
    if "test_imports" in row.values:
        setup += texts(row, "test_imports")
    setup = [part for part in setup if part]
    test = "\n".join(setup + [part.strip() for part in tests])
    entry_point = _tested_function(row, solution, tests)
    public = {"test": "\n".join([*setup, tests[0].strip()])}
    return {
        "id": _task_id(row, "Mbpp"),
        "text": f'"""\n{text.strip()}\n{tests[0].strip()}\n"""\n',
        "solution": solution,
        "meta": {"form": "asserts", "test": test, "entry_point": entry_point, "public": public},
    }


def _mbpp_split(row: Row) -> str:
    """The split that a task's number puts it in (arXiv 2108.07732): files hold all of them together."""
    number = int(_task_id(row, "Mbpp").rpartition("/")[2])
    return next(name for name, last in _MBPP_LAST.items() if number <= last)


_MBPP_LAST = {"prompt": 10, "test": 510, "validation": 600, "train": 10**9}


def _tested_function(row: Row, solution: str, tests: list[str]) -> str:
    """The function of the reference solution that the tests call; the last one of several."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a reference is no news to the user
            program, asserts = (ast.parse(text) for text in (solution, "\n".join(t.strip() for t in tests)))
        defined = {node.name for node in program.body if isinstance(node, ast.FunctionDef)}
        called = [
            node.func.id
            for node in ast.walk(asserts)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined
        ]
    except SyntaxError as error:
        raise UserError(
            f"{row.where}: code or tests are no Python ({error}); mend or remove the row"
        ) from error
    if not called:
        raise UserError(f"{row.where}: no test calls a function that field 'code' defines")
    return called[0]


def _read_mbpp_plus(row: Row) -> dict[str, Any]:
    """task_id, prompt, entry_point, canonical_solution, base_input, plus_input, atol, as EvalPlus has it; or
    as MBPP, with all inputs in the field test, as on the hub."""
    if "base_input" not in row.values and "test" in row.values:
        parts = _read_mbpp(row)
        imports = [] if "test_imports" not in row.values else texts(row, "test_imports")
        parts["meta"]["test"] = "\n".join([*imports, field(row, "test", str)])
        return parts
    prompt, entry_point, solution = (
        field(row, name, str, expected=_PLUS) for name in ("prompt", "entry_point", "canonical_solution")
    )
    name = _task_id(row, "Mbpp")
    number = int(name.rpartition("/")[2])
    calls = [python_arguments(number, arguments) for arguments in _inputs(row)]
    calls = [arguments for arguments in calls if is_judgeable(entry_point, arguments)]
    meta = _differs(row, entry_point, "", solution, calls)
    return {"id": name, "text": prompt, "solution": solution, "meta": meta}


def _inputs(row: Row) -> list[list[Any]]:
    inputs = [*field(row, "base_input", list)]
    # MBPP+ has {} for "none" in a few rows.
    plus = row.values.get("plus_input") or []
    inputs += plus if isinstance(plus, list) else []
    for index, arguments in enumerate(inputs):
        if not isinstance(arguments, list):
            raise UserError(f"{row.where}: input {index} must be a list of arguments, got {show(arguments)}")
    return inputs


def _task_id(row: Row, family: str) -> str:
    """ "HumanEval/3" as it stands; 3 and "3" get the family's name."""
    name = field(row, "task_id", (str, int))
    if isinstance(name, int) or name.isdigit():
        return f"{family}/{name}"
    if not name.rpartition("/")[2].isdigit():
        raise UserError(f"{row.where}: field 'task_id' must be a number or end in one, got {show(name)}")
    return name


# --- APPS and CodeContests -------------------------------------------------------------------------------


def _read_apps(row: Row) -> dict[str, Any]:
    """APPS as on the hub: question, input_output (JSON text), starter_code, problem_id; or with the fields
    description, test_list [{input, output}], starter_code, id."""
    if "test_list" in row.values:
        return _read_apps_listed(row)
    text = field(row, "question", str, expected="problem_id, question, input_output, starter_code")
    tests = _json_field(row, "input_output")
    inputs, outputs = (tests.get(name) for name in ("inputs", "outputs"))
    if (
        not isinstance(inputs, list)
        or not isinstance(outputs, list)
        or len(inputs) != len(outputs)
        or not inputs
    ):
        raise UserError(f"{row.where}: field 'input_output' must hold as many inputs as outputs, and some")
    starter = str(row.values.get("starter_code") or "")
    solutions = _json_field(row, "solutions", default="[]")
    name = tests.get("fn_name")
    if name:
        if all(isinstance(output, list) and len(output) == 1 for output in outputs):
            outputs = [output[0] for output in outputs]
        entry_point = f"Solution.{name}" if "class Solution" in starter else str(name)
        meta = {"form": "calls", "entry_point": entry_point, "calls": [_integer_keys(i) for i in inputs]}
        meta |= {"expected": outputs, "preamble": _PREAMBLE if "class Solution" in starter else ""}
    else:
        cases = [(_joined(i), _joined(o)) for i, o in zip(inputs, outputs, strict=True)]
        meta = {"form": "stdio", "cases": cases} | _public(cases=shown_cases(text, cases))
    solution = solutions[0] if solutions else ""
    return _contest(
        f"apps/{row.values.get('problem_id', row.values.get('id'))}", text, starter, solution, meta
    )


_PREAMBLE = """from typing import *
from collections import *
from functools import *
from itertools import *
from heapq import *
from bisect import *
import collections, functools, heapq, itertools, math, random, re, string, bisect, operator
"""
"""What the judge of problems in the form `class Solution` has imported already."""


def _read_apps_listed(row: Row) -> dict[str, Any]:
    text = field(row, "description", str, expected="id, description, test_list, starter_code")
    tests = field(row, "test_list", list)
    starter = str(row.values.get("starter_code") or "")
    samples = field(row, "sample_io", list) if "sample_io" in row.values else []
    for index, test in enumerate([*tests, *samples]):
        if not (isinstance(test, dict) and isinstance(test.get("input"), str) and test.get("output")):
            raise UserError(
                f"{row.where}: test {index} must have an input (text) and an output, got {show(test)}"
            )
    if starter.strip():
        entry_point, count = _signature(row, starter)
        # Samples and tests together say which parameters are text.
        calls = _unquoted_arguments([test["input"] for test in [*tests, *samples]], count)
        expected = [test["output"][0] for test in [*tests, *samples]]
        cut = len(tests)
        meta = {"form": "calls", "entry_point": entry_point, "calls": calls[:cut], "expected": expected[:cut]}
        meta |= _public(calls=calls[cut:], expected=expected[cut:])
    else:
        cases = [(t["input"], _joined(t["output"])) for t in tests]
        shown = [(t["input"], _joined(t["output"])) for t in samples] or shown_cases(text, cases)
        meta = {"form": "stdio", "cases": cases} | _public(cases=shown)
    return _contest(f"apps/{row.values.get('id')}", text, starter, "", meta)


def _read_codecontests(row: Row) -> dict[str, Any]:
    """name or problem_id, description or problem, and tests {inputs, outputs}, or public_tests, private_tests
    and generated_tests {input, output} as on the hub: all of them count."""
    text_field = "description" if "description" in row.values else "problem"
    text = field(row, text_field, str, expected="name, description, tests")
    if "tests" in row.values:
        pairs = [("tests.inputs", "tests.outputs")]
    else:
        groups = [f"{kind}_tests" for kind in ("public", "private", "generated")]
        pairs = [(f"{group}.input", f"{group}.output") for group in groups if group in row.values]
    cases: list[tuple[str, str]] = []
    for inputs, outputs in pairs:
        given, wanted = texts(row, inputs), texts(row, outputs)
        if len(given) != len(wanted):
            raise UserError(
                f"{row.where}: {len(given)} {inputs} but {len(wanted)} {outputs}; give one for each"
            )
        cases += zip(given, wanted, strict=True)
    if not cases:
        raise UserError(f"{row.where}: no tests; expected the field tests or public_tests")
    if "public_tests" in row.values and "tests" not in row.values:
        given, wanted = (texts(row, f"public_tests.{name}") for name in ("input", "output"))
        shown = list(zip(given, wanted, strict=True))
    else:
        shown = shown_cases(text, cases)
    name = row.values.get("problem_id") or row.values.get("name") or sha256(text.encode()).hexdigest()[:12]
    solution = str(row.values.get("solution_python3") or "")
    meta = {"form": "stdio", "cases": cases} | _public(cases=shown)
    return _contest(f"codecontests/{name}", text, "", solution, meta)


def _public(**tests: list[Any]) -> dict[str, Any]:
    """The field of the tests that the statement shows, where there are any."""
    return {"public": tests} if all(tests.values()) else {}


def _contest(name: str, text: str, starter: str, solution: str, meta: dict[str, Any]) -> dict[str, Any]:
    if meta["form"] == "stdio":
        task = f"{text.rstrip()}\n\nRead from standard input and write to standard output.\n"
    else:
        task = f"{text.rstrip()}\n\nBegin with this code:\n{starter.rstrip()}\n"
    return {"id": name, "text": task, "solution": solution, "meta": meta}


def _json_field(row: Row, name: str, default: str | None = None) -> Any:
    value = row.values.get(name) or default
    try:
        return json.loads(value) if isinstance(value, str) else field(row, name, (dict, list))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{row.where}: field '{name}' is no JSON ({error}); mend it or remove it") from error


def _joined(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


def _integer_keys(value: Any) -> Any:
    """JSON made text of the integer keys of dictionaries."""
    if isinstance(value, list):
        return [_integer_keys(item) for item in value]
    if isinstance(value, dict) and value and all(key.lstrip("-").isdigit() for key in value):
        return {int(key): _integer_keys(item) for key, item in value.items()}
    return value


def _signature(row: Row, starter: str) -> tuple[str, int]:
    """Entry point and number of parameters of starter code, which lacks its body."""
    try:
        (first, *_) = ast.parse(starter.rstrip() + "\n        pass\n").body
        owner = f"{first.name}." if isinstance(first, ast.ClassDef) else ""
        function = first.body[0] if isinstance(first, ast.ClassDef) else first
        assert isinstance(function, ast.FunctionDef)
    except (SyntaxError, AssertionError, ValueError) as error:
        raise UserError(
            f"{row.where}: field 'starter_code' defines no function, got {show(starter)}"
        ) from error
    return owner + function.name, len(function.args.args) - bool(owner)


def _unquoted_arguments(inputs: list[str], count: int) -> list[list[Any]]:
    """Arguments from texts with one a line, in which strings stand without quotes.

    A parameter is text in every test when it is no literal in one of them: "1234" beside "a234" is text.
    """
    rows = [text.split("\n", count - 1) if count > 1 else [text] for text in inputs]
    columns = []
    for index in range(count):
        column = [row[index] if index < len(row) else "" for row in rows]
        try:
            columns.append([ast.literal_eval(text.strip()) for text in column])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            columns.append(column)
    return [list(arguments) for arguments in zip(*columns, strict=True)]


class CodeBenchmark(NamedTuple):
    """Where a programming benchmark is published, and how a row of it becomes a task."""

    hub_id: str
    config: str | None
    split: str
    read: Callable[[Row], dict[str, Any]]


CODE_BENCHMARKS: dict[str, CodeBenchmark] = {
    "humaneval": CodeBenchmark("openai/openai_humaneval", None, "test", _read_humaneval),
    "humaneval_plus": CodeBenchmark("evalplus/humanevalplus", None, "test", _read_humaneval_plus),
    "mbpp": CodeBenchmark("google-research-datasets/mbpp", "full", "test", _read_mbpp),
    "mbpp_plus": CodeBenchmark("evalplus/mbppplus", None, "test", _read_mbpp_plus),
    "apps": CodeBenchmark("codeparrot/apps", "all", "test", _read_apps),
    "codecontests": CodeBenchmark("deepmind/code_contests", None, "test", _read_codecontests),
}
