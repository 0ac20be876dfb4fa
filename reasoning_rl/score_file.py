"""Files of scores that grow a chunk at a time and are continued where a stopped run left them.

Every row begins with what was scored, then come its scores, then `scored_by`. What stands in the file is
compared with both before it is kept.

    rows = read_finished(path, beginnings, by, field="step_scores", option="--output")
    for fresh in append_chunks(path, make_rows, done=len(rows), total=len(beginnings)):
        rows += fresh
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from prm.formats import FORMATS, PRMFormat

CHUNK = 256
"""Solutions scored between two writes: enough that those of like length find each other."""


def read_finished(
    path: Path, beginnings: Sequence[Mapping[str, Any]], by: Mapping[str, Any], *, field: str, option: str
) -> list[dict[str, Any]]:
    """Return the rows of whole chunks that an earlier run left; what stands behind them is cut off.

    beginnings: what each row begins with, in order. field: the name of its scores. option: what
    names the place on the command line. Raises UserError, and
    leaves the file as it is, when its rows are not the first of these, were scored otherwise, or when it ends
    in something that no stopped run wrote.
    """
    if not path.exists():
        return []
    *whole, torn = path.read_bytes().split(b"\n")
    remedy = f"give another {option}, or remove the file"
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(whole, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: is no file of scores ({error}); {remedy}") from error
        if not isinstance(row, dict) or field not in row or not isinstance(row.get("scored_by", {}), dict):
            raise UserError(f"{path}:{number}: is no file of scores; {remedy}")
        if number > len(beginnings) or not beginnings[number - 1].items() <= row.items():
            raise UserError(f"{path}:{number}: holds another solution than the input at that place; {remedy}")
        if (stored := row.get("scored_by", {})) != by:
            other = [name for name, value in by.items() if stored.get(name) != value]
            raise UserError(f"{path}:{number}: was scored with another {', '.join(other)}; {remedy}")
        rows.append(row)
    if torn and not (len(rows) < len(beginnings) and _may_begin(torn, beginnings[len(rows)])):
        raise UserError(f"{path}:{len(whole) + 1}: is no file of scores (last line); {remedy}")
    # A part of a chunk is scored again: with other neighbours its last digits would be others.
    kept = rows if len(rows) == len(beginnings) else rows[: len(rows) // CHUNK * CHUNK]
    os.truncate(path, sum(len(line) + 1 for line in whole[: len(kept)]))
    return kept


def append_chunks(
    path: Path, make_rows: Callable[[slice], list[dict[str, Any]]], *, done: int, total: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows from `done` on, a chunk at a time, each when it is written.

    Raises UserError when the file cannot be written; what was written before is kept.
    """
    for start in range(done, total, CHUNK):
        rows = make_rows(slice(start, start + CHUNK))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(_line(row) + "\n" for row in rows)
        except OSError as error:
            raise UserError(
                f"{path}: cannot write ({error.strerror}); free space or give another place, and run again: "
                "what is recorded is kept"
            ) from error
        yield rows


def name_format(spec: PRMFormat) -> dict[str, str | None]:
    """Return the part of `scored_by` that says by which format the steps' scores were read.

    format_digest: of a format that is not the registered one of its name, a short hash; None otherwise.
    """
    own = {"threshold", "threshold_mode", "softmin_temperature", "aggregation"}
    known = FORMATS.get(spec.name)
    digest = None
    if known is None or known.model_dump(exclude=own) != spec.model_dump(exclude=own):
        digest = hashlib.sha256(spec.model_dump_json(exclude=own).encode()).hexdigest()[:12]
    return {"format": spec.name, "format_digest": digest}


def name_weights(prm: str) -> dict[str, str | None]:
    """Return the part of `scored_by` that tells a folder's weights from those of a later training there.

    A short hash over names, sizes and the first and last megabyte of the weight files; None for a hub id.
    """
    files = sorted(p for p in Path(prm).glob("*") if p.suffix in (".safetensors", ".bin"))
    if not files:
        return {"weights": None}
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as weights:
            digest.update(weights.read(1 << 20))
            weights.seek(max(0, size - (1 << 20)))
            digest.update(weights.read())
    return {"weights": digest.hexdigest()[:12]}


def _may_begin(torn: bytes, beginning: Mapping[str, Any]) -> bool:
    """Whether a line that was torn off is of the row with this beginning."""
    expected = _line(beginning).removesuffix("}").encode()
    return torn.startswith(expected) or expected.startswith(torn)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)
