"""Solutions as one text with a tag behind every step: Math-Shepherd, OpenRLHF's copy of it, ER-PRM.

A tag stands at the end of a line or of the text; the same letters elsewhere are text. What follows the last
tag has no label and is left out, and counted.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from data.errors import UserError
from data.schema import StepSolution
from data.sources import Row, field, show
from data.step_readers.reading import Reading, first_below_half, row_place

TAG = "ки"
"""Cyrillic U+043A U+0438, the tag of all published files of these formats."""

_FIRST_STEP = "Step 1:"
_TAG_AT_LINE_END = re.compile(rf"[^\S\n]*{TAG}[^\S\n]*(?=\n|\Z)")
_HARD = {"+": 1.0, "-": 0.0}


def read_math_shepherd(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """`input` with a tag behind each step and `label`, the same text with + or - in the tags' places.

    Hard Monte-Carlo labels: + when one of 8 completions from there on reached the gold answer. They need not
    be monotone. Rows whose text holds "Step 1:" twice cannot be cut into problem and steps for certain; they
    are left out and counted, as are those whose labels do not stand where the tags do.
    """
    text, labelled = field(row, "input", str), field(row, "label", str)
    marks = _marks(text, labelled)
    if marks is None:
        reading.counts["rows whose label text differs from the input"] += 1
        return
    yield from _tagged(row, reading, text, marks, source="math_shepherd", kind="mc_hard")


def read_openrlhf(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """`input` with tags and `value`: one "+" or "-" (hard), or one number in [0, 1] (soft), for each tag."""
    yield from _with_values(row, reading, "input", "openrlhf")


def read_er_prm(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """ER-PRM's `text` with tags and `value`: one number in [0, 1] for each tag."""
    yield from _with_values(row, reading, "text", "er_prm")


def _marks(text: str, labelled: str) -> list[float] | None:
    """The + and - that replace the tags, None where the two texts do not agree outside of them."""
    marks, end, at = [], 0, 0
    for match in _TAG_AT_LINE_END.finditer(text):
        between = text[end : match.end()].rstrip()[: -len(TAG)]
        mark = labelled[at + len(between) : at + len(between) + 1]
        if not labelled.startswith(between, at) or mark not in _HARD:
            return None
        marks.append(_HARD[mark])
        spaces = len(text[end : match.end()]) - len(text[end : match.end()].rstrip())
        at += len(between) + 1 + spaces
        end = match.end()
    return marks


def _with_values(row: Row, reading: Reading, name: str, source: str) -> Iterator[StepSolution]:
    values = [_value(row, k, value) for k, value in enumerate(field(row, "value", list))]
    hard = all(isinstance(value, str) for value in row.values["value"])
    yield from _tagged(
        row, reading, field(row, name, str), values, source=source, kind="mc_hard" if hard else "mc_soft"
    )


def _value(row: Row, index: int, value: Any) -> float:
    if isinstance(value, str) and value in _HARD:
        return _HARD[value]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise UserError(
        f'{row.where}: field \'value[{index}]\' must be "+", "-" or a number from 0 to 1, got {show(value)}'
    )


def _tagged(
    row: Row, reading: Reading, text: str, labels: Sequence[float], *, source: str, kind: Any
) -> Iterator[StepSolution]:
    if text.count(_FIRST_STEP) != 1:
        reading.counts[f'rows without exactly one "{_FIRST_STEP}"'] += 1
        return
    *steps, rest = _TAG_AT_LINE_END.split(text)
    if len(steps) != len(labels):
        raise UserError(
            f"{row.where}: {len(labels)} labels for {len(steps)} tags '{TAG}' at a line's end; "
            f"give one label per tag"
        )
    if not steps:
        raise UserError(f"{row.where}: no tag '{TAG}' at the end of a line; expected one behind each step")
    if rest.strip():
        reading.counts["steps behind the last tag"] += 1
    problem, heading, first = steps[0].partition(_FIRST_STEP)
    if not heading:
        raise UserError(f"{row.where}: '{_FIRST_STEP}' stands behind the first tag; expected it before")
    yield StepSolution(
        problem=problem.strip(),
        steps=(heading + first, *(step.strip() for step in steps[1:])),
        labels=tuple(labels),
        id=row_place(row),
        source=source,
        label_kind=kind,
        first_error=first_below_half(labels) if kind == "mc_hard" else None,
        meta={"task": row.values["task"]} if "task" in row.values else {},
    )
