"""Rows of any source - file, folder, saved dataset or hub id - each with the place it came from.

Not a parser of meaning: what the fields say is the business of `step_readers` and `task_readers`.

    for row in read_rows("rows.jsonl"):
        text = field(row, "problem", str)
"""

import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from data.errors import UserError
from data.files import check_unicode, parse_json, read_jsonl
from data.own import listed
from data.plugins import Call, is_plugin, load_plugin

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SPLIT_FILE = re.compile(r"(train|test|validation|valid|val|dev)(?=[-_.])")


Source = str | Path | Iterable[Mapping[str, Any]]
"""A file, folder or hub id, "module:function" that returns rows, or rows in memory: a list of mappings, or a
`datasets.Dataset` (of a DatasetDict `split` is taken)."""


class HubError(UserError):
    """A dataset of the hub could not be had."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(
            f"{place}: no such local file, and not loadable from the hub ({reason})\n"
            "check id and split, go online once to fill the cache, or give a local file or folder instead"
        )
        self.place = place
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Row:
    """One record as the source has it."""

    where: str
    """Its place: "path:line", "path:row N" or "hub id[split]:row N"."""
    values: dict[str, Any]


def read_rows(source: Source, *, split: str = "train", name: str | None = None) -> Iterator[Row]:
    """Yield the rows of a local file, a folder or a hub dataset, in order; lines and rows count from 1.

    file    .jsonl, .jsonl.gz, .json (an array, or JSON lines so named), .parquet: `split` plays no part
    folder  written by datasets.save_to_disk: `split` of it; any other: all such files below it, sorted, but
            only those of `split` where files are named after splits (train.jsonl, test-00000.parquet);
            `name` picks a subfolder of that name
    hub     owner/name: `split` of configuration `name`, through the datasets library and its cache
    memory  a list of mappings, a datasets.Dataset, a DatasetDict (`split` of it)
    own     "module:function" of the user's, which takes `split` or nothing and returns rows

    Raises UserError, with the place, for whatever is missing, unreadable or no object.
    """
    if not isinstance(source, str | Path):
        yield from _numbered(shown(source), _in_memory(source, split))
        return
    path = Path(source)
    if isinstance(source, str) and is_plugin(source) and not path.exists():
        call = Call(source, "reader", load_plugin(source, "reader"), ("split",))
        yield from _numbered(source, listed(call({"split": split}, "its rows"), None, call, "its rows"))
    elif path.is_dir():
        yield from _folder_rows(path, split, name)
    elif path.is_file():
        yield from _file_rows(path)
    elif isinstance(source, str) and _HUB_ID.fullmatch(source) and not source.endswith(SUFFIXES):
        yield from _hub_rows(source, split, name)
    else:
        raise UserError(
            f"{source}: no such file or folder (working folder: {Path.cwd()}); "
            f"give a {', '.join(SUFFIXES)} file, a folder of them, or a hub id owner/name"
        )


def shown(source: Source) -> str:
    """Return what messages call a source."""
    return str(source) if isinstance(source, str | Path) else f"{type(source).__name__} in memory"


def _in_memory(source: Any, split: str) -> Iterable[Any]:
    if isinstance(source, Mapping):  # a DatasetDict, or another one of splits
        if split not in source:
            raise UserError(f"{shown(source)}: no split '{split}'; it has {', '.join(map(str, source))}")
        source = source[split]
    if not isinstance(source, Iterable):
        raise UserError(f"{shown(source)}: no rows; give a list of mappings or a datasets.Dataset")
    return (dict(row) if isinstance(row, Mapping) else row for row in source)


def field(row: Row, name: str, kind: type | tuple[type, ...] = object, *, expected: str = "") -> Any:
    """Return the field `name` of a row, "a.b" being field b of object a, checked to be of `kind`.

    Raises UserError when it is missing, naming the fields `expected` and those found, or of another type.
    """
    values: Any = row.values
    for depth, part in enumerate(name.split("."), 1):
        if not isinstance(values, dict) or part not in values:
            dotted = ".".join(name.split(".")[:depth])
            found = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
            wanted = f"expected {expected}; " if expected else ""
            raise UserError(f"{row.where}: no field '{dotted}'; {wanted}found {found or 'nothing'}")
        values = values[part]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # bool is an int to Python, but `true` where a number belongs is a mistake.
    if not isinstance(values, kinds) or (
        isinstance(values, bool) and bool not in kinds and object not in kinds
    ):
        names = " or ".join(_JSON_NAMES.get(k, k.__name__) for k in kinds)
        raise UserError(f"{row.where}: field '{name}' must be {names}, got {show(values)}")
    return values


def texts(row: Row, name: str) -> tuple[str, ...]:
    """Return the list of strings in a field. Raises UserError when it is none."""
    values = field(row, name, list)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(f"{row.where}: field '{name}[{index}]' must be a string, got {show(value)}")
    return tuple(values)


def unit_labels(row: Row, name: str, count: int) -> tuple[float | None, ...]:
    """Return `count` labels in [0, 1] or None from a list of numbers, true/false and null.

    Raises UserError when there are more or fewer, or one is something else.
    """
    labels = field(row, name, list)
    if len(labels) != count:
        raise UserError(
            f"{row.where}: field '{name}' has {len(labels)} labels for {count} steps; "
            f"give one label per step (null for an unrated one)"
        )
    for index, label in enumerate(labels):
        if label is not None and not (isinstance(label, int | float) and 0 <= label <= 1):
            raise UserError(
                f"{row.where}: field '{name}[{index}]' must be a number from 0 to 1, true, false or null, "
                f"got {show(label)}"
            )
    return tuple(None if label is None else float(label) for label in labels)


def show(value: Any) -> str:
    """Return a value as an error message names it: its JSON type and a short form."""
    if value is None:
        return "null"
    text = repr(value)
    short = text if len(text) <= 40 else text[:37] + "..."
    return f"{_JSON_NAMES.get(type(value), type(value).__name__)} {short}"


_JSON_NAMES: dict[type, str] = {
    str: "a string",
    list: "a list",
    dict: "an object",
    int: "an integer",
    float: "a number",
    bool: "true/false",
    type(None): "null",
}


def _file_rows(path: Path) -> Iterator[Row]:
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        for number, values in read_jsonl(path):
            yield Row(f"{path}:{number}", values)
    elif name.endswith(".json"):
        yield from _json_rows(path)
    elif name.endswith(".parquet"):
        yield from _parquet_rows(path)
    else:
        raise UserError(f"{path}: unknown file type; expected {', '.join(SUFFIXES)}")


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8")
        if not text.lstrip().startswith("["):
            # Many hub files named .json hold one object a line.
            for number, values in read_jsonl(path):
                yield Row(f"{path}:{number}", values)
            return
        rows = parse_json(text, str(path))
        if "\\ud" in text or "\\uD" in text:
            check_unicode(rows, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: unreadable ({error}); give a readable file in UTF-8") from error
    yield from _numbered(str(path), rows)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=1000) for row in batch.to_pylist())
            yield from _numbered(str(path), rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: unreadable as parquet ({_first_line(error)})") from error


def _folder_rows(path: Path, split: str, name: str | None) -> Iterator[Row]:
    if name and (path / name).is_dir():
        path = path / name
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        yield from _saved_rows(path, split)
        return
    files = sorted(
        file
        for file in path.rglob("*")
        if file.name.lower().endswith(SUFFIXES)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise UserError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
    named = {file: match[1] for file in files if (match := _SPLIT_FILE.match(file.name))}
    if named:
        same = {"validation", "valid", "val", "dev"}
        wanted = same if split in same else {split}
        chosen = [file for file in files if named.get(file) in wanted]
        if not chosen:
            has = ", ".join(sorted(set(named.values())))
            raise UserError(f"{path}: no file of split '{split}'; the folder has {has}")
        files = chosen
    for file in files:
        yield from _file_rows(file)


def _saved_rows(path: Path, split: str) -> Iterator[Row]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not readable as a saved dataset ({_first_line(error)})") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UserError(f"{path}: no split '{split}'; the saved dataset has {', '.join(saved)}")
        saved = saved[split]
    yield from _numbered(f"{path}[{split}]", saved)


def _hub_rows(hub_id: str, split: str, name: str | None) -> Iterator[Row]:
    import datasets

    try:
        with _cache_alone_if_unreachable():
            rows = datasets.load_dataset(hub_id, name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        config = f" (configuration {name})" if name else ""
        raise HubError(f"{hub_id}[{split}]{config}", _first_line(error)) from error
    yield from _numbered(f"{hub_id}[{split}]", rows)


@contextmanager
def _cache_alone_if_unreachable() -> Iterator[None]:
    """Without a network the libraries would ask the hub again and again for half a minute."""
    import datasets
    import huggingface_hub.constants as hub

    if getproxies() or _answers(hub.ENDPOINT):
        yield
        return
    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before


def _answers(endpoint: str) -> bool:
    """Does the host accept a connection within 3 seconds?"""
    parts = urlsplit(endpoint)
    try:
        with socket.create_connection((parts.hostname, parts.port or 443), timeout=3):
            return True
    except OSError:
        return False


def _numbered(place: str, rows: Iterable[Any]) -> Iterator[Row]:
    for number, values in enumerate(rows, 1):
        where = f"{place}:row {number}"
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected an object, got {show(values)}")
        yield Row(where, values)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
