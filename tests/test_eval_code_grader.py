"""From responses to verdicts: extraction, assembly, real reference solutions, samples files."""

import json

import pytest
from shared_data import SHARED, needs_shared

from data.code_readers import read_code_problems
from data.errors import UserError
from data.schema import Problem
from eval.benchmarks import BENCHMARKS, make_grader
from eval.code_grader import assemble, extract_code, make_code_grader, make_public_check
from eval.run import evaluate
from eval.sample_files import read_samples

PROMPT = 'from typing import List\n\ndef total(xs: List[int]) -> int:\n    """ Sum of xs """\n'
TEST = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n"
PROBLEM = Problem(
    "HumanEval/0", PROMPT, "d", meta={"form": "check", "prefix": PROMPT, "test": TEST, "entry_point": "total"}
)


@pytest.fixture(scope="module")
def grade():
    return make_code_grader(timeout_s=10.0)


@pytest.mark.parametrize(
    "response",
    [
        "    return sum(xs)\n",
        "    return sum(xs)",
        "return sum(xs)",  # the indentation was stripped
        "s = 0\nfor x in xs:\n    s += x\nreturn s",
        "s = 0\n    for x in xs:\n        s += x\n    return s",  # only that of the first line
        "def total(xs):\n    return sum(xs)\n",
        "from typing import List\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n",
        "Look:\n```python\ndef total(xs):\n    return sum(xs)\n```\nSo:\n```python\nprint(total([1]))\n```",
        "```\ndef total(xs):\n    return sum(xs)\n",  # never closed
        "```python\nimport math\n\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```",
        "    return sum(xs)\n\n\ndef other():\n    return 1\n",
    ],
)
def test_every_usual_form_of_response_is_understood(grade, response):
    assert grade(PROBLEM, response).status == "correct"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "no answer"),
        ("   \n", "no answer"),
        ("I cannot do that.", "error: "),
        ("    return 0", "failed: assertion in line 2"),
        ("    while True: pass", "timeout"),
        ("x" * (1 << 21), "more than"),
    ],
)
def test_wrong_responses_say_why(response, reason):
    verdict = make_code_grader(timeout_s=0.5)(PROBLEM, response)
    assert verdict.status == "wrong" and reason in verdict.reason


def test_extraction_prefers_the_block_that_defines_the_function():
    text = "```python\nimport os\n```\n```python\ndef f(x):\n    return 1\n```\n```bash\nls\n```"
    assert extract_code(text, "f") == "def f(x):\n    return 1\n"
    assert extract_code(text, "Solution.f") == "def f(x):\n    return 1\n"
    assert extract_code(text, "g") == "def f(x):\n    return 1\n"  # the longest
    assert extract_code("no fence", "f") == "no fence"


HELPER_PROMPT = (
    "import math\n\n\ndef poly(xs, x):\n    return xs[0] + xs[1] * x\n\n\n"
    'def find_zero(xs):\n    """ a zero of poly """\n'
)
HELPER_TEST = "def check(candidate):\n    assert abs(poly([4, 2], candidate([4, 2]))) < 1e-4\n"
HELPED = Problem(
    "HumanEval/32",
    HELPER_PROMPT,
    "d",
    meta={"form": "check", "prefix": HELPER_PROMPT, "test": HELPER_TEST, "entry_point": "find_zero"},
)
FUTURE = "from __future__ import annotations\n"
RIGHT = "def find_zero(xs: Xs):\n    return -xs[0] / xs[1]\n"
FORGED = "def poly(xs, x):\n    return 0.0\ndef find_zero(xs):\n    return 0.0\n"


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("    return -xs[0] / xs[1]\n", "correct"),
        (FUTURE + RIGHT, "correct"),
        (f"'''Mine.'''\n{FUTURE}{RIGHT}", "correct"),
        ("    return 0.0\ndef poly(xs, x):\n    return 0.0\n", "wrong"),
        (FUTURE + FORGED, "wrong"),
        (f"'''Mine.'''; {FUTURE}{FORGED}", "wrong"),
        (f"```python\n{FUTURE}{FORGED}```", "wrong"),
    ],
)
def test_a_completion_cannot_redefine_what_the_test_uses(grade, response, status):
    assert grade(HELPED, response).status == status


def test_imports_from_the_future_go_above_the_prompt():
    program = assemble(HELPED, FUTURE + RIGHT)
    assert program.startswith(FUTURE + HELPER_PROMPT.rstrip()) and program.count("__future__") == 1
    assert assemble(HELPED, "    return '__future__'").startswith(HELPER_PROMPT)


