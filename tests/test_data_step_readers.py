"""Step-label formats: rows written by hand, then the real files against counts taken straight from them."""

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import SHARED, needs_shared

from data.errors import UserError
from data.schema import StepSolution
from data.sources import Row
from data.step_readers import FORMATS, detect_format, read_steps, write_steps


def write_rows(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- rows written by hand ------------------------------------------------------------------


def candidate(text, rating):
    return {"text": text, "rating": rating, "flagged": False}


def tree(steps, **row):
    question = {"problem": "2 + 2 + 2?", "ground_truth_answer": "6"} | row.pop("question", {})
    return {"question": question, "label": {"steps": steps, "finish_reason": "solution"}, **row}


def step(*completions, chosen=None, human=None):
    return {"completions": list(completions), "chosen_completion": chosen, "human_completion": human}


TREE = tree(
    [
        step(candidate("a", 1), chosen=0),
        step(
            candidate("b-", -1), candidate("b0", 0), candidate("b?", None), human=candidate("b human", None)
        ),
        step(candidate("c-", -1), candidate("c0", 0), chosen=1),
        step(candidate("d\n\n# Answer\n\n6", 1), candidate("d+\n\n# Answer\n\n\\frac{6}{1}", 1), chosen=0),
        {"completions": None, "chosen_completion": None, "human_completion": None},
    ]
)


def test_a_tree_is_its_path_and_one_record_for_each_other_rated_candidate(tmp_path):
    counts = Counter()
    path = write_rows(tmp_path / "p.jsonl", [TREE])
    records = read_steps(path, neutral="half", counts=counts)
    assert [(r.steps, r.labels, r.first_error) for r in records] == [
        (("a", "b human", "c0", "d # Answer: 6"), (1.0, None, 0.5, 1.0), None),
        (("a", "b-"), (None, 0.0), 1),
        (("a", "b0"), (None, 0.5), -1),
        (("a", "b human", "c-"), (None, None, 0.0), None),
        (("a", "b human", "c0", "d+ # Answer: \\frac{6}{1}"), (None, None, None, 1.0), None),
    ]
    assert counts == {"rows": 1, "records without a label": 1}
    assert {r.problem for r in records} == {"2 + 2 + 2?"}
    assert len({r.id for r in records}) == 5
    assert records[0].id == "p.jsonl:1"
    assert records[0].meta == {"gold_answer": "6", "finish_reason": "solution", "answer": "6"}
    assert records[4].meta["answer"] == "\\frac{6}{1}"


@pytest.mark.parametrize(
    ("neutral", "label"), [("positive", 1.0), ("half", 0.5), ("negative", 0.0), ("mask", None)]
)
def test_neutral_ratings_become_what_was_chosen_and_others_stay(tmp_path, neutral, label):
    row = tree(
        [step(candidate("a", 1), chosen=0), step(candidate("b", 0), chosen=0), step(candidate("c", -1))]
    )
    path, wrong = read_steps(write_rows(tmp_path / "p.jsonl", [row]), neutral=neutral)
    assert path.labels == (1.0, label)
    assert path.first_error == -1
    assert wrong.labels == (None, None, 0.0)
    assert wrong.first_error == 2


def test_neutral_candidates_leave_no_record_when_masked(tmp_path):
    counts = Counter()
    row = tree([step(candidate("a", 1), candidate("other", 0), chosen=0)])
    assert len(read_steps(write_rows(tmp_path / "p.jsonl", [row]), neutral="mask", counts=counts)) == 1
    assert counts["records without a label"] == 1


def test_a_path_that_stops_at_the_first_error_holds_the_step_the_model_took(tmp_path):
    steps = [
        step(candidate("a", 1), chosen=0),
        step(candidate("other", -1), candidate("# Answer\n\n7", -1)),
    ]
    row = tree(steps, question={"pre_generated_steps": ["a", "# Answer\n\n7"]}, generation=3)
    records = read_steps(write_rows(tmp_path / "p.jsonl", [row]))
    assert [(r.steps, r.labels, r.first_error) for r in records] == [
        (("a", "# Answer: 7"), (1.0, 0.0), 1),
        (("a", "other"), (None, 0.0), 1),
    ]
    assert records[0].meta["generation"] == 3


def test_control_and_screening_rows_are_dropped_and_counted(tmp_path):
    rows = [
        {**TREE, "is_quality_control_question": True, "is_initial_screening_question": False},
        {**TREE, "is_quality_control_question": False, "is_initial_screening_question": True},
        {**TREE, "is_quality_control_question": False, "is_initial_screening_question": False},
    ]
    counts = Counter()
    assert len(read_steps(write_rows(tmp_path / "p.jsonl", rows), counts=counts)) == 5
    assert counts["rows"] == 3
    assert counts["quality control rows"] == counts["screening rows"] == 1
    with pytest.raises(
        UserError, match="no labelled solution in 2 rows, left out: {'quality control rows': 1"
    ):
        read_steps(write_rows(tmp_path / "p.jsonl", rows[:2]))


def test_candidates_behind_a_path_nobody_continued_are_left_out_and_counted(tmp_path):
    counts = Counter()
    row = tree([step(candidate("a", -1)), step(candidate("b", 1), chosen=0)])
    records = read_steps(write_rows(tmp_path / "p.jsonl", [row]), counts=counts)
    assert [r.steps for r in records] == [("a",)]
    assert counts["candidates after the path ended"] == 1


def test_a_flat_row_is_one_record_with_its_own_label_only(tmp_path):
    flat = {"instruction": "p", "responses": ["a", "b"], "next_response": "c", "answer": "6", "rating": 0}
    human = flat | {"rating": None, "is_human_response": True}
    counts = Counter()
    (record,) = read_steps(write_rows(tmp_path / "f.jsonl", [flat, human]), counts=counts)
    assert (record.steps, record.labels) == (("a", "b", "c # Answer: 6"), (None, None, 1.0))
    assert counts == {"rows": 2, "records without a label": 1}


def test_trl_rows_take_true_and_false(tmp_path):
    row = {"prompt": "p", "completions": ["a", "b", "c"], "labels": [True, False, 0.25]}
    (record,) = read_steps(write_rows(tmp_path / "t.jsonl", [row]))
    assert (record.problem, record.steps, record.labels) == ("p", ("a", "b", "c"), (1.0, 0.0, 0.25))


SOLUTIONS = st.lists(st.tuples(st.text(max_size=5), st.none() | st.floats(0, 1)), max_size=4).flatmap(
    lambda pairs: st.builds(
        StepSolution,
        problem=st.text(max_size=5),
        steps=st.just(tuple(text for text, _ in pairs)),
        labels=st.just(tuple(label for _, label in pairs)),
        id=st.text(max_size=5),
        source=st.text(max_size=5),
        label_kind=st.sampled_from(["human", "mc_soft", "oracle"]),
        first_error=st.none() | st.integers(-1, len(pairs) - 1),
        answer_correct=st.none() | st.booleans(),
        meta=st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2),
    )
)


