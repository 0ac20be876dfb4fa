"""Published step-label formats, on rows written by hand."""

import json
from collections import Counter
from pathlib import Path

import pytest

from data.errors import UserError
from data.sources import Row
from data.step_readers import FORMATS, detect_format, read_steps


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


SHEPHERD = {
    "input": "1 + 1? Is ки a word? Step 1: a ки b ки\nStep 2: c+ ки\nStep 3: d ки",
    "label": "1 + 1? Is ки a word? Step 1: a ки b +\nStep 2: c+ -\nStep 3: d +",
    "task": "GSM8K",
}
OPENRLHF = {"input": SHEPHERD["input"], "value": ["+", "-", "+"]}
CHAT = {
    "conversations": [
        {"role": "user", "content": "1 + 1? Step 1: a"},
        {"role": "assistant", "content": "+"},
        {"role": "user", "content": "Step 2: b"},
        {"role": "assistant", "content": "-"},
    ]
}
PROCESSBENCH = {
    "id": "gsm8k-7",
    "generator": "g",
    "problem": "p",
    "steps": ["a", "b", "c"],
    "label": 1,
    "final_answer_correct": True,
}
PRMBENCH = {
    "original_question": "q",
    "modified_question": "m",
    "original_process": ["1. x", "2. y"],
    "modified_process": ["1. a", "Step 2. 3.5 m", "c"],
    "error_steps": [2, 5],
    "classification": "redundency",
    "idx": "i7",
}
MR_GSM8K = {
    "uuid": "u",
    "question": "q",
    "model_output_steps": ["a", "b", "c"],
    "model_output_answer_correctness": "wrong",
    "model_output_solution_correctness": "wrong",
    "model_output_solution_first_error_step": 2,
}
BIGBENCH = {"input": "q", "steps": ["a", "b"], "target": "(A)", "answer": "(A) ", "mistake_index": None}
INVALID = {
    "id": 3,
    "question": "q",
    "model_output_step_format": [["a", "a2"], ["b"]],
    "model_output_answer_correctness": "correct",
    "model_output_solution_correctness": "wrong",
    "model_output_solution_first_error_step": "1",
}
REDUNDANT = {"id": 4, "question": "q", "model_output_step_format": [["a"], ["b"]], "rating": [1, 0]}
PERTURBED = {
    "id": 5,
    "question": "q",
    "reference_steps": ["a", "b", "c"],
    "hypothesis_steps": ["a", "x", "c"],
    "error_type": "random number",
    "tags": 1,
}
APS = {
    "question": "q?",
    "final_answer": "2",
    "reasoning_steps": [
        {"solution_prefix": "q?", "mc_value": 0.5},
        {"solution_prefix": "q?\n\na", "mc_value": 0.75},
        {"solution_prefix": "q?\n\na\n\nb", "mc_value": 0},
        {"solution_prefix": "q?\n\na\n\nb", "mc_value": 1},
        {"solution_prefix": "q?\n\nzzzzzz", "mc_value": 1.0},
    ],
}
APS_TREE = {
    "question": "q?",
    "reasoning_steps": {
        "text": "",
        "mc_value": 0.5,
        "children": [
            {"text": "a", "mc_value": 0.75, "children": [{"text": "b", "mc_value": 0.0, "children": []}]},
            {"text": "z", "mc_value": None, "children": []},
        ],
    },
}
R_PRM = {
    "id": "x-2",
    "origin_id": "x",
    "question": "q",
    "previous_steps": "Step 1: a\nmore\nStep 2: b",
    "now_step": "Step 3: c",
    "label": False,
}
ROWS = {
    "math_shepherd": SHEPHERD,
    "openrlhf": OPENRLHF,
    "er_prm": {"text": "q Step 1: a ки", "value": [0.5]},
    "rlhflow": CHAT,
    "processbench": PROCESSBENCH,
    "prmbench": PRMBENCH,
    "mr_gsm8k": MR_GSM8K,
    "bigbench_mistake": BIGBENCH,
    "reasoneval_invalid": INVALID,
    "reasoneval_redundant": REDUNDANT,
    "reasoneval_perturbation": PERTURBED,
    "math_aps": APS,
    "math_aps_tree": APS_TREE,
    "r_prm": R_PRM,
}

