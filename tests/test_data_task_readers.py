"""Benchmark problems and sample files for fine-tuning: hand-written rows, then the real files."""

import json
from collections import Counter
from pathlib import Path

import pytest
from shared_data import SHARED, needs_shared

from data.errors import UserError
from data.task_readers import last_boxed, read_problems, read_sft


def write_rows(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- benchmarks ------------------------------------------------------------------------------------------


def test_gsm8k_rows_lose_calculator_marks_tail_and_thousands_commas(tmp_path):
    row = {"question": "A farm?", "answer": "It has 500*2=<<500*2=1000>>1,000 eggs.\nSo $1,000.\n#### 1,000"}
    (problem,) = read_problems("gsm8k", write_rows(tmp_path / "g.jsonl", [row]))
    assert problem.text == "A farm?"
    assert problem.answer == "1000"
    assert problem.solution == "It has 500*2=1,000 eggs.\nSo $1,000."
    assert problem.source == "gsm8k"


def test_ids_follow_the_problem_not_the_file_and_stay_unique(tmp_path):
    rows = [{"question": f"q{k}", "answer": "#### 1"} for k in (0, 1, 0)]
    first = read_problems("gsm8k", write_rows(tmp_path / "a.jsonl", rows))
    second = read_problems("gsm8k", write_rows(tmp_path / "b.jsonl", rows[1:]))
    assert len({problem.id for problem in first}) == 3
    assert first[1].id == second[0].id
    assert first[2].id == first[0].id + "-2"


@pytest.mark.parametrize(
    ("level", "number"), [(3, 3), ("Level 5", 5), ("2", 2), ("Level ?", None), (None, None)]
)
def test_math_rows_take_levels_and_answers_in_both_published_shapes(tmp_path, level, number):
    old = {"problem": "p", "solution": r"So $\boxed{\frac{1}{2}}$.", "level": level, "type": "Algebra"}
    new = {**old, "answer": "0.5", "subject": "Geometry", "unique_id": "test/x/1.json"}
    a, b = read_problems("math", write_rows(tmp_path / "m.jsonl", [old, new]))
    assert (a.answer, a.level, a.subject) == (r"\frac{1}{2}", number, "Algebra")
    assert (b.answer, b.level, b.subject, b.id) == ("0.5", number, "Geometry", "math/test/x/1.json")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{ \frac{a}{\sqrt{b}} }", r"\frac{a}{\sqrt{b}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\fbox{7}", "7"),
        (r"so $\boxed 12$.", "12"),
        (r"\boxed{3} and an open \boxed{4", "3"),
        (r"\boxedsomething{3}", None),
        ("no box", None),
    ],
)
def test_the_last_closed_box_is_the_answer(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        ("gsm8k", {"problem": "p"}, "no field 'answer'; expected question, answer; found problem"),
        ("gsm8k", {"question": "q", "answer": "six"}, "field 'answer' has no final line '#### N'"),
        ("gsm8k", {"question": "q", "answer": 6}, "field 'answer' must be a string, got an integer 6"),
        ("math", {"problem": "p", "solution": "none"}, "no closed"),
        ("math", {"problem": "p"}, "no field 'solution'; expected problem, solution, answer"),
        (
            "math500",
            {"problem": "p", "answer": "1", "level": "hard"},
            "field 'level' must be a number or 'Level N'",
        ),
    ],
)
def test_a_broken_problem_is_named_by_file_line_and_field(tmp_path, benchmark, row, message):
    path = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=message) as error:
        read_problems(benchmark, path)
    assert str(error.value).startswith(f"{path}:1: ")


def test_unknown_benchmark_bad_limit_and_empty_file_are_named(tmp_path):
    with pytest.raises(UserError, match="benchmark 'gsm9k' is unknown; did you mean 'gsm8k'"):
        read_problems("gsm9k")
    with pytest.raises(UserError, match="limit must be at least 1, got 0"):
        read_problems("gsm8k", limit=0)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"empty.jsonl: no rows"):
        read_problems("gsm8k", tmp_path / "empty.jsonl")


def test_the_default_source_is_the_benchmarks_home_with_its_configuration_and_split(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        return datasets.Dataset.from_list([{"question": "q", "answer": "#### 1"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read_problems("gsm8k")
    read_problems("gsm8k", "someone/copy", split="train")
    assert asked == [("openai/gsm8k", "main", "test"), ("someone/copy", None, "train")]


@needs_shared
def test_gsm8k_and_math500_counts_and_answers():
    test = read_problems("gsm8k", SHARED / "gsm8k")
    train = read_problems("gsm8k", SHARED / "gsm8k", split="train")
    assert (len(test), len(train)) == (1319, 7473)
    assert len({problem.id for problem in test + train}) == 8792
    for problem in test + train:
        float(problem.answer)
        assert "<<" not in problem.solution
        assert "####" not in problem.solution
    math = read_problems("math500", SHARED / "math" / "math500.jsonl")
    assert len(math) == 500
    assert Counter(problem.level for problem in math) == {1: 43, 2: 90, 3: 105, 4: 128, 5: 134}
    assert all(last_boxed(problem.solution) == problem.answer for problem in math)
    assert read_problems("math500", SHARED / "math" / "math500.jsonl", limit=3) == math[:3]


# --- sample files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response": "r"},
        {"prompt": "p", "completion": "r"},
        {"problem": "p", "solution": "r", "answer": "6"},
        {"question": "p", "answer": "r"},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]},
        {"prompt": [{"role": "user", "content": "p"}], "completion": [{"role": "assistant", "content": "r"}]},
    ],
)
def test_samples_of_every_shape_give_prompt_and_response(tmp_path, row):
    assert read_sft(write_rows(tmp_path / "s.jsonl", [row, row])) == [("p", "r")] * 2