@settings(max_examples=100, deadline=None)
@given(solutions=st.lists(SOLUTIONS, min_size=1, max_size=3))
def test_written_solutions_read_back_equal(tmp_path_factory, solutions):
    path = tmp_path_factory.mktemp("steps") / "out.jsonl"
    write_steps(path, solutions)
    assert read_steps(path) == read_steps(path, "stepwell") == solutions


def test_a_read_only_meta_is_written_and_a_lone_surrogate_is_refused_with_its_line(tmp_path):
    solution = StepSolution("p", ("a",), (1.0,), meta=MappingProxyType({"k": 1}))
    write_steps(tmp_path / "s.jsonl", [solution])
    (back,) = read_steps(tmp_path / "s.jsonl")
    assert back.steps == ("a",)
    assert back.meta == {"k": 1}
    write_steps(tmp_path / "half.jsonl", [replace(solution, steps=("\ud800",))])
    with pytest.raises(UserError, match=r"half\.jsonl:1: holds \\ud800, half of a surrogate pair"):
        read_steps(tmp_path / "half.jsonl")
    with pytest.raises(UserError, match="give the file a name ending in .jsonl"):
        write_steps(tmp_path / "s.parquet", [solution])


OURS = {"problem": "p", "steps": ["a", "b"], "labels": [1, 0]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (OURS | {"labels": [1]}, "field 'labels' has 1 labels for 2 steps"),
        (OURS | {"labels": [1, 1.5]}, r"field 'labels\[1\]' must be a number from 0 to 1.*got a number 1.5"),
        (OURS | {"labels": [-1, 1]}, r"field 'labels\[0\]' must be a number from 0 to 1"),
        (OURS | {"labels": [float("nan"), 1]}, r"field 'labels\[0\]' must be a number from 0 to 1"),
        (OURS | {"labels": ["+", "-"]}, r"field 'labels\[0\]'.*got a string '\+'"),
        (OURS | {"labels": 1}, "field 'labels' must be a list, got an integer 1"),
        (OURS | {"steps": "a b"}, "field 'steps' must be a list, got a string 'a b'"),
        (OURS | {"steps": ["a", 2]}, r"field 'steps\[1\]' must be a string, got an integer 2"),
        (OURS | {"problem": None}, "field 'problem' must be a string, got null"),
        (OURS | {"first_error": 2}, "first_error 2 names no step; expected -1 to 1"),
        (OURS | {"first_error": "1"}, "field 'first_error' must be an integer"),
        (OURS | {"label_kind": "humans"}, "label_kind 'humans' is unknown; did you mean 'human'"),
        (
            {"problem": "p", "labels": []},
            "no field 'steps'; expected problem, steps, labels; found problem, labels",
        ),
        (
            tree([step(candidate("a", 2))]),
            r"field 'label.steps\[0\].completions\[0\].rating' must be -1, 0, 1",
        ),
        (
            tree([step(candidate("a", True))]),
            r"completions\[0\].rating' must be -1, 0, 1 or null, got true/false",
        ),
        (
            tree([step(candidate(None, 1))]),
            r"field 'label.steps\[0\].completions\[0\]' must be an object with",
        ),
        (
            tree([step(candidate("a", 1), chosen=3)]),
            r"chosen_completion' must be null or 0 to 0, got an integer 3",
        ),
        (tree([7]), r"field 'label.steps\[0\]' must be an object, got an integer 7"),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_field(tmp_path, row, message):
    good = TREE if "question" in row else OURS
    path = write_rows(tmp_path / "rows.jsonl", [good, row])
    with pytest.raises(UserError, match=message) as error:
        read_steps(path)
    assert str(error.value).startswith(f"{path}:2: ")


def test_unknown_choices_and_unknown_fields_list_the_known_ones(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"foo": 1, "bar": 2}])
    with pytest.raises(UserError) as error:
        read_steps(path)
    assert str(error.value).startswith(f"{path}:1: the fields foo, bar fit no known step format\n")
    for name, known in FORMATS.items():
        assert f"{name}: {', '.join(known.fields)}" in str(error.value)
    with pytest.raises(UserError, match="step format 'prm800' is unknown; did you mean 'prm800k'"):
        read_steps(path, "prm800")
    with pytest.raises(UserError, match="neutral 'good' is unknown; known: half, mask, negative, positive"):
        read_steps(path, neutral="good")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no labelled solution in 0 rows"):
        read_steps(tmp_path / "empty.jsonl")


def test_each_format_is_told_from_its_fields():
    assert detect_format(Row("", OURS)) == "stepwell"
    assert detect_format(Row("", {"prompt": "", "completions": [], "labels": []})) == "trl"
    assert detect_format(Row("", TREE)) == "prm800k"
    flat = dict.fromkeys(["instruction", "responses", "next_response", "answer", "rating"])
    assert detect_format(Row("", flat)) == "prm800k_flat"


# --- the real files ------------------------------------------------------------------------


def raw_ratings(path: Path) -> Counter:
    """Ratings of all candidates (problem, text without answer tail, rating), straight from the JSON."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        rows = [json.loads(line) for line in lines]
    return Counter(
        (row["question"]["problem"], item["text"].partition("\n\n# Answer\n\n")[0], item["rating"])
        for row in rows
        if not row.get("is_quality_control_question") and not row.get("is_initial_screening_question")
        for one in row["label"]["steps"]
        for item in one["completions"] or []
    )


def by_class(ratings: Counter) -> dict:
    total = Counter()
    for (_, _, rating), count in ratings.items():
        total[rating] += count
    return dict(total)


@needs_shared
@pytest.mark.parametrize(
    ("name", "rows", "records", "classes"),
    [
        ("prm800k_raw.jsonl", 7, 139, {1: 65, 0: 53, -1: 76, None: 7}),
        ("prm800k_phase1_test.jsonl.gz", 54, 1820, {1: 1096, 0: 368, -1: 1091, None: 82}),
        ("prm800k_phase1_train.jsonl.gz", 492, 18076, {1: 9389, 0: 5074, -1: 9698, None: 502}),
    ],
)
def test_prm800k_trees_hold_every_rating_exactly_once(name, rows, records, classes):
    path = SHARED / "steps" / name
    expected = by_class(raw_ratings(path))
    assert expected == classes
    counts = Counter()
    solutions = read_steps(path, neutral="half", counts=counts)
    labels = Counter(label for solution in solutions for label in solution.labels)
    assert (counts["rows"], len(solutions)) == (rows, records)
    assert [labels[1.0], labels[0.5], labels[0.0]] == [expected[1], expected[0], expected[-1]]
    assert counts["candidates after the path ended"] == 0
    assert len({solution.id for solution in solutions}) == records
    assert not any("\n# Answer" in text for solution in solutions for text in solution.steps)


def rated(solutions: list[StepSolution]) -> Counter:
    """Rated candidates with the accepted steps before them, answer tails cut off."""
    return Counter(
        (one.problem, tuple(bare(text) for text in one.steps[: k + 1]), label)
        for one in solutions
        for k, label in enumerate(one.labels)
        if label is not None
    )


def bare(text: str) -> str:
    return text.partition(" # Answer: ")[0]


@needs_shared
def test_prm800k_flat_rows_rate_the_same_candidates_after_the_same_steps_as_the_trees():
    # They differ in answer tails only: the trees (rebuilt) keep them on the 42 chosen final steps, the flat
    # rows on every candidate that gave an answer.
    trees = read_steps(SHARED / "steps" / "prm800k_phase1_test.jsonl.gz", neutral="half")
    flat = read_steps(SHARED / "steps" / "prm800k_phase1_test_stepwise.jsonl.gz", neutral="half")
    assert len(flat) == 2555
    assert rated(trees) == rated(flat)
    assert sum(" # Answer: " in one.steps[-1] for one in trees) < sum(
        " # Answer: " in one.steps[-1] for one in flat
    )
    assert Counter(kind for one in flat for kind in one.labels if kind is not None) == {
        0.5: 368,
        0.0: 1091,
        1.0: 1096,
    }
