"""PRM800K, as published (a tree of rated candidates a row) and flattened by others (one candidate a row)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from data.errors import UserError
from data.schema import StepSolution
from data.sources import Row, field, show, texts
from data.step_readers.reading import NEUTRAL, NeutralPolicy, Reading, row_place

_ANSWER_HEADING = "# Answer"


class _Candidate(NamedTuple):
    text: str
    rating: int | None


_DROPPED_ROWS = {
    "is_quality_control_question": "quality control rows",
    "is_initial_screening_question": "screening rows",
}


def read_prm800k(row: Row, reading: Reading) -> Iterator[StepSolution]:
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
    yield from _rated(row, reading, problem, path, len(path), row_place(row), shared)
    for number, steps in enumerate(others):
        place = f"{row_place(row)}/{len(steps) - 1}.{number}"
        yield from _rated(row, reading, problem, steps, 1, place, shared)


def read_prm800k_flat(row: Row, reading: Reading) -> Iterator[StepSolution]:
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
    yield from _rated(
        row, reading, field(row, "instruction", str), [*before, candidate], 1, row_place(row), {}
    )


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
    return NEUTRAL[neutral] if rating == 0 else float(rating == 1)


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