def test_a_system_message_stands_before_the_prompt(tmp_path):
    chat = [("system", "s"), ("user", "p"), ("assistant", "r")]
    row = {"messages": [{"role": role, "content": content} for role, content in chat]}
    assert read_sft(write_rows(tmp_path / "s.jsonl", [row])) == [("s\n\np", "r")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "no sample in the fields text; expected prompt"),
        ({"prompt": "p", "response": " \n"}, "field 'response' is empty"),
        ({"prompt": "", "response": "r"}, "field 'prompt' is empty"),
        ({"prompt": "p", "response": 3}, "field 'response' must be a string, got an integer 3"),
        ({"messages": [{"role": "user", "content": "p"}]}, "has the roles user; expected one user"),
        ({"messages": [{"role": "user"}]}, r"field 'messages\[0\]' must be an object with string role"),
        ({"messages": [{"role": r, "content": ""} for r in ("user", "assistant")]}, "has an empty message"),
        ({"messages": []}, r"has the roles \(none\)"),
    ],
)
def test_a_broken_sample_is_named_by_file_line_and_field(tmp_path, row, message):
    good = {"prompt": "p", "response": "r"}
    path = write_rows(tmp_path / "s.jsonl", [good, row])
    with pytest.raises(UserError, match=message) as error:
        read_sft(path)
    assert str(error.value).startswith(f"{path}:2: ")


def one(name, row, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (problem,) = read_problems(name, path)
    return problem


def test_svamp_joins_body_and_question(tmp_path):
    row = {
        "Body": "There are 3 cats",
        "Question": "How many legs?",
        "Answer": 12.0,
        "ID": "chal-1",
        "Type": "x",
    }
    problem = one("svamp", row, tmp_path)
    assert (problem.id, problem.text) == ("svamp/chal-1", "There are 3 cats. How many legs?")
    assert (problem.answer, problem.subject) == ("12", "x")


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        (43.0, "43"),
        (-9867630.0, "-9867630"),
        (0.25, "0.25"),
        ("1,000", "1000"),
        (1e22, "10000000000000000000000"),
    ],
)
def test_numbers_of_word_problems_lose_their_point_zero(target, answer, tmp_path):
    for name in ("mawps", "gsm_hard"):
        assert one(name, {"input": "?", "target": target}, tmp_path).answer == answer
    assert one("mawps", {"question": "?", "result_float": target}, tmp_path).answer == answer


def test_a_target_that_is_no_number_is_refused(tmp_path):
    for target in ("many", "NaN", None, True):
        with pytest.raises(UserError, match=r"rows.jsonl:1: field 'target'"):
            one("mawps", {"input": "?", "target": target}, tmp_path)


def test_contest_answers_are_whole_numbers_however_they_are_stored(tmp_path):
    assert one("amc23", {"question": "?", "answer": 27.0, "id": 3}, tmp_path).answer == "27"
    problem = one("aime24", {"problem": "?", "answer": "033", "id": 60, "solution": "s"}, tmp_path)
    assert (problem.id, problem.answer, problem.solution) == ("aime24/60", "33", "s")


def test_olympiad_answers_are_joined_and_keep_their_tolerance(tmp_path):
    row = {
        "question": "q",
        "final_answer": ["$1$,$2$"],
        "context": "c",
        "error": "1e-1",
        "id": 7,
        "solution": ["s"],
    }
    problem = one("olympiadbench", row, tmp_path)
    assert (problem.text, problem.answer, problem.solution) == ("c\n\nq", "$1$,$2$", "s")
    assert problem.meta == {"tolerance": "1e-1"}
    with pytest.raises(UserError, match="final_answer"):
        one("olympiadbench", {"question": "q", "final_answer": []}, tmp_path)


@pytest.mark.parametrize(
    ("answer", "unit"),
    [("1.6", "0.1"), ("4.5e33", "1E+32"), (r"6.0 \times 10^{-3}", "0.0001"), ("7", ""), (r"\frac{1}{2}", "")],
)
def test_minerva_decimals_may_be_off_by_one_unit_of_their_last_digit(answer, unit, tmp_path):
    from decimal import Decimal

    problem = one(
        "minerva_math", {"problem": "?", "solution": f"so \\boxed{{{answer}}}", "type": "t"}, tmp_path
    )
    assert problem.answer == answer
    assert Decimal(problem.meta.get("tolerance", "0")) == Decimal(unit or "0")


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("svamp", "svamp", 1000),
        ("mawps", "mawps", 2065),
        ("gsm_hard", "gsm_hard", 1319),
        ("olympiadbench",) * 2 + (675,),
    ],
)
def test_the_stored_files_are_read_whole(name, file, count):
    path = SHARED / "math_extra" / f"{file}.jsonl"
    if not path.exists():
        pytest.skip("the problems are not beside the repository (../shared/data)")
    assert len({p.id for p in read_problems(name, path)}) == count
