"""Rows of samples files as one row a sample, with the scores that a reward model gave.

    for line, row in sample_rows("samples.jsonl"): ...        # {id or problem, response, sample?, score?}
    scores = read_sample_scores("samples.jsonl", problems)           # problem id -> a score a sample, or None

A row of Qwen2.5-Math's form, {question, code: [responses], pred_score: [[score], ...]}, holds all samples of
a problem; it is taken apart here.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import read_jsonl
from data.schema import Problem

Row = dict[str, Any]


def sample_rows(path: str | Path) -> Iterator[tuple[int, Row]]:
    """Yield (line, row), one row a sample. Raises UserError for lists of different lengths."""
    for line, row in read_jsonl(path):
        responses = row.get("code", row.get("responses"))
        if not isinstance(responses, list) or "response" in row and not isinstance(row["response"], list):
            yield line, row
            continue
        scores = row.get("pred_score", row.get("scores"))
        if scores is not None and (not isinstance(scores, list) or len(scores) != len(responses)):
            raise UserError(f"{path}:{line}: one score a response is needed, got {_shown(scores)}")
        named = {"id": row["id"]} if "id" in row else {"problem": row.get("question", row.get("problem"))}
        for k, response in enumerate(responses):
            scored = {} if scores is None else {"score": scores[k]}
            yield line, {**named, "sample": k, "response": response, **scored}


def read_sample_scores(path: str | Path, problems: Sequence[Problem]) -> dict[str, list[float | None]] | None:
    """Return problem id -> score of each sample, in eval.run.read_samples' order; None if no row has one.

    `score` is a number, or a list of one a step, of which the last counts. Raises UserError, with file and
    line, for another kind of score and for files in which only some rows have one.
    """
    by_text = {" ".join(p.text.split()): p.id for p in problems}
    found: dict[str, dict[int, float | None]] = {}
    with_score = 0
    for count, (line, row) in enumerate(sample_rows(path), 1):
        name = row.get("id", row.get("task_id"))
        if name is None:
            name = by_text.get(" ".join(str(row.get("problem")).split()))
        group = found.setdefault(str(name), {})
        group[row.get("sample", len(group))] = _score(row.get("score"), f"{path}:{line}")
        with_score += "score" in row
        if with_score not in (0, count):
            raise UserError(f"{path}:{line}: some rows have 'score' and some have not; give all or none")
    if not with_score:
        return None
    return {name: [group[k] for k in sorted(group)] for name, group in found.items()}


def _score(value: Any, where: str) -> float | None:
    if isinstance(value, list) and value:
        value = value[-1]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(
            f"{where}: field 'score' must be a number, a list of numbers or null, got {_shown(value)}"
        )
    return float(value)


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]