def test_assembly_leaves_hostile_text_to_the_sandbox():
    for text in ("(" * 100_000, "-" * 100_000 + "1", "\x00", "\ud800"):
        assert text in assemble(PROBLEM, text)


def test_a_broken_reference_or_test_is_unjudged(grade):
    broken = Problem("a/1", "", "d", meta=PROBLEM.meta | {"test": "def check(c:"})
    assert grade(broken, "    return 0").status == "unjudged"
    differs = {"form": "differs", "entry_point": "f", "calls": [[1]], "tolerance": 0.0, "compare": "value"}
    no_reference = Problem("a/2", "", "d", meta=differs | {"reference": "def f(x):\n    raise ValueError"})
    verdict = grade(no_reference, "def f(x):\n    return x")
    assert verdict.status == "unjudged" and "ValueError" in verdict.reason


@pytest.mark.parametrize(
    ("compare", "reference", "program", "correct"),
    [
        ("reference", "return x + 0.1", "return 0.1 + x", True),
        ("reference", "return x + 0.1", "return x + 0.11", False),
        ("reference", "return [x]", "return (x,)", False),
        ("reference", "return x", "return x + 1e-9", False),  # an integer leaves no room
        ("set", "return [1, x]", "return (x, 1)", True),
        ("set", "return [1, x]", "return (x, 7)", False),
        ("truth", "import re\n    return re.match('a', 'a')", "return 'yes'", True),
        ("truth", "import re\n    return re.match('a', 'a')", "return None", False),
        ("truth", "return 'no match'", "return False", False),  # any value but None says that there is one
        ("truth", "return 'no match'", "return True", True),
        ("any", "return x > 1", "return 'anything'", True),
        ("any", "return x > 1", "raise ValueError", False),
    ],
)
def test_comparison_with_a_reference_is_that_of_evalplus(grade, compare, reference, program, correct):
    meta = {"form": "differs", "entry_point": "f", "calls": [[1], [2]], "tolerance": 0.0, "compare": compare}
    problem = Problem(
        "x/1", "", compare + reference, meta=meta | {"reference": f"def f(x):\n    {reference}"}
    )
    status = grade(problem, f"def f(x):\n    {program}").status
    assert status == ("correct" if correct else "wrong")


def test_a_second_reading_of_a_task_is_right_too(grade):
    meta = {"form": "differs", "entry_point": "f", "calls": [[1], [2]], "tolerance": 0.0}
    meta |= {"compare": "reference", "reference": "def f(x):\n    return x"}
    problem = Problem("x/1", "", "d", meta=meta | {"other_reading": "def f(x):\n    return -x"})
    programs = ("return x", "return -x", "return x if x == 1 else -x", "return x + 1")
    verdicts = [grade(problem, f"def f(x):\n    {line}").status for line in programs]
    assert verdicts == ["correct", "correct", "correct", "wrong"]


def test_one_slow_call_does_not_take_the_time_of_all(monkeypatch):
    monkeypatch.setattr("eval.code_grader.PLUS_CALL_TIMEOUT_S", 0.3)
    meta = {"form": "differs", "entry_point": "f", "calls": [[1], [2]], "tolerance": 0.0}
    meta |= {"compare": "reference", "reference": "def f(x):\n    return x"}
    problem = Problem("x/2", "", "d", meta=meta)
    verdict = make_code_grader()(
        problem, "import time\ndef f(x):\n    time.sleep(60 * (x == 2))\n    return x"
    )
    assert verdict.status == "wrong" and verdict.reason == "timeout: call 2: no result within 0.3 s"
    assert verdict.seconds < 20


HUB_TEST = """
import numpy as np

def is_close(out, exp, atol):
    assert np.allclose(out, exp, rtol=1e-07, atol=atol)

def check(candidate):
    for inputs, result in zip([[[1.5, 2.5]], [[]]], [4.0, 0.0]):
        is_close(candidate(*inputs), result, 1e-6)
"""


def test_tests_may_import_numpy(grade):
    # The hub's edition of HumanEval+ holds its inputs in such a test.
    problem = Problem("HumanEval/1", PROMPT, "d", meta=PROBLEM.meta | {"test": HUB_TEST})
    assert grade(problem, "    return sum(xs)\n").status == "correct"
    assert grade(problem, "    return sum(xs) + 1e-3\n").status == "wrong"