EXPECTED = {
    "math_shepherd": [("1 + 1? Is ки a word?", ("Step 1: a ки b", "Step 2: c+", "Step 3: d"), (1, 0, 1), 1)],
    "openrlhf": [("1 + 1? Is ки a word?", ("Step 1: a ки b", "Step 2: c+", "Step 3: d"), (1, 0, 1), 1)],
    "er_prm": [("q", ("Step 1: a",), (0.5,), None)],
    "rlhflow": [("1 + 1?", ("Step 1: a", "Step 2: b"), (1, 0), 1)],
    "processbench": [("p", ("a", "b", "c"), (1, 0, None), 1)],
    "prmbench": [("q", ("x", "y"), (1, 1), -1), ("m", ("a", "3.5 m", "c"), (1, 0, 1), 1)],
    "mr_gsm8k": [("q", ("a", "b", "c"), (1, 0, None), 1)],
    "bigbench_mistake": [("q", ("a", "b"), (1, 1), -1)],
    "reasoneval_invalid": [("q", ("a\na2", "b"), (0, None), 0)],
    "reasoneval_redundant": [("q", ("a", "b"), (1, 0.5), -1)],
    "reasoneval_perturbation": [("q", ("a", "x", "c"), (1, 0, None), 1)],
    "math_aps": [
        ("q?", ("a",), (0.75,), None),
        ("q?", ("a", "b"), (None, 0), None),
        ("q?", ("zzzzzz",), (1,), None),
    ],
    "math_aps_tree": [("q?", ("a",), (0.75,), None), ("q?", ("a", "b"), (None, 0), None)],
    "r_prm": [("q", ("Step 1: a\nmore", "Step 2: b", "Step 3: c"), (None, None, 0), None)],
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_format_is_told_from_its_fields_and_read(tmp_path, name) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS[name])
    assert detect_format(Row("", ROWS[name])) == name
    records = read_steps(path, neutral="half")
    assert [(r.problem, r.steps, r.labels, r.first_error) for r in records] == EXPECTED[name]
    assert len({r.id for r in records}) == len(records)


def test_every_format_has_a_row_written_by_hand() -> None:
    assert set(ROWS) == set(EXPECTED) == set(FORMATS) - {"stepwell", "trl", "prm800k", "prm800k_flat"}


def test_what_stands_beside_the_labels_is_kept(tmp_path) -> None:
    (bench,) = read_steps(write_rows(tmp_path / "a.jsonl", PROCESSBENCH))
    assert (bench.id, bench.answer_correct, bench.meta) == ("gsm8k-7", True, {"generator": "g"})
    (shepherd,) = read_steps(write_rows(tmp_path / "b.jsonl", SHEPHERD))
    assert (shepherd.label_kind, shepherd.meta) == ("mc_hard", {"task": "GSM8K"})
    (soft,) = read_steps(write_rows(tmp_path / "c.jsonl", {**OPENRLHF, "value": [1, 0.25, 0]}))
    assert (soft.label_kind, soft.labels, soft.first_error) == ("mc_soft", (1, 0.25, 0), None)
    (invalid,) = read_steps(write_rows(tmp_path / "d.jsonl", INVALID))
    assert (invalid.answer_correct, invalid.meta["lines_per_step"]) == (True, [2, 1])
    (mistake,) = read_steps(write_rows(tmp_path / "e.jsonl", BIGBENCH))
    assert mistake.answer_correct is True  # blanks around an answer do not make it wrong
    (mistake,) = read_steps(write_rows(tmp_path / "f.jsonl", {**BIGBENCH, "answer": None}))
    assert mistake.answer_correct is False


@pytest.mark.parametrize("value", ["N/A", None])
def test_a_solution_without_an_error_is_right_throughout(tmp_path, value) -> None:
    row = MR_GSM8K | {
        "model_output_solution_correctness": "correct",
        "model_output_solution_first_error_step": value,
    }
    (record,) = read_steps(write_rows(tmp_path / "m.jsonl", row))
    assert (record.labels, record.first_error, record.answer_correct) == ((1, 1, 1), -1, False)


def test_prmbench_repeats_and_errors_beyond_the_end_are_counted(tmp_path) -> None:
    counts = Counter()
    beyond = PRMBENCH | {"classification": "confidence", "error_steps": [9]}
    records = read_steps(write_rows(tmp_path / "p.jsonl", PRMBENCH, PRMBENCH, beyond), counts=counts)
    assert [r.id for r in records] == ["correct_i7", "redundency_i7", "confidence_i7"]
    assert counts == {"rows": 3, "error steps beyond the end": 3, "repeated rows": 2}
    # The published evaluation takes such a row's steps for right; that there is an error stays known.
    assert (records[2].labels, records[2].first_error) == ((1, 1, 1), None)


@pytest.mark.parametrize(
    ("kind", "tags", "labels", "first_error"),
    [
        ("random operation", 0, (0, None, None), 0),
        ("swap steps", [2, 1], (1, 0, None), 1),
        ("repeat step", 1, (1, 1, 0.5), -1),
        ("remove step", 1, (1, None, None), None),
        ("remove step", 3, (1, 1, 1), None),
    ],
)
def test_perturbations_label_what_is_known(tmp_path, kind, tags, labels, first_error) -> None:
    row = PERTURBED | {"error_type": kind, "tags": tags}
    (record,) = read_steps(write_rows(tmp_path / "r.jsonl", row), neutral="half")
    assert (record.labels, record.first_error) == (labels, first_error)


def test_a_perturbation_that_labels_nothing_is_counted(tmp_path) -> None:
    counts = Counter()
    swap = PERTURBED | {"error_type": "swap solutions", "tags": 23}
    gap = PERTURBED | {"error_type": "remove step", "tags": 0}
    assert len(read_steps(write_rows(tmp_path / "r.jsonl", PERTURBED, swap, gap), counts=counts)) == 1
    assert counts["records without a label"] == 2


