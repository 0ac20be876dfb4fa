"""What a scored solution looks like: each step with its score, what supervision says of it, and its text.

Colour is never the only carrier: the number and a mark stand beside every step.

    for solution in read_scored("scored.jsonl"):
        console.print(terminal_map(solution))
"""

from dataclasses import dataclass
from math import tanh
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from data.errors import UserError
from data.files import read_jsonl
from data.settings import Settings

RIGHT, WRONG, UNKNOWN = "✓", "✗", "?"
_LOW, _MIDDLE, _HIGH = (214, 96, 20), (232, 232, 232), (33, 113, 181)
"""Orange, grey, blue: told apart by every kind of colour vision."""


class ShowConfig(Settings):
    """Settings of `stepwell show`."""

    html: str | None = None
    """Write a self-contained page here instead of showing the map in the terminal."""
    limit: int | None = Field(default=None, gt=0)
    """Show only the first solutions; none: 10 in the terminal, all on the page."""
    id: str | None = None
    """Show only the solution of this id."""
    threshold: float | None = None
    """A step whose score is below is marked wrong; none: the one stored with the scores."""


@dataclass(frozen=True)
class ScoredSolution:
    """One row of a scored file."""

    problem: str
    steps: list[str]
    scores: list[float | None]
    score: float | None
    """Of the whole solution."""
    labels: list[float | None]
    """What supervision says of each step, in [0, 1]; None where it says nothing."""
    first_error: int | None
    answer_correct: bool | None
    id: str
    by: dict[str, Any]
    """How it was scored: prm, format, aggregation, threshold ..."""

    @property
    def verdicts(self) -> list[bool | None]:
        """Whether each step's score reaches the threshold."""
        from prm.formats.spec import are_right  # its package loads transformers

        return are_right(self.scores, self.by["threshold"], self.by["threshold_mode"])

    @property
    def shades(self) -> list[float | None]:
        """Each score in [0, 1] for colouring: probabilities as they are, raw scores about the threshold."""
        if self.by["is_probability"]:
            return self.scores
        threshold = self.by["threshold"]
        widest = max((abs(s - threshold) for s in self.scores if s is not None), default=0.0) or 1.0
        return [None if s is None else 0.5 + 0.5 * tanh(2 * (s - threshold) / widest) for s in self.scores]


Number = Annotated[float, Field(allow_inf_nan=False)]


class _ScoredBy(Settings):
    """What a row says of how it was scored, as far as the map needs it."""

    model_config = ConfigDict(extra="allow", strict=True)

    aggregation: str = ""
    threshold: Number = 0.5
    threshold_mode: Literal["absolute", "difference"] = "absolute"
    is_probability: bool = True


class _Row(Settings):
    """The types of a scored row's fields."""

    model_config = ConfigDict(extra="ignore", strict=True)

    problem: str = ""
    steps: list[str]
    step_scores: list[Number | None]
    score: Number | None = None
    labels: list[Number | None] | None = None
    first_error: int | None = None
    answer_correct: bool | None = None
    id: str | int | None = None
    scored_by: _ScoredBy | None = None


def read_scored(path: str | Path, *, threshold: float | None = None) -> list[ScoredSolution]:
    """Return the rows of a file that `stepwell score` wrote.

    Raises UserError for a row that is none of these, with its line and field, and for a file without rows.
    """
    out = []
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        steps, scores = row.get("steps"), row.get("step_scores")
        if not isinstance(steps, list) or not isinstance(scores, list) or len(steps) != len(scores):
            raise UserError(
                f"{where}: needs 'steps' and as many 'step_scores'; give a file that `stepwell score` wrote"
            )
        checked = _Row.from_dict(row, where)
        labels = checked.labels or [None] * len(steps)
        if len(labels) != len(steps):
            raise UserError(f"{where}: {len(labels)} labels for {len(steps)} steps")
        by = (checked.scored_by or _ScoredBy()).model_dump()
        out.append(
            ScoredSolution(
                problem=checked.problem,
                steps=checked.steps,
                scores=checked.step_scores,
                score=checked.score,
                labels=labels,
                first_error=checked.first_error,
                answer_correct=checked.answer_correct,
                id=f"line {number}" if checked.id in (None, "") else str(checked.id),
                by=by if threshold is None else by | {"threshold": threshold},
            )
        )
    if not out:
        raise UserError(f"{path}: holds no scored solutions; give a file that `stepwell score` wrote")
    return out


