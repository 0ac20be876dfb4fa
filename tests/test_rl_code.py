"""Reinforcement learning from unit tests: many programs judged at once, partial credit, runs end to end."""

import json

import pytest
import torch
from cli_cases import failure, save_models
from rl_world import tiny_policy

from data.code_readers import read_code_problems
from data.grading import BatchGrader, grade_all, start_grading
from data.programs import make_programs
from data.schema import Problem, Verdict
from data.step_readers import read_steps
from data.world_tokenizer import byte_bpe_tokenizer, program_tokenizer
from eval.benchmarks import make_grader
from eval.code_grader import count_tests, make_code_grader
from eval.code_pool import CodePool
from eval.sandbox import Sandbox
from reasoning_rl.cli import main
from reasoning_rl.compose import train_ppo
from reasoning_rl.config import PPOConfig
from reasoning_rl.experience import score_rollout
from reasoning_rl.presets import merge
from reasoning_rl.program_world import PROGRAM_PPO
from reasoning_rl.telemetry import RunLog, read_metrics
from reasoning_rl.types import Rollout

DOUBLED = {"calls": [[1], [2], [3], [0]], "expected": [2, 4, 6, 0]}
CALLS = Problem("calls", "double", "d", meta={"form": "calls", "entry_point": "f", **DOUBLED})
STDIO = Problem(
    "stdio", "double", "d", meta={"form": "stdio", "cases": [("1", "2"), ("2", "4"), ("5", "10")]}
)
THREE = "assert f(1) == 2\nassert f(2) == 4\nassert f(0) == 0"
ASSERTS = Problem("asserts", "double", "d", meta={"form": "asserts", "entry_point": "f", "test": THREE})


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as own:
        yield own


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")


# --- many at once ----------------------------------------------------------------------------------------


def test_a_batch_gets_the_verdicts_of_one_by_one_in_order(sandbox):
    problems = make_programs(12, 0)
    owners = [p for p in problems for _ in range(3)]
    texts = [t for p in problems for t in (p.solution, "    return a", "    retur")]
    single = make_code_grader(sandbox=sandbox)
    pool = CodePool(lambda own: make_code_grader(sandbox=own), num_workers=3)
    assert isinstance(pool, BatchGrader)
    found = [(v.status, v.reason) for v in grade_all(pool, owners, texts)]
    assert found == [(v.status, v.reason) for v in (single(p, t) for p, t in zip(owners, texts, strict=True))]
    assert [status for status, _ in found[::3]] == ["correct"] * 12
    assert grade_all(pool, [], []) == []


def test_equal_answers_to_one_problem_run_once_and_others_do_not_share():
    seen = []

    def make(_):
        def grade(problem, response):
            seen.append((problem.id, response))
            return Verdict("correct" if response == problem.answer else "wrong")

        return grade

    pool = CodePool(make, num_workers=2)
    p, q = Problem("p", "", "x"), Problem("q", "", "y")
    statuses = [v.status for v in grade_all(pool, [p, q, p, p, q], ["x", "x", "x", "y", "y"])]
    assert statuses == ["correct", "wrong", "correct", "wrong", "correct"]
    assert sorted(seen) == [("p", "x"), ("p", "y"), ("q", "x"), ("q", "y")]


def test_programs_run_while_the_caller_does_something_else(sandbox):
    """The point of start_grading: the reward model scores in the meantime."""
    pool = CodePool(lambda own: make_code_grader(sandbox=own), num_workers=1)
    wait = start_grading(pool, [CALLS], ["import time\ntime.sleep(1)\ndef f(x):\n    return 2 * x"])
    assert [v.status for v in wait()] == ["correct"]
    order = []
    slow = start_grading(lambda p, r: order.append(r) or Verdict("wrong"), [CALLS], ["late"])
    assert order == [], "a grader that cannot work alone is asked when the verdicts are needed"
    slow()
    assert order == ["late"]


# --- partial credit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "program", "share"),
    [
        (CALLS, "def f(x):\n    return 2 * x", None),
        (CALLS, "def f(x):\n    return 2 if x == 1 else 6 if x == 3 else 9", 2 / 4),
        (CALLS, "def f(x):\n    return x if x == 0 else 1 / 0", 1 / 4),  # goes on behind an exception
        (CALLS, "def g(x):\n    return 2 * x", 0.0),
        (CALLS, "def f(x:", 0.0),
        (
            CALLS,
            "import os\ndef f(x):\n    return 2 * x if x < 2 else os._exit(0)",
            1 / 4,
        ),  # 0 is not reached
        (STDIO, "print(2 * int(input()))", None),
        (STDIO, "n = int(input())\nprint(4 if n == 2 else 0)", 1 / 3),
        (STDIO, "print(10 // (int(input()) - 2))", 0.0),
        (ASSERTS, "def f(x):\n    return 2 * x", None),
        (ASSERTS, "def f(x):\n    return x + x % 2 + 2 * (x == 2)", 3 / 3),
        (ASSERTS, "def f(x):\n    return 4", 1 / 3),
        (ASSERTS, "def f(x):\n    raise ValueError", 0.0),
    ],
)
def test_credit_is_the_share_of_tests_that_hold(sandbox, problem, program, share):
    verdict = make_code_grader(sandbox=sandbox, partial_credit="tests")(problem, program)
    if share in (None, 1.0):
        assert (verdict.status, verdict.credit) == ("correct", None)
    else:
        assert verdict.status == "wrong"
        assert verdict.credit == pytest.approx(share)
    # Counting changes no verdict.
    plain = make_code_grader(sandbox=sandbox)(problem, program)
    assert (plain.status, plain.reason, plain.credit) == (verdict.status, verdict.reason, None)


