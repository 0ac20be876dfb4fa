"""`stepwell label` from the command line: real models in folders, labels a PRM can be trained on."""

import json

import pytest
from cli_cases import failure, save_models
from rl_world import taught_policy

from data.arithmetic import make_problems
from data.step_readers import read_steps
from reasoning_rl.cli import main


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    tokenizer, model = taught_policy()
    return save_models(tmp_path_factory.mktemp("models"), tokenizer, model) / "policy"


def run(policy, out, *more):
    main(
        f"label arithmetic --model {policy} --limit 6 --k 3 --samples-per-problem 2 --batch-problems 3 "
        f"--max-new-tokens 40 --output-dir {out}".split()
        + [str(word) for word in more]
    )


def test_labels_from_a_model_train_a_prm(policy, tmp_path, capsys):
    run(policy, tmp_path / "label", "--method", "monte_carlo")
    said = capsys.readouterr().out
    summary = json.loads((tmp_path / "label" / "summary.json").read_text())
    assert f"{summary['cost']['rollouts']}, " in said and "labels.jsonl" in said
    solutions = read_steps(tmp_path / "label" / "labels.jsonl")
    assert len(solutions) == summary["solutions"] > 6
    assert all(0 <= label <= 1 for s in solutions for label in s.labels)
    main(
        f"prm --model {policy} --data {tmp_path}/label/labels.jsonl --objective mse --holdout 0.2 "
        f"--fit.batch-size 4 --fit.max-updates 2 --output-dir {tmp_path}/prm".split()
    )
    assert (tmp_path / "prm" / "model" / "config.json").is_file()
    # The same command again has nothing left to do, and another setting is refused.
    before = (tmp_path / "label" / "labels.jsonl").read_bytes()
    run(policy, tmp_path / "label", "--method", "monte_carlo")
    assert (tmp_path / "label" / "labels.jsonl").read_bytes() == before


def test_solutions_of_a_file_are_labelled(policy, tmp_path):
    problems = make_problems(6, 0, split="train")
    rows = [{"id": p.id, "response": p.solution} for p in problems[:2]]
    rows.append({"id": problems[2].id, "response": problems[2].solution.replace("####", "#### 1")})
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    run(policy, tmp_path / "out", "--method", "binary_search", "--solutions", tmp_path / "samples.jsonl")
    solutions = read_steps(tmp_path / "out" / "labels.jsonl")
    assert [s.answer_correct for s in solutions] == [True, True, False]
    assert solutions[0].first_error == -1 and solutions[2].first_error >= 0


def test_mistakes_are_told(policy, tmp_path, capsys):
    assert "label solutions of which benchmark?" in failure(capsys, "label", "--model", policy)
    assert "unknown" in failure(capsys, "label", "arithmetics", "--model", policy)
    assert "model" in failure(capsys, "label", "arithmetic")
    text = failure(capsys, "label", "arithmetic", "--model", policy, "--solutions", "x.jsonl")
    assert "set method: binary_search" in text
    run(policy, tmp_path / "a", "--method", "monte_carlo")
    words = ["label", "arithmetic", "--model", policy, "--output-dir", tmp_path / "a"]
    assert "made with other" in failure(capsys, *words)