def test_what_cannot_be_cut_for_certain_is_left_out_and_counted(tmp_path) -> None:
    counts = Counter()
    twice = SHEPHERD | {key: f"Step 1: {SHEPHERD[key]}" for key in ("input", "label")}
    other = SHEPHERD | {"label": SHEPHERD["label"].replace("d", "e")}
    tail = {key: SHEPHERD[key] + "\nStep 4: no tag" for key in ("input", "label")}
    path = write_rows(tmp_path / "s.jsonl", twice, other, tail)
    assert [len(record.steps) for record in read_steps(path, counts=counts)] == [3]
    assert counts == {
        "rows": 3,
        'rows without exactly one "Step 1:"': 1,
        "rows whose label text differs from the input": 1,
        "steps behind the last tag": 1,
    }
    turns = [dict(turn) for turn in CHAT["conversations"]]
    turns[0]["content"] = "1 + 1? We add."
    counts.clear()
    (record,) = read_steps(write_rows(tmp_path / "c.jsonl", {"conversations": turns}), counts=counts)
    assert (record.problem, record.steps, record.labels) == ("1 + 1? We add.", ("Step 2: b",), (0,))
    assert counts["first steps that cannot be told from the problem"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (OPENRLHF | {"value": ["+", "-"]}, "2 labels for 3 tags"),
        (OPENRLHF | {"value": ["+", "-", "~"]}, r"field 'value\[2\]' must be"),
        (OPENRLHF | {"value": [1, 0, 1.5]}, r"field 'value\[2\]' must be"),
        (PROCESSBENCH | {"label": 3}, r"must name one of the 3 steps, counted from 0 \(0 to 2\)"),
        (PROCESSBENCH | {"label": -2}, "field 'label' must name"),
        (PROCESSBENCH | {"final_answer_correct": None}, "field 'final_answer_correct' must be true/false"),
        (PROCESSBENCH | {"steps": "abc"}, "field 'steps' must be a list"),
        (MR_GSM8K | {"model_output_solution_first_error_step": 0}, r"from 1 \(1 to 3\), got an integer 0"),
        (MR_GSM8K | {"model_output_solution_first_error_step": "N/A"}, "first_error_step' must name one"),
        (MR_GSM8K | {"model_output_solution_correctness": "right"}, 'must be "correct" or "wrong"'),
        (MR_GSM8K | {"model_output_solution_correctness": []}, 'must be "correct" or "wrong", got a list'),
        (MR_GSM8K | {"model_output_solution_correctness": "correct"}, 'must be "N/A" for a correct solution'),
        (BIGBENCH | {"mistake_index": 2}, "field 'mistake_index' must name one of the 2 steps"),
        (PRMBENCH | {"error_steps": [0]}, r"field 'error_steps\[0\]' must be a step's number from 1"),
        (INVALID | {"model_output_step_format": [["a"], []]}, r"field 'model_output_step_format\[1\]'"),
        (REDUNDANT | {"rating": [1]}, "field 'rating' has 1 ratings for 2 steps"),
        (REDUNDANT | {"rating": [1, -1]}, r"field 'rating\[1\]' must be 0 or 1"),
        (PERTURBED | {"error_type": "swap step"}, "error_type 'swap step' is unknown; did you mean"),
        (PERTURBED | {"error_type": "swap steps"}, "field 'tags' must be a list of step indices"),
        (PERTURBED | {"tags": 3}, "field 'tags' must name one of the 3 steps, counted from 0"),
        (APS | {"question": "other"}, r"'reasoning_steps\[0\].solution_prefix' must begin with the question"),
        (
            APS | {"reasoning_steps": [{"solution_prefix": "q?a", "mc_value": 2}]},
            r"mc_value' must be a number",
        ),
        (APS_TREE | {"reasoning_steps": {"text": 1, "mc_value": 1, "children": []}}, "with a string 'text'"),
        (R_PRM | {"label": 2}, "field 'label' must be 0, 1, true or false"),
        (R_PRM | {"previous_steps": "no heading"}, "field 'previous_steps' must begin with 'Step 1: '"),
        ({"conversations": CHAT["conversations"][:3]}, "pairs of a user and an assistant turn, got 3 turns"),
        ({"conversations": CHAT["conversations"][::-1]}, "must be an object with role 'user'"),
        (
            {"conversations": [CHAT["conversations"][0], {"role": "assistant", "content": "yes"}]},
            r"'conversations\[1\].content' must be \"\+\" or \"-\"",
        ),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_field(tmp_path, row, message) -> None:
    good = ROWS[detect_format(Row("", row))]
    path = write_rows(tmp_path / "rows.jsonl", good, row)
    with pytest.raises(UserError, match=message) as error:
        read_steps(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert len(str(error.value).splitlines()) <= 2
