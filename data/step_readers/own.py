"""Our own rows, and TRL's stepwise supervision: steps and labels side by side."""

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from data.errors import UserError, did_you_mean
from data.schema import StepSolution
from data.sources import Row, field, texts, unit_labels
from data.step_readers.reading import Reading, row_place

OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "source": str,
    "label_kind": str,
    "first_error": int,
    "answer_correct": bool,
    "meta": dict,
}
_DEFAULTS: dict[str, Any] = {
    "id": "",
    "source": "",
    "label_kind": "human",
    "first_error": None,
    "answer_correct": None,
    "meta": {},
}
_LABEL_KINDS = get_args(get_type_hints(StepSolution)["label_kind"])


def read_stepwell(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """Our own rows: problem, steps, labels in [0, 1] or null, and any further field of StepSolution."""
    optional = {key: row.values[key] for key in OPTIONAL if row.values.get(key) is not None}
    for key, value in optional.items():
        field(row, key, OPTIONAL[key])
        if key == "label_kind" and value not in _LABEL_KINDS:
            raise UserError(
                f"{row.where}: label_kind '{value}' is unknown{did_you_mean(value, _LABEL_KINDS)}"
            )
    steps = texts(row, "steps")
    first_error = optional.get("first_error")
    if first_error is not None and not -1 <= first_error < len(steps):
        raise UserError(
            f"{row.where}: first_error {first_error} names no step; expected -1 to {len(steps) - 1}"
        )
    yield StepSolution(
        problem=field(row, "problem", str),
        steps=steps,
        labels=unit_labels(row, "labels", len(steps)),
        **optional,
    )


def stepwell_row(solution: StepSolution) -> dict[str, Any]:
    """Return the JSON object that `read_stepwell` turns back into an equal record; defaults are left out."""
    row = {"problem": solution.problem, "steps": solution.steps, "labels": solution.labels}
    return row | {key: getattr(solution, key) for key in OPTIONAL if getattr(solution, key) != _DEFAULTS[key]}


def read_trl(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """TRL's stepwise supervision: prompt, completions, labels (true/false; numbers in [0, 1] will do too)."""
    steps = texts(row, "completions")
    yield StepSolution(
        problem=field(row, "prompt", str),
        steps=steps,
        labels=unit_labels(row, "labels", len(steps)),
        id=row_place(row),
        source="trl",
    )