def test_public_tests_are_run_alone(grade):
    passes = make_public_check(grade)
    meta = {
        "form": "stdio",
        "cases": [("1\n", "2\n"), ("5\n", "10\n")],
        "public": {"cases": [("1\n", "2\n")]},
    }
    problem = Problem("c/1", "", "d", meta=meta)
    only_the_example = "print(2)"
    assert grade(problem, only_the_example).status == "wrong" and passes(problem, only_the_example) is True
    assert passes(problem, "print(1)") is False
    assert passes(PROBLEM, "    return 0") is None  # it shows none


@needs_shared
@pytest.mark.parametrize(
    ("benchmark", "file", "limit", "others"),
    [
        ("humaneval", "humaneval.jsonl", None, {}),
        ("mbpp", "mbpp.jsonl", None, {}),
        ("mbpp", "mbpp_sanitized.jsonl", None, {}),
        ("humaneval_plus", "humaneval_plus_mini.jsonl.gz", 60, {}),
        ("apps", "apps_original_train_samples.jsonl", None, {}),
    ],
)
def test_reference_solutions_are_correct(benchmark, file, limit, others):
    grade = make_grader(benchmark, timeout_s=30.0)
    problems = read_code_problems(benchmark, SHARED / "code" / file, limit=limit)
    verdicts = {p.id: grade(p, p.solution) for p in problems}
    found = {name: (v.status, v.reason) for name, v in verdicts.items() if v.status != "correct"}
    assert found == others


@needs_shared
def test_wrong_programs_are_wrong():
    # The neighbour's solution, renamed: it runs, and answers another question.
    grade = make_grader("humaneval")
    problems = read_code_problems("humaneval", SHARED / "code" / "humaneval.jsonl", limit=40)
    verdicts = [grade(p, "    return None\n").status for p in problems]
    assert verdicts == ["wrong"] * 40


def samples_file(tmp_path, *rows):
    path = tmp_path / "samples.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


NUMBERED = [Problem(f"Mbpp/{n}", "", "d", meta={}) for n in (11, 12)]


def test_samples_in_the_published_forms_are_read(tmp_path):
    path = samples_file(
        tmp_path,
        {"task_id": "Mbpp/11", "completion": "a"},
        {"task_id": 11, "completion": "b", "passed": True},
        {"task_id": "12", "solution": "c"},
        {"id": "Mbpp/12", "response": "d"},
    )
    assert read_samples(path, NUMBERED) == {"Mbpp/11": ["a", "b"], "Mbpp/12": ["c", "d"]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"task_id": "Mbpp/99", "completion": "a"}, "id 'Mbpp/99' is none of the 2 problems"),
        ({"task_id": 99, "completion": "a"}, "id '99' is none of"),
        ({"task_id": "Mbpp/11"}, "no field 'completion' (has: task_id); expected task_id, completion"),
        ({"completion": "a"}, "no field 'id'"),
        ({"task_id": "Mbpp/11", "completion": None}, "field 'completion' must be a string"),
        ({"task_id": True, "completion": "a"}, "field 'task_id' must be a string"),
        ({"task_id": ["Mbpp/11"], "completion": "a"}, "field 'task_id' must be a string"),
        ('{"task_id": "Mbpp/11", "compl', "broken JSON"),
        ("[1]", "expected a JSON object"),
    ],
)
def test_bad_samples_say_where_and_what(tmp_path, row, said):
    path = samples_file(tmp_path, {"task_id": "Mbpp/11", "completion": "a"}, row)
    with pytest.raises(UserError) as error:
        read_samples(path, NUMBERED)
    assert f"{path}:2" in str(error.value) and said in str(error.value)


def test_an_interrupted_evaluation_grades_no_program_twice(tmp_path):
    problems = [Problem(f"HumanEval/{n}", PROMPT, "d", meta=PROBLEM.meta) for n in range(4)]
    samples = {p.id: ["    return sum(xs)", "    return 0"] for p in problems}
    grade, seen = make_code_grader(), []

    def counting(problem, response):
        if len(seen) == 5:
            seen.append(None)
            raise KeyboardInterrupt
        seen.append((problem.id, response))
        return grade(problem, response)

    arguments = {"out_dir": tmp_path, "samples": samples, "batch_size": 1, "grader": counting}
    with pytest.raises(KeyboardInterrupt):
        evaluate(problems, **arguments)
    result = evaluate(problems, **arguments)
    assert len([s for s in seen if s]) == 8
    assert result.accuracy.value == 0.5 and result.pass_at[2].value == 1.0 and not result.maj_at


