"""`stepwell eval` of step benchmarks and `stepwell data inspect`, end to end with a tiny model."""

import json
import shutil

import pytest
from cli_cases import failure, save_models
from format_cases import checkpoint
from shared_data import SHARED, needs_shared

from eval.prm_benchmarks import PRM_BENCHMARKS as REGISTRY
from prm.scorer import LocalScorer
from reasoning_rl import score_file
from reasoning_rl.cli import main
from reasoning_rl.eval_config import PRM_BENCHMARKS


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


def bench_file(folder, name="math.jsonl", count=6):
    """ProcessBench rows of the arithmetic world's kind, every other with an error at step 1."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": f"{name.split('.')[0]}-{k}",
            "problem": f"Ann has {k % 3 + 1} apples. How many?",
            "steps": [f"{k} + 1 = {k + 1} <script>", "The answer is 3."],
            "label": 1 if k % 2 else -1,
            "final_answer_correct": k % 2 == 0,
        }
        for k in range(count)
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def test_the_settings_know_the_registrys_names() -> None:
    assert set(PRM_BENCHMARKS) == set(REGISTRY)


def test_a_model_is_scored_and_its_scores_measure_the_same(models, tmp_path, capsys) -> None:
    data = bench_file(tmp_path / "data")
    out, again = tmp_path / "out", tmp_path / "again"
    main(
        ["eval", "processbench", "--prm", str(models / "prm"), "--data", str(data), "--output-dir", str(out)]
    )
    text = capsys.readouterr().out
    assert "ProcessBench, %" in text and "math 6 of 1000" in text and "report.html" in text
    folder = out / "processbench"
    lines = [json.loads(line) for line in (folder / "scores.jsonl").open()]
    assert [line["id"] for line in lines] == [f"math-{k}" for k in range(6)]
    assert all(0 < score < 1 for line in lines for score in line["scores"])
    scores = ("--scores", str(folder / "scores.jsonl"), "--data", str(tmp_path / "data"))
    main(["eval", "processbench", *scores, "--output-dir", str(again)])
    first, second = (json.loads((f / "processbench" / "result.json").read_text()) for f in (out, again))
    assert first["metrics"] == second["metrics"] and first["panels"] == second["panels"]
    assert first["metrics"]["subsets"]["math"]["num_error"] == 3


def test_a_stopped_run_goes_on_and_other_scores_are_never_replaced(
    models, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(score_file, "CHUNK", 2)
    data, prm = bench_file(tmp_path / "data"), models / "prm"
    words = ("eval", "processbench", "--prm", prm, "--data", data, "--output-dir")
    main([*map(str, words), str(tmp_path / "whole")])
    whole = (tmp_path / "whole" / "processbench" / "scores.jsonl").read_bytes()
    score, calls = LocalScorer.score, []

    def interrupted(self, problems, solutions):
        calls.append(len(problems))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, problems, solutions)

    monkeypatch.setattr(LocalScorer, "score", interrupted)
    out = tmp_path / "out"
    scores = out / "processbench" / "scores.jsonl"
    with pytest.raises(SystemExit):
        main([*map(str, words), str(out)])
    assert scores.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    main([*map(str, words), str(out)])
    assert scores.read_bytes() == whole and calls == [2, 2, 2, 2]
    # Another threshold is a question to the same scores; another model, format or data is not.
    main([*map(str, words), str(out), "--threshold", "0.4"])
    assert len(calls) == 4
    shutil.copytree(prm, tmp_path / "second")
    other = ("eval", "processbench", "--prm", tmp_path / "second", "--data", data, "--output-dir", out)
    assert f"{scores}:1: was scored with another prm;" in failure(capsys, *other)
    assert "was scored with another format;" in failure(capsys, *words, out, "--prm-format", "trl")
    data.write_text(data.read_text().replace("The answer is 3.", "The answer is 4."))
    assert "was scored with another data;" in failure(capsys, *words, out)
    assert scores.read_bytes() == whole


def test_a_step_is_called_wrong_below_the_formats_threshold(models, tmp_path, capsys) -> None:
    data = bench_file(tmp_path / "data")
    prm = checkpoint("skywork")
    (tmp_path / "mine.yaml").write_text("base: skywork\nthreshold: 0.25\n")
    words = ("eval", "processbench", "--prm", prm, "--data", data, "--output-dir", tmp_path)
    for more, threshold in [((), 0.25), (("--threshold", "0.75"), 0.75)]:
        main([*map(str, words), "--prm-format", str(tmp_path / "mine.yaml"), *more])
        result = json.loads((tmp_path / "processbench" / "result.json").read_text())
        assert result["metrics"]["subsets"]["math"]["threshold"] == threshold
        assert result["settings"]["threshold"] == threshold
    text = failure(capsys, *words, "--prm-format", "skywork-difference")
    assert "'skywork-difference' calls a step wrong by the change from the step before" in text


def test_the_page_is_self_contained_and_shows_all_pictures(tmp_path) -> None:
    data = bench_file(tmp_path / "data")
    scores = tmp_path / "s.jsonl"
    scores.write_text("".join(json.dumps({"scores": [0.9, 0.1 + 0.1 * k]}) + "\n" for k in range(6)))
    words = (
        "--scores",
        str(scores),
        "--data",
        str(data),
        "--threshold",
        "best",
        "--output-dir",
        str(tmp_path),
    )
    main(["eval", "processbench", *words])
    folder = tmp_path / "processbench"
    page = (folder / "report.html").read_text()
    pictures = sorted(path.stem for path in folder.glob("*.png"))
    assert pictures == ["best_of_n", "localisation", "reliability", "thresholds"]
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page and "<script" not in page
    assert "&lt;script&gt;" in page  # a step's own markup is shown, not run
    for text in ("surest mistakes", "Best of N", "an upper bound, not a result", "step AUC"):
        assert text in page


def test_scores_beyond_probabilities_have_no_reliability(tmp_path) -> None:
    data = bench_file(tmp_path / "data", "gsm8k.jsonl")
    scores = tmp_path / "s.jsonl"
    scores.write_text("".join(json.dumps({"scores": [3.0, -2.0 + k]}) + "\n" for k in range(6)))
    words = (
        "--scores",
        str(scores),
        "--data",
        str(data),
        "--threshold",
        "gsm8k",
        "--output-dir",
        str(tmp_path),
    )
    main(["eval", "processbench", *words])
    result = json.loads((tmp_path / "processbench" / "result.json").read_text())
    assert result["panels"]["reliability"] == [] and result["panels"]["steps"]["ece"] is None
    assert not (tmp_path / "processbench" / "reliability.png").exists()


def test_what_is_lacking_is_named(models, tmp_path, capsys) -> None:
    data = bench_file(tmp_path / "data")
    words = ("eval", "processbench", "--data", data, "--output-dir", tmp_path)
    assert "exactly one of --prm" in failure(capsys, *words)
    assert "data: Field required" in failure(capsys, "eval", "prmbench", "--prm", "m")
    assert "did you mean 'processbench'" in failure(capsys, "eval", "procesbench", "--prm", "m")
    assert "which benchmark?" in failure(capsys, "eval", "--prm", "m")
    assert f"{tmp_path / 'absent'}: no such file" in failure(capsys, *words, "--scores", tmp_path / "absent")
    text = failure(capsys, "eval", "prmbench", "--prm", models / "prm", "--data", data)
    assert f"{data}: not a file of prmbench; its rows must be prmbench" in text
    text = failure(capsys, "eval", "prmbench", "--prm", models / "prm", "--data", tmp_path / "data")
    assert "holds no file of prmbench" in text
    text = failure(capsys, "eval", "processbench", "--prm", models / "prm", "--data", tmp_path / "no")
    assert "no: no such file or folder" in text
    (tmp_path / "data" / "copy.jsonl").write_text(data.read_text())
    text = failure(capsys, "eval", "processbench", "--prm", models / "prm", "--data", tmp_path / "data")
    assert "id 'math-0' is there twice" in text


def test_limits_spread_over_the_file_and_keep_the_controls_of_their_rows(tmp_path) -> None:
    from eval.prm_benchmarks import load_items

    data = bench_file(tmp_path / "data", count=9)
    ids = [item.solution.id for item in load_items("processbench", ("processbench",), data, limit=3)]
    assert ids == ["math-0", "math-3", "math-6"]
    rows = [
        {
            "original_question": "q",
            "modified_question": "q",
            "original_process": ["a"],
            "modified_process": ["b"],
            "error_steps": [1],
            "classification": "redundency",
            "idx": str(k),
        }
        for k in range(4)
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = load_items("prmbench", ("prmbench",), tmp_path / "r.jsonl", limit=2)
    assert [i.solution.id for i in items] == ["redundency_0", "redundency_2", "correct_0", "correct_2"]


def test_inspecting_a_file_prints_all_of_it(tmp_path, capsys) -> None:
    data = bench_file(tmp_path / "data")
    main(["data", "inspect", str(data), "--examples", "2", "--against", str(data), str(tmp_path / "data")])
    text = capsys.readouterr().out
    for part in (
        "processbench (human, first error from 0, -1 = none)",
        "6 on 3 different problems",
        "with an error 3 (50.0%)",
        "right 9 (75.0%), wrong 3 (25.0%)",
        "ProcessBench math",
        "not at hand, so not compared: ProcessBench gsm8k, ProcessBench olympiadbench",
        "example math-0",
        "example math-3",
        "Ann has 1 apples. How many?",
    ):
        assert part in text, part
    assert text.count("example math-") == 2


def test_inspecting_names_what_it_lacks(tmp_path, capsys) -> None:
    assert "stepwell data inspect FILE" in failure(capsys, "data")
    assert "which file?" in failure(capsys, "data", "inspect")
    assert "--against needs one or more values" in failure(capsys, "data", "inspect", "f", "--against")
    absent = tmp_path / "absent.jsonl"
    assert f"{absent}: no such file" in failure(capsys, "data", "inspect", absent)
    data = bench_file(tmp_path / "data")
    assert "format 'prm' is unknown" in failure(capsys, "data", "inspect", data, "--format", "prm")


@needs_shared
def test_a_real_benchmark_end_to_end(models, tmp_path, capsys) -> None:
    words = ("--prm", str(models / "prm"), "--data", str(SHARED / "steps" / "reasoneval"), "--limit", "8")
    main(["eval", "reasoneval", *words, "--output-dir", str(tmp_path)])
    assert "invalid 8 of 159" in capsys.readouterr().out
    assert (tmp_path / "reasoneval" / "report.html").is_file()