def choose(solutions: list[ScoredSolution], *, name: str | None, limit: int | None) -> list[ScoredSolution]:
    """Return those of an id, or the first `limit`. Raises UserError when there is none of that id."""
    if name is not None:
        solutions = [solution for solution in solutions if solution.id == name]
        if not solutions:
            raise UserError(f"no solution has the id '{name}'; see the first ones without --id")
    return solutions[:limit]


def terminal_map(solution: ScoredSolution) -> Group:
    """Return a renderable of the solution, as wide as the terminal."""
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=True, header_style="dim", expand=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    if any(label is not None for label in label_texts(solution)):
        table.add_column("label", no_wrap=True)
    table.add_column("", ratio=1, overflow="fold")
    labels = label_texts(solution)
    for k, (step, score, shade, verdict) in enumerate(
        zip(solution.steps, solution.scores, solution.shades, solution.verdicts, strict=True)
    ):
        cells = [
            Text(str(k + 1), style="dim"),
            Text(f" {number(score)} ", style=style(shade)),
            Text(mark(verdict)),
        ]
        if len(table.columns) == 5:
            cells.append(Text(labels[k] or ""))
        table.add_row(*cells, Text(step))
    problem = Padding(Text(solution.problem, style="italic"), (0, 0, 0, 2))
    return Group(Text(headline(solution), style="bold"), problem, table, Text())


def headline(solution: ScoredSolution) -> str:
    """Return one line about the whole: id, score and how it was made, answer, first error of each side."""
    how = f" ({solution.by['aggregation']})" if solution.by["aggregation"] else ""
    parts = [solution.id, f"score {number(solution.score)}{how}"]
    wrong = [k + 1 for k, verdict in enumerate(solution.verdicts) if verdict is False]
    parts.append(f"first below {solution.by['threshold']:g}: " + (f"step {wrong[0]}" if wrong else "none"))
    if solution.first_error is not None:
        said = "none" if solution.first_error < 0 else f"step {solution.first_error + 1}"
        parts.append(f"labelled first error: {said}")
    if solution.answer_correct is not None:
        parts.append("answer correct" if solution.answer_correct else "answer wrong")
    return " · ".join(parts)


def label_texts(solution: ScoredSolution) -> list[str | None]:
    """Return what supervision says of each step in a word; where only the first error is known, that one."""
    texts: list[str | None] = []
    for k, label in enumerate(solution.labels):
        if label is not None:
            texts.append("right" if label == 1 else "wrong" if label == 0 else f"{label:.2f}")
        elif k == solution.first_error:
            texts.append("wrong")
        else:
            texts.append(None)
    return texts


def number(score: float | None) -> str:
    """Return a score as it is shown; "none" where a step has no score."""
    return "none" if score is None else f"{score:.3f}"


def mark(verdict: bool | None) -> str:
    """Return the sign for reaching the threshold or not."""
    return UNKNOWN if verdict is None else RIGHT if verdict else WRONG


def style(shade: float | None) -> str:
    """Return rich's style for a shade: dark text on light colours and light on dark."""
    if shade is None:
        return "dim"
    red, green, blue = colour(shade)
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    return f"{'black' if bright > 110 else 'white'} on rgb({red},{green},{blue})"


def colour(shade: float) -> tuple[int, int, int]:
    """Return (red, green, blue), 0-255, of a shade in [0, 1]: orange over grey to blue."""
    low, high, part = (_LOW, _MIDDLE, 2 * shade) if shade < 0.5 else (_MIDDLE, _HIGH, 2 * shade - 1)
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue
