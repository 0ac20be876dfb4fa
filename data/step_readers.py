"""Step-labelled solutions in published formats -> StepSolution records, and back to our own JSON lines.

    solutions = read_steps("prm800k_phase1_train.jsonl.gz")          # the format is told from the first row
    write_steps("train.jsonl", solutions)

A format is one function (row -> records) and one line of FORMATS.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from data.errors import UserError, did_you_mean
from data.files import write_atomically
from data.schema import StepSolution
from data.sources import Row, field, read_rows, show, texts, unit_labels

NeutralPolicy = Literal["positive", "half", "negative", "mask"]
"""What a three-way rating of 0 ("neither wrong nor a step forward") becomes: 1.0 (as PRM800K's authors score
it), 0.5 (a soft label), 0.0 (only useful steps are right) or None (unlabelled, no loss)."""

_NEUTRAL: dict[NeutralPolicy, float | None] = {"positive": 1.0, "half": 0.5, "negative": 0.0, "mask": None}
_ANSWER_HEADING = "# Answer"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the functions of one `read_steps` call share."""

    neutral: NeutralPolicy
    counts: Counter[str]
    """Rows read and records left out, by reason; the format functions add to it."""


def read_steps(
    source: str | Path,
    format: str = "auto",  # noqa: A002 - the word users know
    *,
    neutral: NeutralPolicy = "positive",
    split: str = "train",
    name: str | None = None,
    counts: Counter[str] | None = None,
) -> list[StepSolution]:
    """Return the labelled solutions of a file, folder or hub dataset, in its order.

    `format` is a name of FORMATS, or "auto": told from the fields of the first row. `split` and `name` are
    those of `read_rows`. `counts`, if given, receives what was read and what was left out, by reason.

    Raises UserError for an unknown format and, with file and line, for rows that break theirs.
    """
    if neutral not in _NEUTRAL:
        raise UserError(f"neutral '{neutral}' is unknown{did_you_mean(neutral, _NEUTRAL)}")
    if format != "auto" and format not in FORMATS:
        raise UserError(f"step format '{format}' is unknown{did_you_mean(format, ['auto', *FORMATS])}")
    reading = Reading(neutral, Counter() if counts is None else counts)
    chosen = FORMATS.get(format)
    solutions: list[StepSolution] = []
    for row in read_rows(source, split=split, name=name):
        chosen = chosen or FORMATS[detect_format(row)]
        for needed in chosen.fields:
            field(row, needed, expected=", ".join(chosen.fields))
        reading.counts["rows"] += 1
        solutions += chosen.read(row, reading)
    left_out = {why: count for why, count in sorted(reading.counts.items()) if why != "rows"}
    if not solutions:
        raise UserError(
            f"{source}: no labelled solution in {reading.counts['rows']} rows, left out: {left_out}"
        )
    if left_out:
        log.info(
            "%s: %d records from %d rows, left out: %s",
            source,
            len(solutions),
            reading.counts["rows"],
            left_out,
        )
    return solutions


def write_steps(path: str | Path, solutions: Iterable[StepSolution]) -> None:
    """Write solutions as "stepwell" JSON lines, whole or not at all; `read_steps` gives equal records back.

    Raises UserError when the name does not end in .jsonl or the file cannot be written.
    """
    if Path(path).suffix != ".jsonl":
        raise UserError(
            f"{path}: step labels are written as JSON lines; give the file a name ending in .jsonl"
        )
    lines = []
    for solution in solutions:
        row = {"problem": solution.problem, "steps": solution.steps, "labels": solution.labels}
        row |= {key: getattr(solution, key) for key in _OPTIONAL if getattr(solution, key) != _DEFAULTS[key]}
        lines.append(json.dumps(row, default=dict, allow_nan=False) + "\n")
    write_atomically(path, "".join(lines))


def detect_format(row: Row) -> str:
    """Return the name of the format whose needed fields a row has, the one with most where several fit.

    Raises UserError listing the known formats with their fields.
    """
    fitting = [
        name for name, known in FORMATS.items() if all(_has(row.values, part) for part in known.fields)
    ]
    if fitting:
        return max(fitting, key=lambda name: len(FORMATS[name].fields))
    known = "; ".join(f"{name}: {', '.join(known.fields)}" for name, known in FORMATS.items())
    raise UserError(
        f"{row.where}: the fields {', '.join(row.values) or '(none)'} fit no known step format\n"
        f"known: {known}"
    )


# --- formats ---------------------------------------------------------------------------------------------


