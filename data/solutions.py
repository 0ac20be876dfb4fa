"""Solutions to be scored, labelled or not, from whatever file they stand in.

    for solution in read_solutions("solutions.jsonl"):
        scorer.score([solution.problem], [solution.steps])

A row is one that `step_readers` knows (labels come along), {"problem", "steps"} or {"problem", "response"}.
"""

from data.errors import UserError
from data.schema import StepSolution
from data.sources import Row, Source, field, read_rows, show, shown, texts
from data.step_readers import FORMATS, detect_format, read_steps
from data.steps import Splitter, step_texts


def read_solutions(
    source: Source,
    format: str = "auto",  # noqa: A002 - the word users know
    *,
    splitter: Splitter | None = "newline",
    split: str = "train",
) -> list[StepSolution]:
    """Return the solutions of a file, folder or hub dataset, in its order; labels are None where it has none.

    format: a step format by name, or "auto": told from the first row. splitter: how a `response` is cut;
    None: not at all. Raises UserError, with file and line, for rows that are none of these, and for a
    `response` that nothing cuts.
    """
    if format == "auto":
        first = next(iter(read_rows(source, split=split)), None)
        if first is None:
            raise UserError(f"{shown(source)}: no rows; give solutions to score")
        if "problem" in first.values and not _is_labelled(first):
            return [_read_plain(row, splitter) for row in read_rows(source, split=split)]
        detect_format(first)
    return read_steps(source, format, split=split)


def _is_labelled(row: Row) -> bool:
    """Whether some format of step labels fits the row."""
    try:
        return detect_format(row) in FORMATS
    except UserError:
        return False


def _read_plain(row: Row, splitter: Splitter | None) -> StepSolution:
    problem = field(row, "problem", str)
    if "steps" in row.values:
        steps = texts(row, "steps")
    elif "response" in row.values:
        if splitter is None:
            raise UserError(
                f"{row.where}: the reward model joins its steps with a text that no splitter is known for; "
                "give --splitter, or rows with 'steps'"
            )
        steps = tuple(step_texts(field(row, "response", str), splitter))
    else:
        found = ", ".join(row.values)
        raise UserError(f"{row.where}: expected 'steps' (a list) or 'response' (a text); found {found}")
    name = row.values.get("id", "")
    if not isinstance(name, str | int):
        raise UserError(f"{row.where}: field 'id' must be a string, got {show(name)}")
    correct = row.values.get("answer_correct")
    if correct is None and row.values.get("verdict") in ("correct", "wrong"):
        correct = row.values["verdict"] == "correct"
    if correct is not None and not isinstance(correct, bool):
        raise UserError(f"{row.where}: field 'answer_correct' must be true/false, got {show(correct)}")
    return StepSolution(
        problem=problem,
        steps=steps,
        labels=(None,) * len(steps),
        id=str(name),
        answer_correct=correct,
    )