def test_every_programming_benchmark_is_listed():
    assert [name for name, b in BENCHMARKS.items() if b.judges == "program"] == [
        *("programs", "humaneval", "humaneval_plus", "mbpp", "mbpp_plus", "apps", "codecontests")
    ]


@needs_shared
def test_the_command_line_judges_a_samples_file(tmp_path, capsys):
    from reasoning_rl.cli import main

    rows = [json.loads(line) for line in (SHARED / "code" / "humaneval.jsonl").read_text().splitlines()[:3]]
    samples = [
        {"task_id": r["task_id"], "completion": c}
        for r in rows
        for c in (r["canonical_solution"], "    pass")
    ]
    path = samples_file(tmp_path, *samples)
    source = str(SHARED / "code" / "humaneval.jsonl")
    arguments = ["--source", source, "--samples", str(path), "--output-dir", str(tmp_path / "out")]
    main(["eval", "humaneval", *arguments])
    assert "50.0%" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "humaneval" / "result.json").read_text())
    assert result["pass_at"]["2"]["value"] == 1.0 and result["num_missing"] == 161
    assert result["settings"]["isolation"] in ("namespaces", "landlock", "unsandboxed")


def test_without_isolation_the_command_line_asks_first(tmp_path, capsys, monkeypatch):
    # A real sandbox of the weakest level stands in for a machine that offers nothing.
    import eval.sandbox
    from eval.sandbox import Sandbox
    from reasoning_rl.cli import main

    path = samples_file(tmp_path, {"task_id": "HumanEval/7", "completion": "    return a + b\n"})
    rows = {"task_id": "HumanEval/7", "prompt": "def add(a, b):\n", "entry_point": "add"}
    rows |= {"canonical_solution": "    return a + b\n", "test": "def check(f):\n    assert f(1, 2) == 3\n"}
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(rows) + "\n")
    arguments = ["eval", "humaneval", "--source", str(source), "--samples", str(path)]
    arguments += ["--output-dir", str(tmp_path / "out")]
    with Sandbox("unsandboxed") as weakest:
        monkeypatch.setattr(eval.sandbox, "isolation", weakest.isolation)
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2 and "--allow-unsandboxed" in capsys.readouterr().err
        main([*arguments, "--allow-unsandboxed"])
    result = json.loads((tmp_path / "out" / "humaneval" / "result.json").read_text())
    assert result["settings"]["isolation"] == "unsandboxed" and result["accuracy"]["value"] == 1.0


def test_a_model_is_put_to_every_programming_benchmark(tmp_path, capsys):
    from transformers import LlamaConfig, LlamaForCausalLM

    from data.world_tokenizer import byte_bpe_tokenizer
    from reasoning_rl.cli import main

    tokenizer = byte_bpe_tokenizer([PROMPT], vocab_size=300)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ids)).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    human = {"task_id": "HumanEval/0", "prompt": PROMPT, "entry_point": "total", "test": TEST}
    human |= {"canonical_solution": "    return sum(xs)\n"}
    mbpp = {"task_id": 2, "code": "def f(x):\n    return x", "test_list": ["assert f(1) == 1"]}
    contest = {"name": "c", "description": "Example Input 1 Output 2 "}
    apps = {"problem_id": 1, "question": "Double.", "input_output": '{"inputs": ["1"], "outputs": ["2"]}'}
    plus = {"base_input": [[[1, 2]]], "plus_input": [[[3]]], "atol": 0}
    rows = {
        "humaneval": human,
        "humaneval_plus": human | plus,
        "mbpp": mbpp | {"text": "Identity."},
        "mbpp_plus": mbpp | {"prompt": "Identity.", "test": "assert f(2) == 2"},
        "apps": apps,
        "codecontests": contest | {"tests": {"inputs": ["1"], "outputs": ["2"]}},
    }
    for name, values in rows.items():
        source = samples_file(tmp_path, values)
        options = ["--num-samples", "2", "--max-new-tokens", "4", "--output-dir", str(tmp_path / "out")]
        main(["eval", name, "--model", str(tmp_path / "m"), "--source", str(source), *options])
        result = json.loads((tmp_path / "out" / name / "result.json").read_text())
        assert (
            result["num_samples"] == 2 and result["unjudged_rate"] == 0 and result["accuracy"]["value"] == 0
        )
        assert result["settings"]["prompt"]["name"] == BENCHMARKS[name].template
        assert bool(result["submitted_at"]) == (name in ("mbpp", "mbpp_plus", "codecontests"))
        assert "isolation of programs" in capsys.readouterr().out
