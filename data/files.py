"""Reading rows with their place in the file, and writing files that are whole or absent."""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.errors import UserError


def read_jsonl(path: str | Path, *, any_text: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a .jsonl or .jsonl.gz file; blank lines are passed over.

    Raises UserError for a missing or unreadable file and, with its line, for broken JSON, a row that is no
    object, a text that is no Unicode. any_text: take such texts too, as a model may have written them.
    """
    path = Path(path)
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as lines
        ):
            for number, line in enumerate(lines, 1):  # noqa: B007 - the number is reported below
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
                if not any_text and ("\\ud" in line or "\\uD" in line):
                    check_unicode(row, f"{path}:{number}")
                yield number, row
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path (working folder: {Path.cwd()})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number}: broken JSON ({error.msg} at column {error.colno})") from error
    except (EOFError, zlib.error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: unreadable after line {number} ({error})") from error


def check_unicode(value: Any, where: str) -> None:
    """Raise UserError when a text in `value` holds half of a surrogate pair, as JSON can write it.

    No tokenizer takes one, and no file can be written with it.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise UserError(
            f"{where}: holds \\u{half:04x}, half of a surrogate pair and no character; "
            "write the whole pair, or take it out"
        ) from error


def write_atomically(path: str | Path, text: str) -> None:
    """Write text to path through a temporary file, fsync and rename: readers see old or new, whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, UnicodeEncodeError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot write ({reason}); the old file is kept") from error


def append_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a file and wait until they are on the disk; a crash can tear the last line only.

    Raises UserError where the disk takes no more; what stood in the file before is kept.
    """
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{path}: cannot write ({error.strerror}); free space and run again: what is recorded is kept"
        ) from error


def cut_torn_line(path: str | Path) -> None:
    """Cut off what a crash in `append_jsonl` may have left behind the last whole line."""
    content = Path(path).read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
