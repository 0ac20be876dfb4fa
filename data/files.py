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
                row = parse_json(line.rstrip(), f"{path}:{number}")
                if not isinstance(row, dict):
                    raise UserError(
                        f"{path}:{number}: expected a JSON object, got {type(row).__name__}; "
                        'write {"field": value, ...}, one a line, or remove the line'
                    )
                if not any_text and ("\\ud" in line or "\\uD" in line):
                    check_unicode(row, f"{path}:{number}")
                yield number, row
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path (working folder: {Path.cwd()})") from error
    except (EOFError, zlib.error, UnicodeDecodeError, OSError) as error:
        place = f" after line {number}" if number else ""
        remedy = (
            "save it as UTF-8" if isinstance(error, UnicodeDecodeError) else "give a whole, readable file"
        )
        raise UserError(f"{path}: unreadable{place} ({error}); {remedy}") from error


def parse_json(text: str, where: str) -> Any:
    """Return the value of a JSON text. Raises UserError, which begins with `where`, and of several lines says
    which it is, for any other text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fault = f"{error.msg} at column {error.colno}"
        where = f"{where}:{error.lineno}" if "\n" in text else where
    except RecursionError:
        fault = "brackets nested too deep"
    except ValueError:  # int() refuses thousands of digits
        fault = "a number of thousands of digits"
    raise UserError(f"{where}: broken JSON ({fault}); mend it or remove it")


def read_settings(path: str | Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object that a file holds. Raises UserError, which ends with `remedy`."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: unreadable ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(found).__name__}; {remedy}")
    return found


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


def check_folder(path: str | Path) -> None:
    """Make a folder where there is none. Raises UserError where that cannot be done."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: is no folder to write to ({error.strerror}); give another one") from error


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
