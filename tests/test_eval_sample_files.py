"""Samples made elsewhere: the forms of their files, and what is wrong in one by file and line."""

import json

import pytest

from data.errors import UserError
from data.schema import Problem
from eval.sample_files import read_sample_scores, read_samples

PROBLEMS = [Problem(f"p{i}", f"{i} + {i}?", str(2 * i)) for i in range(7)]


def sample_file(folder, *rows):
    path = folder / "given.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_samples_are_read_in_the_order_of_the_file_or_of_their_index(tmp_path):
    path = sample_file(
        tmp_path,
        {"id": "p1", "response": "a", "sample": 1},
        {"id": "p2", "response": "x", "extra": 1},
        {"id": "p1", "response": "b", "sample": 0},
        {"id": "p2", "response": ""},
    )
    assert read_samples(path, PROBLEMS) == {"p1": ["b", "a"], "p2": ["x", ""]}


def test_a_samples_row_may_give_the_problems_text_in_place_of_its_id(tmp_path):
    path = sample_file(tmp_path, {"problem": "1  +\n1?", "response": "2"}, {"id": "p1", "response": "3"})
    assert read_samples(path, PROBLEMS) == {"p1": ["2", "3"]}
    path = sample_file(tmp_path, {"problem": "1 + 2?", "response": "3"})
    with pytest.raises(UserError, match=r"given\.jsonl:1: problem '1 \+ 2\?' is none of the 7 problems"):
        read_samples(path, PROBLEMS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "given.jsonl:2: broken JSON"),
        ("[]", "given.jsonl:2: expected a JSON object"),
        ({"response": "x"}, "given.jsonl:2: no field 'id' (has: response)"),
        ({"id": "p1", "text": "x"}, "given.jsonl:2: no field 'response' (has: id, text)"),
        ({"id": 1, "response": "x"}, "given.jsonl:2: field 'id' must be a string, got 1"),
        ({"id": "p1", "response": None}, "given.jsonl:2: field 'response' must be a string, got null"),
        ({"id": "p1", "response": ["x"]}, "given.jsonl:2: field 'response' must be a string"),
        ({"id": "p9", "response": "x"}, "given.jsonl:2: id 'p9' is none of the 7 problems (such as 'p0')"),
        ({"id": "p1", "response": "x", "sample": "0"}, "field 'sample' must be an index from 0, got \"0\""),
        ({"id": "p1", "response": "x", "sample": -1}, "field 'sample' must be an index from 0, got -1"),
        ({"id": "p1", "response": "x", "sample": True}, "field 'sample' must be an index from 0, got true"),
        ({"id": "p0", "response": "x", "sample": 0}, "given.jsonl:2: sample 0 of id 'p0' stands in line 1"),
        ({"id": "p0", "response": "x"}, "given.jsonl:2: id 'p0' has rows with and without 'sample'"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, row, message):
    path = sample_file(tmp_path, {"id": "p0", "response": "x", "sample": 0}, row)
    with pytest.raises(UserError) as error:
        read_samples(path, PROBLEMS)
    assert message in str(error.value)


def test_an_empty_or_absent_sample_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no samples"):
        read_samples(sample_file(tmp_path), PROBLEMS)
    with pytest.raises(UserError, match="no such file"):
        read_samples(tmp_path / "absent.jsonl", PROBLEMS)


# --- scores and other forms ------------------------------------------------------------------------------


def test_scores_are_found_under_the_id_that_their_samples_have(tmp_path):
    """A number stands for the problem whose id ends in it, for scores as for samples."""
    problems = [Problem("HumanEval/0", "x", "d"), Problem("HumanEval/1", "y", "d")]
    path = sample_file(
        tmp_path,
        {"task_id": 0, "completion": "a", "score": 0.1},
        {"task_id": "1", "completion": "b", "score": 0.2},
    )
    assert read_samples(path, problems) == {"HumanEval/0": ["a"], "HumanEval/1": ["b"]}
    assert read_sample_scores(path, problems) == {"HumanEval/0": [0.1], "HumanEval/1": [0.2]}


def test_all_samples_of_a_problem_may_stand_in_one_row(tmp_path):
    rows = (
        {"task_id": "p1", "responses": ["a", "b"], "scores": [0.5, [0.1, 0.9]]},
        {"id": "p2", "responses": ["c"], "scores": [None]},
        {"question": "3 + 3?", "code": ["d"], "pred_score": [[1]]},
    )
    path = sample_file(tmp_path, *rows)
    assert read_samples(path, PROBLEMS) == {"p1": ["a", "b"], "p2": ["c"], "p3": ["d"]}
    assert read_sample_scores(path, PROBLEMS) == {"p1": [0.5, 0.9], "p2": [None], "p3": [1.0]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"responses": ["a"]}, "no field 'id' (has: responses); expected id or task_id or question"),
        ({"task_id": "p1", "responses": [["a"]]}, "field 'completion' must be a string"),
        ({"id": "p1", "responses": ["a"], "scores": [1, 2]}, "got [1, 2] for 1; give a list of as many"),
        ({"id": "p1", "responses": ["a"], "scores": ["x"]}, "field 'score' must be a number"),
        ({"id": "p1", "response": "a", "score": 10**400}, "field 'score' must be a number"),
    ],
)
def test_bad_rows_of_several_samples_are_named(tmp_path, row, message):
    path = sample_file(tmp_path, row)
    with pytest.raises(UserError) as error:
        read_samples(path, PROBLEMS)
        read_sample_scores(path, PROBLEMS)
    assert f"{path}:1: " in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(("given", "absent"), [([5], 0), ([0, 1, 3], 2), ([1, 2], 0)])
def test_a_gap_in_the_indices_is_refused_and_not_renumbered(tmp_path, given, absent):
    path = sample_file(tmp_path, *({"id": "p1", "response": "x", "sample": k} for k in given))
    with pytest.raises(UserError, match=f"sample {given[-1]} of id 'p1' without sample {absent}; number the"):
        read_samples(path, PROBLEMS)