def _read_stepwell(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """Our own rows: problem, steps, labels in [0, 1] or null, and any further field of StepSolution."""
    optional = {key: row.values[key] for key in _OPTIONAL if row.values.get(key) is not None}
    for key, value in optional.items():
        field(row, key, _OPTIONAL[key])
        if key == "label_kind" and value not in _LABEL_KINDS:
            raise UserError(
                f"{row.where}: label_kind '{value}' is unknown{did_you_mean(value, _LABEL_KINDS)}"
            )
    steps = texts(row, "steps")
    first_error = optional.get("first_error")
    if first_error is not None and not -1 <= first_error < len(steps):
        raise UserError(
            f"{row.where}: first_error {first_error} names no step; expected -1 to {len(steps) - 1}"
        )
    yield StepSolution(
        problem=field(row, "problem", str),
        steps=steps,
        labels=unit_labels(row, "labels", len(steps)),
        **optional,
    )


def _read_trl(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """TRL's stepwise supervision: prompt, completions, labels (true/false; numbers in [0, 1] will do too)."""
    steps = texts(row, "completions")
    yield StepSolution(
        problem=field(row, "prompt", str),
        steps=steps,
        labels=unit_labels(row, "labels", len(steps)),
        id=_place(row),
        source="trl",
    )


def _read_prm800k(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """PRM800K's tree: the path that was followed as one record with all its labels, then one record for each
    other rated candidate: the path before it with labels None, and its own label. No rating counts twice.

    Where nobody chose a candidate and nobody wrote one (phase 2 stops at the first error), the path ends with
    the candidate that stands in pre_generated_steps, if any. Human-written steps have no rating.
    """
    for flag, reason in _DROPPED_ROWS.items():
        if row.values.get(flag):
            reading.counts[reason] += 1
            return
    problem = field(row, "question.problem", str)
    pre_generated = row.values["question"].get("pre_generated_steps") or []
    path: list[_Candidate] = []
    others: list[list[_Candidate]] = []
    ended = False
    for number, step in enumerate(field(row, "label.steps", list)):
        candidates = _candidates(row, number, step)
        if ended:
            reading.counts["candidates after the path ended"] += len(candidates)
            continue
        followed, index = _followed_step(row, number, step, candidates, pre_generated)
        others += [[*path, other] for k, other in enumerate(candidates) if k != index]
        ended = followed is None
        if followed is not None:
            path.append(followed)
    shared = {"gold_answer": row.values["question"].get("ground_truth_answer")}
    shared |= {
        key: row.values.get(key, row.values["label"].get(key)) for key in ("generation", "finish_reason")
    }
    yield from _rated(row, reading, problem, path, len(path), _place(row), shared)
    for number, steps in enumerate(others):
        place = f"{_place(row)}/{len(steps) - 1}.{number}"
        yield from _rated(row, reading, problem, steps, 1, place, shared)


def _read_prm800k_flat(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """PRM800K flattened by others: one row per candidate, `responses` being the accepted steps before it.

    Each row is a record with a label on its last step only. `answer`, a column of its own there, goes back
    to the end of the candidate.
    """
    before = [_Candidate(text, None) for text in texts(row, "responses")]
    text = field(row, "next_response", str)
    answer = field(row, "answer", (str, type(None))) if "answer" in row.values else None
    if answer:
        text = f"{text}\n\n{_ANSWER_HEADING}\n\n{answer}"
    candidate = _Candidate(text, _checked_rating(row, "rating", row.values["rating"]))
    yield from _rated(row, reading, field(row, "instruction", str), [*before, candidate], 1, _place(row), {})


class Format(NamedTuple):
    fields: tuple[str, ...]
    """Fields every row needs, "a.b" being b inside a; they also tell the format."""
    read: Callable[[Row, Reading], Iterable[StepSolution]]


FORMATS: dict[str, Format] = {
    "stepwell": Format(("problem", "steps", "labels"), _read_stepwell),
    "trl": Format(("prompt", "completions", "labels"), _read_trl),
    "prm800k": Format(("question.problem", "label.steps"), _read_prm800k),
    "prm800k_flat": Format(("instruction", "responses", "next_response", "rating"), _read_prm800k_flat),
}


# --- PRM800K ---------------------------------------------------------------------------------------------


class _Candidate(NamedTuple):
    text: str
    rating: int | None


_DROPPED_ROWS = {
    "is_quality_control_question": "quality control rows",
    "is_initial_screening_question": "screening rows",
}


def _candidates(row: Row, number: int, step: Any) -> list[_Candidate]:
    """The candidates of one step; `completions` is null where a labeller gave up."""
    place = f"label.steps[{number}]"
    if not isinstance(step, dict):
        raise UserError(f"{row.where}: field '{place}' must be an object, got {show(step)}")
    completions = step.get("completions") or []
    if not isinstance(completions, list):
        raise UserError(f"{row.where}: field '{place}.completions' must be a list, got {show(completions)}")
    return [_candidate(row, f"{place}.completions[{k}]", item) for k, item in enumerate(completions)]


def _candidate(row: Row, place: str, item: Any) -> _Candidate:
    if not isinstance(item, dict) or not isinstance(item.get("text"), str):
        raise UserError(
            f"{row.where}: field '{place}' must be an object with a string 'text', got {show(item)}"
        )
    return _Candidate(item["text"], _checked_rating(row, f"{place}.rating", item.get("rating")))


def _checked_rating(row: Row, place: str, rating: Any) -> int | None:
    if rating is None or (rating in (-1, 0, 1) and not isinstance(rating, bool)):
        return rating if rating is None else int(rating)
    raise UserError(f"{row.where}: field '{place}' must be -1, 0, 1 or null, got {show(rating)}")


def _followed_step(
    row: Row,
    number: int,
    step: dict[str, Any],
    candidates: Sequence[_Candidate],
    pre_generated: Sequence[str],
) -> tuple[_Candidate | None, int | None]:
    """The step the path continued with, and its index among the candidates (None for a human's)."""
    chosen = step.get("chosen_completion")
    if chosen is not None:
        if not isinstance(chosen, int | float) or chosen not in range(len(candidates)):
            raise UserError(
                f"{row.where}: field 'label.steps[{number}].chosen_completion' must be null or 0 to "
                f"{len(candidates) - 1}, got {show(chosen)}"
            )
        return candidates[int(chosen)], int(chosen)
    if step.get("human_completion") is not None:
        return _candidate(row, f"label.steps[{number}].human_completion", step["human_completion"]), None
    if number < len(pre_generated):
        for index, candidate in enumerate(candidates):
            if candidate.text == pre_generated[number]:
                return candidate, index
    return None, None


def _rated(
    row: Row,
    reading: Reading,
    problem: str,
    steps: Sequence[_Candidate],
    last: int,
    place: str,
    meta: dict[str, Any],
) -> Iterator[StepSolution]:
    """One record labelled on its `last` steps; none, but counted, when no label is left."""
    labels = [None if s.rating is None else _rating_label(s.rating, reading.neutral) for s in steps]
    labels[: len(steps) - last] = [None] * (len(steps) - last)
    if all(label is None for label in labels):
        reading.counts["records without a label"] += 1
        return
    folded = [_fold_answer(step.text) for step in steps]
    yield StepSolution(
        problem=problem,
        steps=tuple(text for text, _ in folded),
        labels=tuple(labels),
        id=place,
        source="prm800k",
        first_error=_first_error([step.rating for step in steps]),
        meta={key: value for key, value in {**meta, "answer": folded[-1][1]}.items() if value is not None},
    )


def _rating_label(rating: int, neutral: NeutralPolicy) -> float | None:
    return _NEUTRAL[neutral] if rating == 0 else float(rating == 1)


def _first_error(ratings: Sequence[int | None]) -> int | None:
    """Index of the first -1, -1 when every rating is 0 or 1, None when an unrated step leaves it open."""
    for index, rating in enumerate(ratings):
        if rating is None:
            return None
        if rating == -1:
            return index
    return -1


def _fold_answer(text: str) -> tuple[str, str | None]:
    """A step with its tail "\\n\\n# Answer\\n\\nX" put on its own line, where no splitter cuts it off; X."""
    body, heading, answer = text.rpartition(_ANSWER_HEADING + "\n")
    if not heading:
        return text, None
    answer = answer.strip()
    return f"{body.strip()} {_ANSWER_HEADING}: {answer}".strip(), answer


# --- fields ----------------------------------------------------------------------------------------------

_OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "source": str,
    "label_kind": str,
    "first_error": int,
    "answer_correct": bool,
    "meta": dict,
}
_DEFAULTS: dict[str, Any] = {
    "id": "",
    "source": "",
    "label_kind": "human",
    "first_error": None,
    "answer_correct": None,
    "meta": {},
}
_LABEL_KINDS = get_args(get_type_hints(StepSolution)["label_kind"])


def _has(values: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _place(row: Row) -> str:
    """A row's place without folders: an id that does not change with the machine."""
    return row.where.replace("\\", "/").rpartition("/")[2]
