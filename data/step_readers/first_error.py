"""Benchmarks that name the first wrong step: ProcessBench, BIG-Bench-Mistake, MR-GSM8K, ReasonEval's MR-MATH.

Steps before it are right, it is wrong, and what follows nobody judged: label None.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from data.errors import UserError
from data.schema import StepSolution
from data.sources import Row, field, show, texts
from data.step_readers.reading import Reading, labels_up_to, row_place, step_index

_CORRECT = {"correct": True, "wrong": False}


def read_processbench(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """`label`: index of the earliest wrong paragraph from 0, -1 for none; final_answer_correct stands apart:
    a right answer may follow a wrong step."""
    steps = texts(row, "steps")
    label = field(row, "label", int)
    first_error = -1 if label == -1 else step_index(row, "label", label, len(steps), base=0)
    yield _solution(
        row,
        "processbench",
        problem=field(row, "problem", str),
        steps=steps,
        first_error=first_error,
        answer_correct=field(row, "final_answer_correct", bool),
        id=str(field(row, "id", (str, int))),
        meta=_kept(row, "generator"),
    )


def read_bigbench_mistake(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """`mistake_index` from 0, null for none. A missing answer is not a right one."""
    steps = texts(row, "steps")
    index = row.values["mistake_index"]
    answer, target = field(row, "answer", (str, type(None))), field(row, "target", str)
    yield _solution(
        row,
        "bigbench_mistake",
        problem=field(row, "input", str),
        steps=steps,
        first_error=-1 if index is None else step_index(row, "mistake_index", index, len(steps), base=0),
        answer_correct=answer is not None and answer.strip() == target.strip(),
        id=row_place(row),
        meta={"gold_answer": target},
    )


def read_mr_gsm8k(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """`model_output_solution_first_error_step` from 1 (an integer or its digits), "N/A" for a right one."""
    yield from _meta_reasoning(row, "mr_gsm8k", texts(row, "model_output_steps"), "uuid", "question_type")


def read_reasoneval_invalid(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """MR-MATH's invalid errors: like MR-GSM8K, but a step is a list of lines, joined here; meta keeps their
    numbers, because ReasonEval scores lines and takes the least of a step's."""
    steps, lines = read_lines(row, "model_output_step_format")
    for solution in _meta_reasoning(row, "reasoneval_invalid", steps, "id", "generator"):
        yield replace(solution, id=f"invalid_{solution.id}", meta={**solution.meta, "lines_per_step": lines})


def read_lines(row: Row, name: str) -> tuple[tuple[str, ...], list[int]]:
    """Return steps that are lists of lines, joined, with the number of lines in each."""
    steps = field(row, name, list)
    for k, lines in enumerate(steps):
        if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
            raise UserError(
                f"{row.where}: field '{name}[{k}]' must be a list of one or more strings, got {show(lines)}"
            )
    return tuple("\n".join(lines) for lines in steps), [len(lines) for lines in steps]


def _meta_reasoning(
    row: Row, source: str, steps: Sequence[str], id_field: str, kept: str
) -> Iterator[StepSolution]:
    names = ("model_output_solution_correctness", "model_output_answer_correctness")
    is_correct, answer_correct = (_verdict(row, name) for name in names)
    name = "model_output_solution_first_error_step"
    value = row.values[name]
    if is_correct:
        if value not in ("N/A", None, ""):
            raise UserError(
                f"{row.where}: field '{name}' must be \"N/A\" for a correct solution, got {show(value)}"
            )
        first_error = -1
    else:
        first_error = step_index(row, name, value, len(steps), base=1)
    yield _solution(
        row,
        source,
        problem=field(row, "question", str),
        steps=tuple(steps),
        first_error=first_error,
        answer_correct=answer_correct,
        id=str(row.values.get(id_field, row_place(row))),
        meta=_kept(row, kept),
    )


def _verdict(row: Row, name: str) -> bool | None:
    value = row.values.get(name)
    if value is None:
        return None
    word = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(word, str) or word not in _CORRECT:
        raise UserError(f'{row.where}: field \'{name}\' must be "correct" or "wrong", got {show(value)}')
    return _CORRECT[word]


def _solution(
    row: Row, source: str, *, first_error: int, steps: tuple[str, ...], **rest: Any
) -> StepSolution:
    return StepSolution(
        steps=steps,
        labels=labels_up_to(first_error, len(steps)),
        source=source,
        first_error=first_error,
        **rest,
    )


def _kept(row: Row, *names: str) -> dict[str, Any]:
    return {name: row.values[name] for name in names if row.values.get(name) is not None}
