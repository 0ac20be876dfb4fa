"""What a file of step labels holds, and the problems it shares with benchmarks."""

import json
from pathlib import Path

import pytest
from shared_data import SHARED, needs_shared

from data.errors import UserError
from data.inspect import KNOWN_BENCHMARKS, inspect_steps, normalise_problem


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ours(problem="1 + 1?", labels=(1, 0), **fields):
    return {"problem": problem, "steps": ["ab"] * len(labels), "labels": list(labels), **fields}


def bench(problem, name="math-1"):
    return {"id": name, "problem": problem, "steps": ["a"], "label": -1, "final_answer_correct": True}


def test_counts_and_balance_by_hand(tmp_path) -> None:
    path = write_rows(
        tmp_path / "s.jsonl",
        ours(id="a", first_error=1, answer_correct=True),
        ours(id="b", first_error=1, answer_correct=False),  # the same problem, steps and labels again
        ours("2 + 2?", [1, None, 0.5], id="c", first_error=-1, label_kind="mc_soft"),
        ours("3 + 3?", [1], id="d"),
    )
    report = inspect_steps(path, num_examples=2)
    assert (list(report.formats), report.num_rows, report.num_records) == (["stepwell"], 4, 4)
    assert report.num_problems == 3
    assert report.repeated_records == 1
    assert report.labels == {"right": 4, "wrong": 2, "unlabelled": 1, "between": 1}
    assert report.label_kinds == {"human": 3, "mc_soft": 1}
    assert report.first_errors == {"with an error": 2, "all right": 1, "unknown": 1}
    assert report.answers == {"unknown": 2, "right": 1, "wrong": 1}
    assert report.steps_per_record == {"min": 1, "median": 2, "mean": 2, "max": 3}
    assert report.characters_per_step["max"] == 2
    assert [one.id for one in report.examples] == ["a", "c"]
    assert report.overlaps == () and report.not_at_hand == KNOWN_BENCHMARKS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is $\\dfrac{1}{2}$?", "what  is \\frac{1}{2} ?"),
        ("Find \\(x\\), if\nx > 2.", "Find x if x > 2"),
        ("Is $\\left( 1,\\!000 \\right)$ so", "is (1000) so"),
        ("\uff21 cafe\u0301", "A caf\u00e9"),
    ],
)
def test_spelling_does_not_hide_a_shared_problem(one, other) -> None:
    assert normalise_problem(one) == normalise_problem(other)


@pytest.mark.parametrize(
    ("one", "other"), [("x > 2", "x < 2"), ("1.5 + 2", "15 + 2"), ("x^2", "x2"), ("-1", "1")]
)
def test_what_changes_a_problem_stays(one, other) -> None:
    assert normalise_problem(one) != normalise_problem(other)


def test_a_folder_may_hold_several_formats(tmp_path) -> None:
    write_rows(tmp_path / "a.jsonl", ours(id="a"))
    write_rows(tmp_path / "b.jsonl", bench("9?"), bench("8?", "math-2"))
    report = inspect_steps(tmp_path)
    assert list(report.formats) == ["stepwell", "processbench"]
    assert (report.num_rows, report.labels) == (3, {"right": 3, "wrong": 1})


def test_overlaps_name_the_benchmark_and_the_rest_is_said_not_to_be_at_hand(tmp_path) -> None:
    path = write_rows(tmp_path / "s.jsonl", ours("What is 1+1?", id="a"), ours("2 + 2?", id="b"))
    folder = tmp_path / "bench"
    folder.mkdir()
    write_rows(folder / "math.jsonl", bench("What is 1 + 1 ?"), bench("9?", "math-2"))
    write_rows(folder / "own.jsonl", {"question": "2 + 2?", "answer": "4"})
    gsm = write_rows(tmp_path / "g.jsonl", {"question": "8?", "answer": "so\n#### 8"})
    report = inspect_steps(path, against=[folder, gsm])
    assert [(o.benchmark, o.num_problems, o.shared_problems, o.examples) for o in report.overlaps] == [
        ("ProcessBench math", 2, 1, ("a",)),
        ("own.jsonl", 1, 1, ("b",)),
        ("GSM8K", 1, 0, ()),
    ]
    assert report.not_at_hand == tuple(n for n in KNOWN_BENCHMARKS if n not in ("ProcessBench math", "GSM8K"))


def test_a_file_without_problems_is_named(tmp_path) -> None:
    path = write_rows(tmp_path / "s.jsonl", ours())
    other = write_rows(tmp_path / "o.jsonl", {"question": "q", "x": 1}, {"question": 2})
    with pytest.raises(UserError, match=f"{other}:2: no problem to compare with; expected a string under"):
        inspect_steps(path, against=[other])
    with pytest.raises(UserError, match="no such file or folder"):
        inspect_steps(path, against=[tmp_path / "absent.jsonl"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folder holds no"):
        inspect_steps(path, against=[tmp_path / "empty"])


@needs_shared
def test_known_contamination_is_found_and_none_is_invented() -> None:
    steps, math500 = SHARED / "steps", SHARED / "math" / "math500.jsonl"
    report = inspect_steps(steps / "prm800k_phase1_test.jsonl.gz", against=[math500])
    # PRM800K's phase 1 test problems are all in MATH-500; its training problems are not, nor in ProcessBench.
    assert report.overlaps[0].shared_problems == report.num_problems == 48
    against = [math500, steps / "processbench"]
    report = inspect_steps(steps / "prm800k_phase1_train.jsonl.gz", against=against)
    assert [overlap.shared_problems for overlap in report.overlaps] == [0] * 5
    # Exact texts agree with the normalised ones here: nothing merges by accident.
    report = inspect_steps(steps / "math_shepherd.jsonl", against=[SHARED / "gsm8k" / "train.jsonl"])
    assert (report.overlaps[0].benchmark, report.overlaps[0].shared_problems) == ("GSM8K", 45)


@needs_shared
def test_normalising_merges_few_of_the_different_problems() -> None:
    texts = {json.loads(line)["question"] for line in (SHARED / "gsm8k" / "train.jsonl").open()}
    assert len({normalise_problem(text) for text in texts}) >= len(texts) - 2
