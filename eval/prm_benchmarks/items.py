"""Benchmark solutions with their scores: reading both, and matching them.

A score file has one JSON object a line: `scores`, one entry a step, and, where the lines do not stand in the
benchmark's order, the solution's `id`. An entry is a number (P(step right), or a margin where 0 divides), a
triple [P(wrong), P(neutral), P(useful)] as ReasonEval writes, or null for a step that was not scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import read_jsonl
from data.schema import StepSolution
from data.sources import SUFFIXES, read_rows, show
from data.step_readers import detect_format, read_steps

CONTROL = "correct"
"""Subset of PRMBench's controls: untouched solutions, in no score of their own."""
Scores = tuple[float | None, ...]
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled solution of a benchmark, and what a model said of its steps."""

    subset: str
    """What the benchmark reports apart: a file of ProcessBench, a class of PRMBench, a task."""
    solution: StepSolution
    scores: Scores = ()
    """One entry a step: the higher, the surer that it is right; None where there is none."""
    neutral: Scores | None = None
    """P(neutral) of each step where the model has three classes."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One line of a score file."""

    where: str
    id: str | None
    entries: tuple[float | Triple | None, ...]


def load_items(
    name: str, formats: Sequence[str], source: str | Path, *, limit: int | None = None
) -> list[Item]:
    """Return the items of benchmark `name` from a file or a folder, in order, neutral ratings as 0.5.

    Each file is told by its own fields; those in other formats than `formats` are passed over in a folder
    and refused as a file. At most `limit` solutions of each file are kept, evenly spread: the files stand in
    order of their labels. A control (PRMBench) is kept while a row it belongs to is. Raises UserError when
    nothing is left, or an id is there twice.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES))
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f"{path}: no such file or folder; give the benchmark's with --data")
    items: list[Item] = []
    controls: list[Item] = []
    for file in files:
        row = next(iter(read_rows(file)), None)
        found = None if row is None else _format_or_none(row)
        if found is not None and found in formats:
            every = [Item(_subset(one, file), one) for one in read_steps(file, found, neutral="half")]
            controls += [item for item in every if item.subset == CONTROL]
            rows = [item for item in every if item.subset != CONTROL]
            kept = min(limit or len(rows), len(rows))
            items += [rows[k * len(rows) // kept] for k in range(kept)]
        elif not path.is_dir():
            raise UserError(f"{file}: not a file of {name}; its rows must be {' or '.join(formats)}")
    if not items:
        raise UserError(f"{path}: holds no file of {name}; its rows must be {' or '.join(formats)}")
    wanted = {item.solution.meta.get("idx") for item in items}
    items += [item for item in controls if item.solution.meta["idx"] in wanted]
    seen: set[str] = set()
    for item in items:
        if item.solution.id in seen:
            raise UserError(f"{path}: id '{item.solution.id}' is there twice; name one copy with --data")
        seen.add(item.solution.id)
    return items


def read_scores(path: str | Path) -> list[ScoreRow]:
    """Return the lines of a score file. Raises UserError with its line for one that is none."""
    rows = []
    for number, values in read_jsonl(path):
        where = f"{path}:{number}"
        entries = values.get("scores")
        if not isinstance(entries, list):
            raise UserError(f"{where}: field 'scores' must be a list, one entry a step, got {show(entries)}")
        key = next((values[name] for name in ("id", "idx", "uuid") if values.get(name) is not None), None)
        rows.append(
            ScoreRow(
                where,
                None if key is None else str(key),
                tuple(_entry(where, k, entry) for k, entry in enumerate(entries)),
            )
        )
    if not rows:
        raise UserError(f"{path}: holds no scores")
    return rows


def attach_scores(items: Sequence[Item], rows: Sequence[ScoreRow]) -> list[Item]:
    """Return the items with the scores of the rows: by id, or in order where rows have none or mere numbers.

    Scores of single lines are folded to steps by their minimum where the benchmark's steps are lists of lines
    (ReasonEval). Rows of other solutions are passed over; of rows with one id the first counts, as PRMBench's
    authors do. Raises UserError naming the first item without scores, or with another number of scores than
    steps.
    """
    by_id = {row.id: row for row in reversed(rows) if row.id is not None}
    if not any(item.solution.id in by_id for item in items):
        named = [row for row in rows if row.id is not None and not row.id.isdecimal()]
        if named:
            raise UserError(
                f"{named[0].where}: id '{named[0].id}' is none of the benchmark's, nor is any other; "
                f"expected ids such as '{items[0].solution.id}', or none and the order of the data"
            )
        if len(rows) != len(items):
            raise UserError(
                f"{rows[0].where}: {len(rows)} lines for {len(items)} solutions and no id that fits; "
                f"give each line the solution's id, such as '{items[0].solution.id}'"
            )
        return [_scored(item, row) for item, row in zip(items, rows, strict=True)]
    missing = [item.solution.id for item in items if item.solution.id not in by_id]
    if missing:
        raise UserError(
            f"{rows[0].where.rpartition(':')[0]}: no scores for {len(missing)} of {len(items)} solutions, "
            f"first '{missing[0]}'; score them all or name a smaller file with --data"
        )
    return [_scored(item, by_id[item.solution.id]) for item in items]


def with_scores(items: Sequence[Item], scores: Sequence[Sequence[float | None]]) -> list[Item]:
    """Return the items with what a StepScorer said, in the same order."""
    return [Item(item.subset, item.solution, tuple(row)) for item, row in zip(items, scores, strict=True)]


def _scored(item: Item, row: ScoreRow) -> Item:
    entries = row.entries
    num_steps = len(item.solution.steps)
    lines: Sequence[int] = item.solution.meta.get("lines_per_step", [1] * num_steps)
    neutral: list[float | None] | None = None
    values: list[float | None] = [sum(e[1:]) if isinstance(e, tuple) else e for e in entries]
    if any(isinstance(entry, tuple) for entry in entries):
        neutral = [entry[1] if isinstance(entry, tuple) else None for entry in entries]
    if len(entries) != num_steps and len(entries) == sum(lines):
        values = _fold(values, lines, min)
        neutral = neutral and _fold(neutral, lines, max)
    elif len(entries) != num_steps:
        raise UserError(
            f"{row.where}: {len(entries)} scores for the {num_steps} steps of '{item.solution.id}'; "
            f"give one score per step (null for an unscored one)"
        )
    return Item(item.subset, item.solution, tuple(values), None if neutral is None else tuple(neutral))


def _fold(values: Sequence[float | None], lines: Sequence[int], best: Any) -> list[float | None]:
    folded, at = [], 0
    for count in lines:
        part = values[at : at + count]
        folded.append(None if None in part else best(part))
        at += count
    return folded


def _entry(where: str, index: int, entry: Any) -> float | Triple | None:
    if entry is None:
        return None
    if isinstance(entry, list) and len(entry) == 3 and all(map(_is_finite, entry)):
        return float(entry[0]), float(entry[1]), float(entry[2])
    if _is_finite(entry):
        return float(entry)
    raise UserError(
        f"{where}: field 'scores[{index}]' must be a number, null or three class probabilities, "
        f"got {show(entry)}"
    )


def _is_finite(value: Any) -> bool:
    # abs(nan) < inf is false as well.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _format_or_none(row: Any) -> str | None:
    try:
        return detect_format(row)
    except UserError:
        return None


def _subset(solution: StepSolution, file: Path) -> str:
    meta: Mapping[str, Any] = solution.meta
    if solution.source == "processbench":
        return solution.id.rpartition("-")[0] or file.name.split(".")[0]
    if solution.source == "prmbench":
        return meta["classification"]
    return solution.source if solution.source.startswith("reasoneval") else file.name.split(".")[0]
