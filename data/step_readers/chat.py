"""RLHFlow's chat rows: the user says a step, the assistant answers + or -."""

from collections.abc import Iterator

from data.errors import UserError
from data.schema import StepSolution
from data.sources import Row, field, show
from data.step_readers.reading import Reading, first_below_half, row_place

_VERDICTS = {"+": 1.0, "-": 0.0}
_FIRST_STEP = "Step 1:"


def read_rlhflow(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """`conversations` of user turns (the first holds problem *and* first step) and assistant turns + or -.

    The first turn is cut at "Step 1:" where it occurs once (the Mistral data). Without it (the DeepSeek data)
    nothing says where the problem ends, so the turn is kept whole as the problem, its label is dropped, and
    the row is counted.
    """
    turns = [_turn(row, k, turn) for k, turn in enumerate(field(row, "conversations", list))]
    if not turns or len(turns) % 2:
        raise UserError(
            f"{row.where}: field 'conversations' must hold pairs of a user and an assistant turn, "
            f"got {len(turns)} turns"
        )
    said = [text.strip() for text, _ in turns[::2]]
    labels = [_verdict(row, 2 * k + 1, text) for k, (text, _) in enumerate(turns[1::2])]
    if said[0].count(_FIRST_STEP) == 1:
        problem, heading, first = said[0].partition(_FIRST_STEP)
        steps = [heading + first, *said[1:]]
    else:
        reading.counts["first steps that cannot be told from the problem"] += 1
        problem, steps, labels = said[0], said[1:], labels[1:]
        if not steps:
            return
    yield StepSolution(
        problem=problem.strip(),
        steps=tuple(steps),
        labels=tuple(labels),
        id=row_place(row),
        source="rlhflow",
        label_kind="mc_hard",
        first_error=first_below_half(labels),
    )


def _turn(row: Row, index: int, turn: object) -> tuple[str, str]:
    """Text and role of one turn; roles must alternate, beginning with the user."""
    wanted = ("user", "assistant")[index % 2]
    if isinstance(turn, dict) and turn.get("role") == wanted and isinstance(text := turn.get("content"), str):
        return text, wanted
    raise UserError(
        f"{row.where}: field 'conversations[{index}]' must be an object with role '{wanted}' "
        f"and a string 'content', got {show(turn)}"
    )


def _verdict(row: Row, index: int, text: str) -> float:
    if text.strip() not in _VERDICTS:
        raise UserError(
            f'{row.where}: field \'conversations[{index}].content\' must be "+" or "-", got {show(text)}'
        )
    return _VERDICTS[text.strip()]