@pytest.mark.parametrize(
    ("program", "credit"),
    [
        ("def f(x):\n    return 2 * x", None),
        ("def f(x):\n    return 3", -0.3),
        ("def f(x):\n    return 1 / 0", -0.6),
        ("def f(x):\n    while True: pass", -0.6),
        ("def f(x:", -1.0),
        ("", -1.0),
    ],
)
def test_credit_by_kind_of_error(sandbox, program, credit):
    grade = make_code_grader(sandbox=sandbox, partial_credit="errors", timeout_s=1.0)
    assert grade(CALLS, program).credit == credit


def test_tests_are_counted_in_every_form():
    assert [count_tests(p) for p in (CALLS, STDIO, ASSERTS)] == [4, 3, 3]
    assert count_tests(Problem("c", "", "", meta={"form": "check", "test": "def check(f): ..."})) == 1


def test_credit_is_paid_and_a_truncated_program_gets_none():
    rollout = Rollout(
        problems=[CALLS] * 4,
        responses=["half", "right", "broken", "half"],
        steps=[[]] * 4,
        input_ids=torch.zeros(4, 3, dtype=torch.long),
        lengths=torch.full((4,), 3),
        action_mask=torch.ones(4, 3, dtype=torch.bool),
        behaviour_logprobs=torch.zeros(4, 3),
        complete=torch.tensor([True, True, True, False]),
        step_ends=torch.zeros(4, 1, dtype=torch.long),
        step_mask=torch.zeros(4, 1, dtype=torch.bool),
    )
    verdicts = {
        "half": Verdict("wrong", credit=0.5),
        "right": Verdict("correct"),
        "broken": Verdict("unjudged"),
    }
    scores = score_rollout(None, lambda problem, response: verdicts[response], rollout)
    assert scores.outcomes.tolist() == [0.5, 1.0, 0.0, 0.0]
    assert scores.judged.tolist() == [True, True, False, True]


# --- runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    tokenizer = program_tokenizer()
    return save_models(tmp_path_factory.mktemp("models"), tokenizer, tiny_policy(tokenizer)) / "policy"


SMALL = {
    "iterations": 2,
    "num_problems": 40,
    "num_validation": 6,
    "validate_every": 2,
    "rollout": {"problems_per_iteration": 4, "samples_per_problem": 2, "max_new_tokens": 12},
    "critic": {"pretrain_iterations": 1},
    "update": {"minibatch_size": 8},
}


def test_ppo_on_the_world_of_programs_runs_and_resumes_to_the_same_numbers(policy, tmp_path):
    from accelerate import Accelerator

    def run(folder, **changes):
        values = merge(
            merge(PROGRAM_PPO, SMALL), {"policy": str(policy), "output_dir": str(folder), **changes}
        )
        config = PPOConfig.from_preset(values)
        train_ppo(config, accelerator=Accelerator(cpu=True), log=RunLog(folder), resume=True)
        return read_metrics(folder)

    whole = run(tmp_path / "whole", save_every=1)
    assert [row["iteration"] for row in whole] == [0, 1, 2]
    assert all(row["rollout/unjudged"] == 0 for row in whole[1:])
    run(tmp_path / "parts", save_every=1, iterations=1)
    parts = run(tmp_path / "parts", save_every=1)
    assert parts[-1]["policy/entropy"] == whole[-1]["policy/entropy"]


def test_what_a_wrong_program_costs_is_what_the_settings_say(policy, tmp_path):
    from accelerate import Accelerator

    outcomes = {}
    for credit in ("off", "errors"):
        own = {"policy": str(policy), "output_dir": str(tmp_path / credit), "iterations": 1}
        values = merge(merge(PROGRAM_PPO, SMALL), own | {"reward": {"partial_credit": credit}})
        config = PPOConfig.from_preset(values)
        train_ppo(config, accelerator=Accelerator(cpu=True), log=RunLog(tmp_path / credit))
        outcomes[credit] = read_metrics(tmp_path / credit)[-1]["reward/outcome"]
    assert outcomes["errors"] < 0 <= outcomes["off"]


