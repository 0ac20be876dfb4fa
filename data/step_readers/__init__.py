"""Step-labelled solutions in published formats -> StepSolution records, and back to our own JSON lines.

    solutions = read_steps("prm800k_phase1_train.jsonl.gz")          # the format is told from the first row
    write_steps("train.jsonl", solutions)

docs/step_data.md says what the labels of each format mean and where its traps are.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data.errors import UserError, did_you_mean
from data.files import write_atomically
from data.own import listed
from data.plugins import Call, installed, is_plugin, load_plugin
from data.schema import StepSolution
from data.sources import Row, Source, field, read_rows, shown
from data.step_readers.formats import FORMATS, detect_format
from data.step_readers.own import read_stepwell, stepwell_row
from data.step_readers.reading import NEUTRAL, Format, NeutralPolicy, Reading

__all__ = ["FORMATS", "Format", "NeutralPolicy", "Reading", "detect_format", "read_steps", "write_steps"]

log = logging.getLogger(__name__)


def read_steps(
    source: Source,
    format: str = "auto",  # noqa: A002 - the word users know
    *,
    neutral: NeutralPolicy = "positive",
    split: str = "train",
    name: str | None = None,
    counts: Counter[str] | None = None,
) -> list[StepSolution]:
    """Return the labelled solutions of a file, folder or hub dataset, in its order.

    `format` is a name of FORMATS, "auto": told from the fields of each file's first row, or "module:function"
    of the user's own: a row's mapping in; a StepSolution, such a row as our own files have, or a list of
    either out. `split` and
    `name` are those of `read_rows`. `counts`, if given, receives what was read and what was left out, by
    reason.

    Raises UserError for an unknown format and, with file and line, for rows that break theirs.
    """
    if neutral not in NEUTRAL:
        raise UserError(f"neutral '{neutral}' is unknown{did_you_mean(neutral, NEUTRAL)}")
    is_own = is_plugin(format) or format in installed("reader")
    if not is_own and format != "auto" and format not in FORMATS:
        raise UserError(f"step format '{format}' is unknown{did_you_mean(format, ['auto', *FORMATS])}")
    reading = Reading(neutral, Counter() if counts is None else counts)
    chosen, file = _own_format(format) if is_own else FORMATS.get(format), None
    solutions: list[StepSolution] = []
    for row in read_rows(source, split=split, name=name):
        # A folder may hold several formats (ReasonEval's does), a file only one.
        if format == "auto" and file != (file := row.where.rpartition(":")[0]):
            chosen = FORMATS[detect_format(row)]
        assert chosen is not None
        for needed in chosen.fields:
            field(row, needed, expected=", ".join(chosen.fields))
        reading.counts["rows"] += 1
        solutions += chosen.read(row, reading)
    left_out = {why: count for why, count in sorted(reading.counts.items()) if why != "rows"}
    if not solutions:
        raise UserError(
            f"{shown(source)}: no labelled solution in {reading.counts['rows']} rows, left out: {left_out}"
        )
    if left_out:
        log.info(
            "%s: %d records from %d rows, left out: %s",
            shown(source),
            len(solutions),
            reading.counts["rows"],
            left_out,
        )
    return solutions


def _own_format(name: str) -> Format:
    call = Call(name, "reader", load_plugin(name, "reader"), ("row",), needs=("row",))

    def read(row: Row, reading: Reading) -> Iterator[StepSolution]:
        found = call({"row": row.values}, row.where)
        for one in (
            [found] if isinstance(found, StepSolution | Mapping) else listed(found, None, call, row.where)
        ):
            if isinstance(one, StepSolution):
                yield one
            else:
                yield from read_stepwell(Row(f"{row.where} by {name}", dict(one)), reading)

    return Format((), read, "of a plug-in")


def write_steps(path: str | Path, solutions: Iterable[StepSolution]) -> None:
    """Write solutions as "stepwell" JSON lines, whole or not at all; `read_steps` gives equal records back.

    Raises UserError when the name does not end in .jsonl or the file cannot be written.
    """
    if Path(path).suffix != ".jsonl":
        raise UserError(
            f"{path}: step labels are written as JSON lines; give the file a name ending in .jsonl"
        )
    lines = [
        json.dumps(stepwell_row(solution), default=dict, allow_nan=False) + "\n" for solution in solutions
    ]
    write_atomically(path, "".join(lines))
