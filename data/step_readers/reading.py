"""What all step-label formats share: the choices of one reading, and labels from where the first error is."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from data.errors import UserError
from data.schema import StepSolution
from data.sources import Row, show

NeutralPolicy = Literal["positive", "half", "negative", "mask"]
"""What a three-way rating of 0 ("neither wrong nor a step forward") becomes: 1.0 (as PRM800K's authors score
it), 0.5 (a soft label), 0.0 (only useful steps are right) or None (unlabelled, no loss)."""

NEUTRAL: dict[NeutralPolicy, float | None] = {"positive": 1.0, "half": 0.5, "negative": 0.0, "mask": None}


@dataclass(frozen=True, slots=True)
class Reading:
    """What the functions of one `read_steps` call share."""

    neutral: NeutralPolicy
    counts: Counter[str]
    """Rows read and records left out, by reason; the format functions add to it."""
    seen: set[str] = field(default_factory=set)
    """Ids met so far, for the formats whose files repeat rows."""


class Format(NamedTuple):
    """One layout of step-labelled rows and its reader."""

    fields: tuple[str, ...]
    """Fields every row needs, "a.b" being b inside a; they also tell the format."""
    read: Callable[[Row, Reading], Iterable[StepSolution]]
    meaning: str
    """One line for people: what a label says and how its source counts steps."""


def row_place(row: Row) -> str:
    """Return a row's place without folders: an id that does not change with the machine."""
    return row.where.replace("\\", "/").rpartition("/")[2]


def step_index(row: Row, name: str, value: object, num_steps: int, base: Literal[0, 1]) -> int:
    """Return the 0-based index of a step that the source counts from `base`; digits in a string count too.

    Raises UserError when the value names no step of the solution.
    """
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number - base < num_steps:
        raise UserError(
            f"{row.where}: field '{name}' must name one of the {num_steps} steps, "
            f"counted from {base} ({base} to {num_steps - 1 + base}), got {show(value)}"
        )
    return number - base


def labels_up_to(first_error: int, num_steps: int) -> tuple[float | None, ...]:
    """Return 1 before the first error, 0 at it and None behind it, where nobody judged; all 1 for -1."""
    if first_error < 0:
        return (1.0,) * num_steps
    return (*(1.0,) * first_error, 0.0, *(None,) * (num_steps - first_error - 1))


def first_below_half(labels: Iterable[float | None]) -> int | None:
    """Return the index of the first label below 0.5, -1 without one, None when a missing label hides it."""
    for index, label in enumerate(labels):
        if label is None:
            return None
        if label < 0.5:
            return index
    return -1