ROWS = {
    "apps": [
        {
            "problem_id": k,
            "question": f"Print the number plus {k}.",
            "input_output": json.dumps({"inputs": ["1\n", "5\n"], "outputs": [f"{1 + k}\n", f"{5 + k}\n"]}),
            "solutions": "[]",
            "starter_code": "",
            "difficulty": "introductory",
        }
        for k in range(8)
    ],
    "codecontests": [
        {"name": f"p{k}", "description": f"Add {k}.", "tests": {"inputs": ["1"], "outputs": [f"{1 + k}"]}}
        for k in range(8)
    ],
    "mbpp": [
        {
            "task_id": 601 + k,
            "text": f"Write a function that adds {k}.",
            "code": f"def add(x):\n    return x + {k}",
            "test_list": [f"assert add(1) == {1 + k}", f"assert add(0) == {k}"],
            "test_setup_code": "",
            "challenge_test_list": [],
        }
        for k in range(8)
    ],
    "humaneval": [
        {
            "task_id": f"HumanEval/{k}",
            "prompt": f'def add(x):\n    """ x plus {k} """\n',
            "entry_point": "add",
            "canonical_solution": f"    return x + {k}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {1 + k}\n",
        }
        for k in range(8)
    ],
}


@pytest.mark.parametrize("benchmark", ROWS)
def test_ppo_takes_problems_of_every_benchmark_of_programs(benchmark, tmp_path, monkeypatch):
    """A random policy writes nonsense: every reward is 0, and nothing breaks."""
    source = tmp_path / f"{benchmark}.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in ROWS[benchmark]))
    tokenizer = byte_bpe_tokenizer(["def add(x):\n    return x + 1\nprint(int(input()))"], vocab_size=300)
    models = save_models(tmp_path / "models", tokenizer, tiny_policy(tokenizer))
    options = (
        "--iterations 2 --num-problems 6 --num-validation 2 --validate-every 1 --reward.form none "
        "--rollout.problems-per-iteration 2 --rollout.samples-per-problem 2 --rollout.max-new-tokens 16 "
        "--update.minibatch-size 4 --critic.init policy --critic.pretrain-iterations 1 "
        "--reward.partial-credit tests --rollout.splitter code_line"
    )
    main(
        f"ppo --policy {models}/policy --problems {source} --problems-format {benchmark} "
        f"--output-dir {tmp_path}/run {options}".split()
    )
    rows = read_metrics(tmp_path / "run")
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert all(row["reward/outcome"] == 0 and row["rollout/unjudged"] == 0 for row in rows[1:])


def test_training_on_mbpp_leaves_its_test_tasks_alone(tmp_path):
    rows = [{**ROWS["mbpp"][0], "task_id": number} for number in (5, 11, 510, 511, 600, 601, 974)]
    path = tmp_path / "mbpp.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))

    def ids(**options):
        return [p.id for p in read_code_problems("mbpp", path, **options)]

    assert ids(split="train") == ["Mbpp/601", "Mbpp/974"]
    assert ids(split="train", limit=1) == ["Mbpp/601"]
    assert ids(split="test") == ["Mbpp/11", "Mbpp/510"]
    assert len(ids()) == 7, "a file without a split asked for is read whole"


def test_statements_are_labelled_by_tests_and_train_a_prm(policy, tmp_path, capsys):
    problems = make_programs(4, 0, split="train")
    rows = [{"id": p.id, "response": p.solution} for p in problems[:3]]
    rows.append({"id": problems[3].id, "response": problems[3].solution.replace("x =", "x = 7 +", 1)})
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    words = (
        f"label programs --model {policy} --limit 4 --k 2 --method monte_carlo --max-new-tokens 8 "
        f"--solutions {tmp_path}/samples.jsonl --output-dir {tmp_path}/label"
    ).split()
    assert "indentation" in failure(capsys, *words)
    main([*words, "--splitter", "code_block"])
    found = read_steps(tmp_path / "label" / "labels.jsonl")
    assert [s.answer_correct for s in found] == [True, True, True, False]
    assert ["\n".join(s.steps) for s in found] == [row["response"] for row in rows]
    assert [s.labels[-1] for s in found] == [1.0, 1.0, 1.0, 0.0]
    main(
        f"prm --model {policy} --data {tmp_path}/label/labels.jsonl --holdout 0.3 "
        f"--fit.batch-size 2 --fit.max-updates 2 --output-dir {tmp_path}/prm".split()
    )
    assert (tmp_path / "prm" / "model" / "config.json").is_file()


def test_the_world_is_a_benchmark_judged_by_running(tmp_path, capsys):
    problems = make_programs(6, 0)
    rows = [
        {"id": p.id, "response": text}
        for p in problems
        for text in (p.solution, "    import os\n    os._exit(0)")
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    main(f"eval programs --samples {tmp_path}/samples.jsonl --limit 6 --output-dir {tmp_path}/eval".split())
    result = json.loads((tmp_path / "eval" / "programs" / "result.json").read_text())
    assert result["accuracy"]["value"] == 0.5
    assert "pass@2" in capsys.readouterr().out
    assert make_grader("programs")(problems[0], problems[0].solution).status == "correct"
