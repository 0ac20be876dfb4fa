"""Published step-label files, read and compared with their own raw fields. The rows by hand are in
test_data_step_formats.py."""

import gzip
import json
import re
from collections import Counter

import pytest
from shared_data import SHARED, needs_shared

from data.step_readers import read_steps


def raw(name: str) -> list[dict]:
    path = SHARED / "steps" / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


@needs_shared
@pytest.mark.parametrize("name", ["gsm8k", "math", "olympiadbench", "omnimath"])
def test_processbench_solutions_keep_their_first_error(name) -> None:
    rows = raw(f"processbench/{name}.jsonl")
    records = read_steps(SHARED / "steps" / "processbench" / f"{name}.jsonl")
    assert [r.first_error for r in records] == [row["label"] for row in rows]
    assert [r.answer_correct for r in records] == [row["final_answer_correct"] for row in rows]
    zeros = sum(r.labels.count(0.0) for r in records)
    ones = sum(r.labels.count(1.0) for r in records)
    assert zeros == sum(row["label"] >= 0 for row in rows)
    assert ones == sum(row["label"] if row["label"] >= 0 else len(row["steps"]) for row in rows)


@needs_shared
def test_prmbench_marks_the_published_error_steps() -> None:
    for path in sorted((SHARED / "steps" / "prmbench").glob("*.jsonl.gz")):
        # Two solutions stand under one idx twice, with other steps: the first counts, as upstream.
        rows = {row["idx"]: row for row in reversed(raw(f"prmbench/{path.name}"))}
        for record in read_steps(path):
            row = rows[record.meta["idx"]]
            if record.meta["classification"] == "correct":
                assert set(record.labels) == {1.0} and len(record.steps) == len(row["original_process"])
                continue
            wrong = {k + 1 for k, label in enumerate(record.labels) if label == 0.0}
            assert wrong == {k for k in row["error_steps"] if k <= len(row["modified_process"])}
            assert len(record.steps) == len(row["modified_process"])
            for cut, whole in zip(record.steps, row["modified_process"], strict=True):
                assert whole.strip().endswith(cut) and len(whole.strip()) - len(cut) <= 10


@needs_shared
def test_prmbench_controls_come_once_with_the_redundency_rows() -> None:
    counts = Counter()
    records = read_steps(SHARED / "steps" / "prmbench", counts=counts)
    kinds = Counter(record.meta["classification"] for record in records)
    assert kinds["correct"] == kinds["redundency"] == 361
    assert counts["repeated rows"] == 2 and kinds["multi_solutions"] == 80
    assert len({record.id for record in records}) == len(records)


@needs_shared
def test_math_shepherd_labels_are_the_signs_in_the_label_texts() -> None:
    rows, records = raw("math_shepherd.jsonl"), read_steps(SHARED / "steps" / "math_shepherd.jsonl")
    assert len(records) == len(rows) == 45
    for row, record in zip(rows, records, strict=True):
        signs = re.findall(r" ([+-])(?=\n|\Z)", row["label"])
        assert [{"+": 1.0, "-": 0.0}[sign] for sign in signs] == list(record.labels)
        assert row["input"] == record.problem + " " + "\n".join(f"{step} ки" for step in record.steps)


@needs_shared
@pytest.mark.parametrize(
    ("name", "column", "base"),
    [
        ("mr_gsm8k_wrong.jsonl", "model_output_solution_first_error_step", 1),
        ("reasoneval/mr_math_invalid_errors.jsonl", "model_output_solution_first_error_step", 1),
        *(
            (f"big_bench_mistake/{task}.jsonl", "mistake_index", 0)
            for task in (
                "dyck_languages",
                "logical_deduction",
                "multistep_arithmetic",
                "tracking_shuffled_objects",
                "word_sorting",
            )
        ),
    ],
)
def test_first_errors_are_the_files_own_with_their_base(name, column, base) -> None:
    values = [row[column] for row in raw(name)]
    expected = [-1 if value in (None, "N/A") else int(value) - base for value in values]
    records = read_steps(SHARED / "steps" / name)
    assert [record.first_error for record in records] == expected
    assert all(r.first_error < 0 or r.labels[r.first_error] == 0.0 for r in records)


@needs_shared
def test_perturbed_steps_are_the_first_that_differ_from_the_reference() -> None:
    rows = {f"perturbation_{row['id']}": row for row in raw("reasoneval/perturbation.jsonl")}
    records = read_steps(SHARED / "steps" / "reasoneval" / "perturbation.jsonl", neutral="half")
    checked = Counter()
    for record in records:
        row, kind = rows[record.id], record.meta["error_type"]
        new, old = row["hypothesis_steps"], row["reference_steps"]
        differs = next(
            (k for k, (a, b) in enumerate(zip(new, old, strict=False)) if a != b), min(len(new), len(old))
        )
        if kind == "repeat step":
            assert record.labels.index(0.5) == differs and new[differs] == new[differs - 1]
        elif kind == "remove step":
            assert record.labels[:differs] == (1.0,) * differs and set(record.labels[differs:]) <= {None}
        else:
            assert record.first_error == differs
        checked[kind] += 1
    # 78 of each but 61 random operations; of the removed first steps nothing is known.
    assert checked["random operation"] == 61 and checked["swap steps"] == checked["repeat step"] == 78


@needs_shared
def test_redundant_steps_follow_the_neutral_policy() -> None:
    path = SHARED / "steps" / "reasoneval" / "mr_math_redundant_errors.jsonl"
    zeros = sum(row["rating"].count(0) for row in raw("reasoneval/mr_math_redundant_errors.jsonl"))
    for neutral, value in (("half", 0.5), ("negative", 0.0), ("mask", None)):
        records = read_steps(path, neutral=neutral)
        assert sum(record.labels.count(value) for record in records) == zeros == 164


@needs_shared
def test_math_aps_values_stand_at_the_ends_of_their_prefixes() -> None:
    counts = Counter()
    records = read_steps(SHARED / "steps" / "math_aps.jsonl", counts=counts)
    values = {
        (row["question"], re.sub(r"\s+", "", item["solution_prefix"][len(row["question"]) :])): item[
            "mc_value"
        ]
        for row in reversed(raw("math_aps.jsonl"))
        for item in reversed(row["reasoning_steps"])
    }
    for record in records:
        assert record.labels[:-1] == (None,) * (len(record.labels) - 1)
        assert record.labels[-1] == values[record.problem, re.sub(r"\s+", "", "".join(record.steps))]
    assert counts["values of the bare question"] == 2
    assert len(records) + counts["repeated prefixes"] + 2 == 90 + 42
