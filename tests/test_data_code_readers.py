"""Programming benchmarks: every row format, what is refused, and the real files."""

import json

import pytest
from shared_data import SHARED, needs_shared

from data.code_readers import CODE_BENCHMARKS, read_code_problems
from data.errors import UserError
from data.mbpp_types import python_arguments

HUMANEVAL = {
    "task_id": "HumanEval/7",
    "prompt": "def add(a, b):\n    '''sum'''\n",
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
PLUS = HUMANEVAL | {"base_input": [[1, 2]], "plus_input": [[3, 4], [5, 6]], "atol": 0}
MBPP = {
    "task_id": 11,
    "text": "Add two numbers.",
    "code": "def helper(x):\n    return x\ndef add(a, b):\n    return helper(a) + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
APPS = {
    "problem_id": 5,
    "question": "Double it.",
    "input_output": json.dumps({"inputs": ["1\n", "2\n"], "outputs": ["2\n", ["4", "x"]]}),
    "starter_code": "",
    "solutions": json.dumps(["print(2 * int(input()))"]),
}
CONTEST = {"name": "1_A", "description": "Double it.", "tests": {"inputs": ["1"], "outputs": ["2"]}}


def read(tmp_path, benchmark, *rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_code_problems(benchmark, path, **options)


def test_humaneval(tmp_path):
    (problem,) = read(tmp_path, "humaneval", HUMANEVAL)
    assert (problem.id, problem.text) == ("HumanEval/7", HUMANEVAL["prompt"])
    assert problem.solution.endswith("'''sum'''\n    return a + b\n")
    assert problem.meta["form"] == "check" and problem.meta["entry_point"] == "add"


def test_changed_tests_give_another_digest(tmp_path):
    (one,) = read(tmp_path, "humaneval", HUMANEVAL)
    (other,) = read(tmp_path, "humaneval", HUMANEVAL | {"test": HUMANEVAL["test"].replace("3", "4")})
    assert one.answer != other.answer


def test_humaneval_plus_compares_with_its_reference(tmp_path):
    (problem,) = read(tmp_path, "humaneval_plus", PLUS)
    meta = problem.meta
    assert meta["form"] == "differs" and meta["compare"] == "reference"
    assert meta["calls"] == [[1, 2], [3, 4], [5, 6]] and meta["reference"] == problem.solution
    (root,) = read(tmp_path, "humaneval_plus", PLUS | {"entry_point": "find_zero"})
    assert root.meta["compare"] == "root"


def test_mbpp_in_both_editions(tmp_path):
    clean = {key: MBPP[key] for key in ("task_id", "code", "test_list")}
    clean |= {"prompt": MBPP["text"], "test_imports": ["import math"]}
    first, second = (read(tmp_path, "mbpp", row)[0] for row in (MBPP, clean))
    assert first.id == second.id == "Mbpp/11"
    assert first.text == '"""\nAdd two numbers.\nassert add(1, 2) == 3\n"""\n'
    assert first.meta["entry_point"] == "add"
    assert second.meta["test"].startswith("import math\nassert add(1, 2) == 3\nassert")


def test_mbpp_plus_arguments_get_their_types_back(tmp_path):
    row = {
        key: PLUS[key] for key in ("prompt", "entry_point", "canonical_solution", "base_input", "plus_input")
    }
    (problem,) = read(
        tmp_path, "mbpp_plus", row | {"task_id": "Mbpp/2", "base_input": [[[1], [2]]]} | {"plus_input": {}}
    )
    assert problem.meta["calls"] == [[(1,), (2,)]]


def test_evalplus_in_the_hub_editions(tmp_path):
    # evalplus/humanevalplus and evalplus/mbppplus hold all inputs in the field test.
    (problem,) = read(tmp_path, "humaneval_plus", HUMANEVAL)
    assert problem.meta["form"] == "check" and problem.meta["test"] == HUMANEVAL["test"]
    row = {key: MBPP[key] for key in ("task_id", "code", "test_list")} | {"prompt": MBPP["text"]}
    row |= {"test_imports": ["import math"], "test": "for x in (1, 2):\n    assert add(x, 1) == x + 1\n"}
    (problem,) = read(tmp_path, "mbpp_plus", row)
    assert problem.meta["form"] == "asserts" and problem.meta["entry_point"] == "add"
    assert problem.meta["test"].startswith("import math\nfor x in (1, 2):")
    assert problem.meta["public"]["test"].endswith("assert add(1, 2) == 3")


def test_values_too_long_to_hand_over_are_left_out(tmp_path):
    row = {key: PLUS[key] for key in ("prompt", "canonical_solution")} | {"task_id": "Mbpp/255"}
    row |= {"entry_point": "combinations_colors", "plus_input": [[["a"] * 5, 77], [["a", "b"], 3]]}
    (problem,) = read(tmp_path, "mbpp_plus", row | {"base_input": [[["a"], 1]]})
    assert [call[1] for call in problem.meta["calls"]] == [1, 3]


STATEMENT = """Double the number.

-----Input-----
One number, 1 to 9.

-----Sample Input 1-----
1

-----Sample Output 1-----
2

Example

Input

4
4

Output

8
8

Input
5
Output
11
"""


def test_tests_shown_in_the_statement_are_public(tmp_path):
    cases = [("1\n", "2\n"), ("4\n4\n", "8\n8"), ("5\n", "10\n"), ("9\n", "18\n"), ("", "")]
    tests = {"inputs": [given for given, _ in cases], "outputs": [wanted for _, wanted in cases]}
    (problem,) = read(tmp_path, "codecontests", {"name": "a", "description": STATEMENT, "tests": tests})
    assert problem.meta["public"] == {"cases": cases[:2]}  # of 5 the statement says something else
    hub = {"name": "a", "description": STATEMENT}
    hub |= {
        "public_tests": {"input": ["1"], "output": ["2"]},
        "private_tests": {"input": ["3"], "output": ["6"]},
    }
    (problem,) = read(tmp_path, "codecontests", hub)
    assert problem.meta["cases"] == [("1", "2"), ("3", "6")]
    assert problem.meta["public"] == {"cases": [("1", "2")]}


def test_public_tests_change_no_digest(tmp_path):
    cases = {"inputs": ["1"], "outputs": ["2"]}
    shown, hidden = (
        read(tmp_path, "codecontests", {"name": "a", "description": text, "tests": cases})[0]
        for text in (STATEMENT, "Double it.")
    )
    assert "public" in shown.meta and "public" not in hidden.meta and shown.answer == hidden.answer


@pytest.mark.parametrize(
    ("task", "stored", "wanted"),
    [
        (3, [[1, 2]], [[1, 2]]),
        (2, [[1, 2], [3]], [(1, 2), (3,)]),
        (63, [[[1, 2], [3]]], [[(1, 2), (3,)]]),
        (259, [[[1], [2]], [[3]]], [((1,), (2,)), ((3,),)]),
        (75, [[[1], [2]], 5], [[(1,), (2,)], 5]),
        (106, [[1], [2]], [[1], (2,)]),
        (250, [[1], 2], [(1,), 2]),
        (722, [{"a": [1, 2]}, 3, 4], [{"a": (1, 2)}, 3, 4]),
        (115, [[[1, 1], []]], [[{1}, {}]]),
        (124, ["1", "2"], [1.0, 2 + 0j]),
        (252, ["1+2j"], [1 + 2j]),
        (580, [[1, [2, [3]]]], [(1, (2, (3,)))]),
        (278, [[1, [2, 3]]], [(1, (2, 3))]),
    ],
)
def test_shapes_of_mbpp_arguments(task, stored, wanted):
    got = python_arguments(task, stored)
    assert got == wanted and [type(a) for a in got] == [type(w) for w in wanted]


def test_apps_with_standard_input(tmp_path):
    (problem,) = read(tmp_path, "apps", APPS)
    assert problem.meta == {"form": "stdio", "cases": [("1\n", "2\n"), ("2\n", "4\nx")]}
    assert "standard input" in problem.text and problem.solution.startswith("print")


def test_apps_with_calls(tmp_path):
    tests = {"fn_name": "double", "inputs": [[1], [{"3": 1}]], "outputs": [[2], [6]]}
    starter = "class Solution:\n    def double(self, x):\n        "
    (problem,) = read(tmp_path, "apps", APPS | {"input_output": json.dumps(tests), "starter_code": starter})
    assert problem.meta["entry_point"] == "Solution.double"
    assert problem.meta["calls"] == [[1], [{3: 1}]] and problem.meta["expected"] == [2, 6]
    assert "from typing import" in problem.meta["preamble"]


def test_apps_arguments_without_quotes(tmp_path):
    row = {"id": 1, "description": "Pin.", "starter_code": "\ndef pin(text, k):\n\t"}
    tests = [{"input": "12\n[1]", "output": [True]}, {"input": "a2\n[2, 3]", "output": [False]}]
    (problem,) = read(tmp_path, "apps", row | {"test_list": tests})
    assert problem.meta["entry_point"] == "pin"
    assert problem.meta["calls"] == [["12", [1]], ["a2", [2, 3]]]


def test_codecontests_counts_every_group_of_tests(tmp_path):
    (problem,) = read(tmp_path, "codecontests", CONTEST)
    assert problem.id == "codecontests/1_A" and problem.meta["cases"] == [("1", "2")]
    groups = {
        f"{kind}_tests": {"input": [kind], "output": ["x"]} for kind in ("public", "private", "generated")
    }
    (problem,) = read(tmp_path, "codecontests", {"name": "n", "description": "d"} | groups)
    assert [case[0] for case in problem.meta["cases"]] == ["public", "private", "generated"]


def test_a_problem_that_stands_twice_keeps_both(tmp_path):
    assert [p.id for p in read(tmp_path, "codecontests", CONTEST, CONTEST)] == [
        "codecontests/1_A",
        "codecontests/1_A-2",
    ]


@pytest.mark.parametrize(
    ("benchmark", "row", "said"),
    [
        ("humaneval", {"task_id": "HumanEval/1"}, "no field 'prompt'; expected task_id, prompt"),
        ("humaneval", HUMANEVAL | {"task_id": "one"}, "'task_id' must be a number or end in one"),
        ("humaneval", HUMANEVAL | {"test": 3}, "field 'test' must be a string"),
        ("humaneval_plus", PLUS | {"base_input": [3]}, "input 0 must be a list of arguments"),
        ("mbpp", MBPP | {"test_list": []}, "'test_list' is empty"),
        ("mbpp", MBPP | {"test_list": ["assert other(1)"]}, "no test calls a function"),
        ("mbpp", MBPP | {"code": "def add(:"}, "are no Python"),
        ("apps", APPS | {"input_output": "{"}, "field 'input_output' is no JSON"),
        ("apps", APPS | {"input_output": '{"inputs": [], "outputs": []}'}, "as many inputs as outputs"),
        ("codecontests", CONTEST | {"tests": {"inputs": ["1"], "outputs": []}}, "1 tests.inputs but 0"),
        ("codecontests", {"name": "n", "description": "d"}, "no tests"),
    ],
)
def test_bad_rows_say_where_and_what(tmp_path, benchmark, row, said):
    with pytest.raises(UserError) as error:
        read(tmp_path, benchmark, row)
    assert "rows.jsonl:1" in str(error.value) and said in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_unknown_names_and_limits(tmp_path):
    with pytest.raises(UserError, match="did you mean 'humaneval'"):
        read_code_problems("humanevl")
    with pytest.raises(UserError, match="at least 1"):
        read(tmp_path, "humaneval", HUMANEVAL, limit=0)
    assert set(CODE_BENCHMARKS) == {
        "humaneval",
        "humaneval_plus",
        "mbpp",
        "mbpp_plus",
        "apps",
        "codecontests",
    }


@needs_shared
@pytest.mark.parametrize(
    ("benchmark", "file", "count"),
    [
        ("humaneval", "humaneval.jsonl", 164),
        ("humaneval_plus", "humaneval_plus_mini.jsonl.gz", 164),
        ("mbpp", "mbpp.jsonl", 974),
        ("mbpp", "mbpp_sanitized.jsonl", 427),
        ("mbpp_plus", "mbpp_plus.jsonl.gz", 378),
        ("apps", "apps_mapcoder150.jsonl", 81),
        ("apps", "apps_original_train_samples.jsonl", 3),
        ("codecontests", "codecontests_test.jsonl", 82),
        ("codecontests", "codecontests_train_sample.jsonl", 144),
    ],
)
def test_the_published_files_are_read_whole(benchmark, file, count):
    problems = read_code_problems(benchmark, SHARED / "code" / file)
    assert len(problems) == count == len({p.id for p in problems})
    assert all(p.text.strip() for p in problems)
