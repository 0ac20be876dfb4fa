"""`stepwell search`, end to end with a tiny model."""

import json

import pytest
from cli_cases import failure, save_models

from reasoning_rl.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


def words(models, out, *more):
    return [
        *("search", "arithmetic", "--model", str(models / "policy"), "--prm", str(models / "prm")),
        *("--limit", "5", "--max-new-tokens", "16", "--step-tokens", "6", "--output-dir", str(out), *more),
    ]


@pytest.mark.parametrize("method", ["best_of_n", "beam", "dvts"])
def test_a_search_is_recorded_resumes_and_repeats_bit_for_bit(models, tmp_path, capsys, method) -> None:
    more = ("--method", method, "--n", "4", "--width", "2", "--batch-size", "2", "--token-budget", "60")
    main(words(models, tmp_path / "a", *more))
    text = capsys.readouterr().out
    assert "accuracy" in text and "search.jsonl" in text
    folder = tmp_path / "a" / "arithmetic" / f"{method}_4"
    rows = [json.loads(line) for line in (folder / "search.jsonl").open()]
    assert len(rows) == 5 and all(0 < row["tokens"] <= 60 for row in rows)
    assert all(0 <= s <= 1 for row in rows for one in row["candidates"] for s in one["step_scores"])
    main(words(models, tmp_path / "b", *more))
    again = tmp_path / "b" / "arithmetic" / f"{method}_4" / "search.jsonl"
    # Grading seconds are the one thing that may differ.
    assert [r | {"seconds": 0} for r in rows] == [json.loads(line) | {"seconds": 0} for line in again.open()]
    lines = (folder / "search.jsonl").read_text().splitlines(keepends=True)
    (folder / "search.jsonl").write_text("".join(lines[:3]))
    main(words(models, tmp_path / "a", *more))
    assert [json.loads(line)["candidates"] for line in (folder / "search.jsonl").open()] == [
        row["candidates"] for row in rows
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "beem"], "method: Input should be"),
        (["--method", "beam", "--n", "6"], "n 6 is not divisible by width 4; use n 4 or 8"),
        (["--token-budget", "10"], "token_budget 10 is less than one response of max_new_tokens 16"),
        (["--prm-format", "nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_named_before_anything_runs(models, tmp_path, capsys, more, said) -> None:
    assert said in failure(capsys, *words(models, tmp_path, *more))


def test_scores_need_a_model_and_votes_do_not(models, tmp_path, capsys) -> None:
    plain = ["search", "arithmetic", "--model", models / "policy", "--limit", 3, "--max-new-tokens", 8]
    text = failure(capsys, *plain, "--output-dir", tmp_path)
    assert "method best_of_n needs step scores: set --prm PATH, or --method majority" in text
    assert "which benchmark?" in failure(capsys, "search", "--model", "x")
    main([str(w) for w in [*plain, "--method", "majority", "--n", 2, "--output-dir", tmp_path]])
    rows = [json.loads(r) for r in (tmp_path / "arithmetic" / "majority_2" / "search.jsonl").open()]
    assert all(row["num_scored"] == 0 and row["score"] is None for row in rows)


def test_programs_are_not_run_without_isolation_unless_asked_for(models, tmp_path, capsys, monkeypatch):
    # A real sandbox of the weakest level stands in for a machine that offers nothing.
    import eval.sandbox

    rows = {"task_id": "HumanEval/7", "prompt": "def add(a, b):\n", "entry_point": "add"}
    rows |= {"canonical_solution": "    return a + b\n", "test": "def check(f):\n    assert f(1, 2) == 3\n"}
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(rows) + "\n")
    policy, out = str(models / "policy"), str(tmp_path / "out")
    search = ["search", "humaneval", "--model", policy, "--source", str(source), "--method", "majority"]
    search += ["--n", "2", "--max-new-tokens", "4", "--output-dir", out]
    duel = ["duel", policy, policy, "--problems", str(source), "--problems-format", "humaneval"]
    with eval.sandbox.Sandbox("unsandboxed") as weakest:
        monkeypatch.setattr(eval.sandbox, "isolation", weakest.isolation)
        for command in (search, [*duel, "--output-dir", out]):
            assert "--allow-unsandboxed" in failure(capsys, *command)
        main([*search, "--allow-unsandboxed"])
    result = json.loads((tmp_path / "out" / "humaneval" / "majority_2" / "result.json").read_text())
    assert result["settings"]["isolation"] == "unsandboxed"
    assert "allow_unsandboxed" not in result["settings"]
