"""Benchmarks whose errors were planted or rated step by step: PRMBench, ReasonEval's other two files."""

import re
from collections.abc import Iterator
from typing import Any

from data.errors import UserError, did_you_mean
from data.schema import StepSolution
from data.sources import Row, field, show, texts
from data.step_readers.first_error import read_lines
from data.step_readers.reading import NEUTRAL, Reading, labels_up_to, row_place, step_index

_NUMBERING = re.compile(r"(?:Step\s*\d+[.:]|\d+\.)(?:\s+|$)", re.IGNORECASE)
_CONTROL_CLASS = "redundency"


def read_prmbench(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """`modified_process` with `error_steps` counted from 1; every other step is right.

    Error steps beyond the end are passed over and counted; where all of them are, first_error stays None.
    The numbering some steps begin with ("Step 3. ", "2. ") is taken off, as PRMBench's own adapters do.
    Rows of the class "redundency" (so spelt) also give their original_process, all right, as the control of
    all rows with the same idx: id "correct_<idx>", meta classification "correct". Repeated rows are dropped.
    """
    kind, idx = field(row, "classification", str), str(field(row, "idx", (str, int)))
    steps = tuple(_without_numbering(step) for step in texts(row, "modified_process"))
    errors = _error_steps(row, len(steps), reading)
    if kind == _CONTROL_CLASS:
        original = tuple(_without_numbering(step) for step in texts(row, "original_process"))
        yield from _once(reading, row, "original_question", original, [], "correct", idx, -1)
    known_first = min(errors) if errors else (None if row.values["error_steps"] else -1)
    yield from _once(reading, row, "modified_question", steps, errors, kind, idx, known_first)


def read_reasoneval_redundant(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """MR-MATH's redundant errors: `rating` 1 (useful) or 0 (PRM800K's neutral, here "redundant") a step.

    A rating of 0 becomes what the neutral policy says. None of the steps is wrong: first_error is -1. The
    ratings themselves are kept in meta. The three files count from the same ids: each gets a prefix here.
    """
    steps, lines = read_lines(row, "model_output_step_format")
    ratings = field(row, "rating", list)
    if len(ratings) != len(steps):
        raise UserError(f"{row.where}: field 'rating' has {len(ratings)} ratings for {len(steps)} steps")
    for k, rating in enumerate(ratings):
        if rating not in (0, 1) or isinstance(rating, bool):
            raise UserError(f"{row.where}: field 'rating[{k}]' must be 0 or 1, got {show(rating)}")
    yield StepSolution(
        problem=field(row, "question", str),
        steps=steps,
        labels=tuple(1.0 if rating else NEUTRAL[reading.neutral] for rating in ratings),
        id=f"redundant_{row.values.get('id', row_place(row))}",
        source="reasoneval_redundant",
        first_error=-1,
        meta={"ratings": ratings, "lines_per_step": lines},
    )


_KINDS = ("random number", "random operation", "swap steps", "repeat step", "remove step", "swap solutions")


def read_reasoneval_perturbation(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """ReasonEval's automatic perturbations: `tags` counts from 0, and error_type says what it names.

    random number, random operation: that step is wrong. swap steps: the two that changed places; the first
    of them is wrong. repeat step: the step behind it says it again (neutral). remove step: the one that now
    stands there may hang in the air. swap solutions: tags is another row's rid; the whole is another
    problem's. Steps whose label this leaves open are None; records without any label are left out, counted.
    """
    kind = field(row, "error_type", str)
    if kind not in _KINDS:
        raise UserError(f"{row.where}: error_type '{kind}' is unknown{did_you_mean(kind, _KINDS)}")
    steps = texts(row, "hypothesis_steps")
    tag: Any = row.values["tags"]
    labels: tuple[float | None, ...] = (None,) * len(steps)
    first_error: int | None = None
    if kind == "swap steps" and not (isinstance(tag, list) and tag):
        raise UserError(f"{row.where}: field 'tags' must be a list of step indices, got {show(tag)}")
    if kind in ("random number", "random operation", "swap steps"):
        tags = tag if isinstance(tag, list) else [tag]
        first_error = min(step_index(row, "tags", one, len(steps), base=0) for one in tags)
        labels = labels_up_to(first_error, len(steps))
    elif kind == "repeat step":
        again = step_index(row, "tags", tag, len(steps) - 1, base=0) + 1
        labels = tuple(NEUTRAL[reading.neutral] if k == again else 1.0 for k in range(len(steps)))
        first_error = -1
    elif kind == "remove step":
        # A removed last step leaves nothing behind it: tags may be the number of steps.
        gap = step_index(row, "tags", tag, len(steps) + 1, base=0)
        labels = tuple(1.0 if k < gap else None for k in range(len(steps)))
    if all(label is None for label in labels):
        reading.counts["records without a label"] += 1
        return
    yield StepSolution(
        problem=field(row, "question", str),
        steps=steps,
        labels=labels,
        id=f"perturbation_{row.values.get('id', row_place(row))}",
        source="reasoneval_perturbation",
        label_kind="synthetic",
        first_error=first_error,
        meta={"error_type": kind},
    )


def _without_numbering(step: str) -> str:
    text = step.strip()
    return _NUMBERING.sub("", text, count=1) if _NUMBERING.match(text) else text


def _error_steps(row: Row, num_steps: int, reading: Reading) -> list[int]:
    errors = []
    for k, number in enumerate(field(row, "error_steps", list)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UserError(
                f"{row.where}: field 'error_steps[{k}]' must be a step's number from 1, got {show(number)}"
            )
        if number > num_steps:
            reading.counts["error steps beyond the end"] += 1
        else:
            errors.append(number - 1)
    return errors


def _once(
    reading: Reading,
    row: Row,
    question: str,
    steps: tuple[str, ...],
    errors: list[int],
    kind: str,
    idx: str,
    first_error: int | None,
) -> Iterator[StepSolution]:
    name = f"{kind}_{idx}"
    if name in reading.seen:
        reading.counts["repeated rows"] += 1
        return
    reading.seen.add(name)
    yield StepSolution(
        problem=field(row, question, str),
        steps=steps,
        labels=tuple(0.0 if k in errors else 1.0 for k in range(len(steps))),
        id=name,
        source="prmbench",
        label_kind="human" if kind in ("correct", "multi_solutions") else "synthetic",
        first_error=first_error,
        meta={"classification": kind, "idx": idx},
    )
