"""Samples made elsewhere: the forms of their files as responses, and scores, by problem.

    samples = read_samples("samples.jsonl", problems)            # problem id -> responses
    scores = read_sample_scores("samples.jsonl", problems)       # problem id -> a score a sample, or None

Forms of a row: {id or problem (its text), response} with an optional 0-based index `sample`; human-eval's
{task_id, completion} and EvalPlus' {task_id, solution}, where a number stands for the problem whose id ends
in it; and all samples of a problem at once, {id, task_id, problem or question; responses or code (a list)},
as Qwen2.5-Math's {question, code, pred_score}. `score` (`scores`, `pred_score`) is what a reward model says.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import UserError
from data.files import read_jsonl
from data.schema import Problem

Row = dict[str, Any]
_NAMES = ("id", "task_id", "question", "problem")
_LARGEST = sys.float_info.max


class _Sample(NamedTuple):
    line: int
    name: str
    """Id of its problem."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    response: str
    row: Row


def read_samples(path: str | Path, problems: Sequence[Problem]) -> dict[str, list[str]]:
    """Return problem id -> responses, in the order of `sample`, else in that of the file.

    A problem without rows is absent: `evaluate` reports how many are. Raises UserError with file and line for
    broken JSON, a missing or mistyped field, an unknown id, a sample given twice or left out, rows with and
    without index.
    """
    found: dict[str, dict[int, str]] = {}
    for sample in _read(path, problems):
        found.setdefault(sample.name, {})[sample.index] = sample.response
    if not found:
        raise UserError(f"{path}: no samples; expected one JSON object {{id, response}} a line")
    return {name: [group[k] for k in sorted(group)] for name, group in found.items()}


def read_sample_scores(path: str | Path, problems: Sequence[Problem]) -> dict[str, list[float | None]] | None:
    """Return problem id -> score of each sample, in read_samples' order; None if no row has one.

    `score` is a number, or a list of one a step, of which the last counts. Raises UserError as read_samples
    does, for another kind of score, and for files in which only some rows have one.
    """
    found: dict[str, dict[int, float | None]] = {}
    with_score = 0
    for count, sample in enumerate(_read(path, problems), 1):
        where = f"{path}:{sample.line}"
        found.setdefault(sample.name, {})[sample.index] = _score(sample.row.get("score"), where)
        with_score += "score" in sample.row
        if with_score not in (0, count):
            raise UserError(f"{where}: some rows have 'score' and some have not; give all or none")
    if not with_score:
        return None
    return {name: [group[k] for k in sorted(group)] for name, group in found.items()}


def _read(path: str | Path, problems: Sequence[Problem]) -> list[_Sample]:
    """The samples in the order of the file, each with the id of a problem and an index of its own."""
    assert problems, "no problems to read samples for"
    known = {p.id for p in problems}
    numbers = {p.id.rpartition("/")[2]: p.id for p in problems}
    by_text = {" ".join(p.text.split()): p.id for p in problems}
    lines: dict[str, dict[int, int]] = {}
    indexed: dict[str, bool] = {}
    samples = []
    for line, row in _rows(path):
        where = f"{path}:{line}"
        if "problem" in row and "id" not in row and "task_id" not in row:
            name, response = _by_text(row, by_text, where), _text_field(row, "response", where)
        else:
            name, response = _named(row, where)
        if name not in known and name.isdigit():
            name = numbers.get(name, name)
        if name not in known:
            raise UserError(
                f"{where}: id '{name}' is none of the {len(known)} problems "
                f"(such as '{problems[0].id}'); check the benchmark, split and limit"
            )
        group = lines.setdefault(name, {})
        index = row.get("sample", len(group))
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise UserError(
                f"{where}: field 'sample' must be an index from 0, got {_shown(index)}; number the samples "
                "of each problem, or leave 'sample' out"
            )
        if indexed.setdefault(name, "sample" in row) != ("sample" in row):
            raise UserError(f"{where}: id '{name}' has rows with and without 'sample'; give all or none")
        if index in group:
            raise UserError(
                f"{where}: sample {index} of id '{name}' stands in line {group[index]} already; "
                "remove one of them"
            )
        group[index] = line
        samples.append(_Sample(line, name, index, response, row))
    for name, group in lines.items():
        if max(group) >= len(group):
            absent = next(k for k in range(len(group)) if k not in group)
            raise UserError(
                f"{path}:{group[max(group)]}: sample {max(group)} of id '{name}' without sample {absent}; "
                "number the samples of each problem from 0 without gaps, or leave 'sample' out"
            )
    return samples


def _rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    """(line, row), one row a sample: a row with a list of responses is taken apart."""
    for line, row in read_jsonl(path):
        responses = row.get("code", row.get("responses"))
        if not isinstance(responses, list) or "response" in row and not isinstance(row["response"], list):
            yield line, row
            continue
        name = next((key for key in _NAMES if key in row), None)
        if name is None:
            raise UserError(
                f"{path}:{line}: no field 'id' (has: {', '.join(row)}); expected {' or '.join(_NAMES)} "
                "beside the responses"
            )
        scores = row.get("pred_score", row.get("scores"))
        if scores is not None and (not isinstance(scores, list) or len(scores) != len(responses)):
            raise UserError(
                f"{path}:{line}: one score a response is needed, got {_shown(scores)} for {len(responses)}; "
                "give a list of as many, or leave the scores out"
            )
        named = {"problem" if name == "question" else name: row[name]}
        field = "completion" if name == "task_id" else "response"
        for k, response in enumerate(responses):
            scored = {} if scores is None else {"score": scores[k]}
            yield line, {**named, "sample": k, field: response, **scored}


def _named(row: Row, where: str) -> tuple[str, str]:
    """Problem id and response of a row with an id."""
    if "task_id" not in row:
        return _text_field(row, "id", where), _text_field(row, "response", where)
    if isinstance(row["task_id"], int) and not isinstance(row["task_id"], bool):
        row = row | {"task_id": str(row["task_id"])}
    field = next((key for key in ("completion", "solution") if key in row), "completion")
    return _text_field(row, "task_id", where), _text_field(row, field, where, "task_id, completion")


def _by_text(row: Row, ids: dict[str, str], where: str) -> str:
    """Problem id of a row that gives the problem's text."""
    text = " ".join(_text_field(row, "problem", where).split())
    if text not in ids:
        shown = text if len(text) <= 60 else text[:60] + "..."
        raise UserError(
            f"{where}: problem '{shown}' is none of the {len(ids)} problems; "
            "check the benchmark, split and limit"
        )
    return ids[text]


def _text_field(row: Row, field: str, where: str, expected: str = "id (or problem) and response") -> str:
    if field not in row:
        raise UserError(f"{where}: no field '{field}' (has: {', '.join(row) or 'none'}); expected {expected}")
    if not isinstance(row[field], str):
        plain = isinstance(row[field], int | float)
        remedy = "put it in quotes" if plain else "write the text in quotes, one row a sample"
        raise UserError(f"{where}: field '{field}' must be a string, got {_shown(row[field])}; {remedy}")
    return row[field]


def _score(value: Any, where: str) -> float | None:
    if isinstance(value, list) and value:
        value = value[-1]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise UserError(
            f"{where}: field 'score' must be a number, a list of numbers or null, got {_shown(value)}"
        )
    return float(value)


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]
