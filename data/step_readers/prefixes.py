"""Rows that speak of a solution's beginnings: OmegaPRM-style values (MATH-APS) and R-PRM's single steps."""

import re
from collections.abc import Iterator
from typing import Any

from data.errors import UserError
from data.schema import StepSolution
from data.sources import Row, field, show, texts
from data.step_readers.reading import Reading, row_place

_STEP_HEADING = re.compile(r"^Step \d+: ", re.MULTILINE)


def read_math_aps(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """OpenR's flat rows: `reasoning_steps` of {solution_prefix, mc_value}; a prefix *includes the question*.

    One record a prefix, cut where another prefix of the row ends, labelled at its end only, so that no value
    counts twice. The value of the bare question is no step's. Values are soft: the share of completions that
    reached the answer (OpenR itself makes them hard at > 0.5, not at > 0).
    """
    question = field(row, "question", str)
    values: dict[str, float] = {}
    for k, item in enumerate(field(row, "reasoning_steps", list)):
        prefix, value = _prefix(row, k, item, question)
        if prefix in values:
            reading.counts["repeated prefixes"] += 1
        elif prefix.strip():
            values[prefix] = value
        else:
            reading.counts["values of the bare question"] += 1
    for number, (prefix, value) in enumerate(values.items()):
        ends = sorted({len(other) for other in values if prefix.startswith(other)})
        steps = [prefix[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]
        yield _valued(row, question, [step for step in steps if step], value, number)


def read_math_aps_tree(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """OpenR's trees: nodes {text, mc_value, children}; one record a node, labelled at its end only."""
    question = field(row, "question", str)
    number = 0
    stack: list[tuple[Any, str, list[str]]] = [(field(row, "reasoning_steps", dict), "reasoning_steps", [])]
    while stack:
        node, place, before = stack.pop()
        if not isinstance(node, dict) or not isinstance(text := node.get("text"), str):
            raise UserError(
                f"{row.where}: field '{place}' must be an object with a string 'text', got {show(node)}"
            )
        value = node.get("mc_value")
        is_root = not before and text.strip() in ("", question.strip())
        path = before if is_root else [*before, text.strip()]
        children = node.get("children") or []
        if not isinstance(children, list):
            raise UserError(f"{row.where}: field '{place}.children' must be a list, got {show(children)}")
        stack += [(child, f"{place}.children[{k}]", path) for k, child in enumerate(children)][::-1]
        if is_root:
            reading.counts["values of the bare question"] += 1
        elif value is None:
            reading.counts["nodes without a value"] += 1
        else:
            yield _valued(row, question, path, _unit(row, f"{place}.mc_value", value), number)
            number += 1


def read_r_prm(row: Row, reading: Reading) -> Iterator[StepSolution]:
    """R-PRM's expansion of ProcessBench: `previous_steps` (one text of "Step k: " lines, or a list) and
    `now_step`, whose correctness `label` (true/false, 0/1) gives."""
    before = row.values["previous_steps"]
    if isinstance(before, str):
        starts = [match.start() for match in _STEP_HEADING.finditer(before)]
        if before.strip() and starts[:1] != [0]:
            raise UserError(
                f"{row.where}: field 'previous_steps' must begin with 'Step 1: ' or be a list of steps, "
                f"got {show(before)}"
            )
        steps = [before[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
    else:
        steps = list(texts(row, "previous_steps"))
    label = row.values["label"]
    if label not in (0, 1):
        raise UserError(f"{row.where}: field 'label' must be 0, 1, true or false, got {show(label)}")
    yield StepSolution(
        problem=field(row, "question", str),
        steps=(*steps, field(row, "now_step", str)),
        labels=(*(None,) * len(steps), float(label)),
        id=str(row.values.get("id", row_place(row))),
        source="r_prm",
        meta={"origin_id": row.values["origin_id"]} if "origin_id" in row.values else {},
    )


def _prefix(row: Row, index: int, item: Any, question: str) -> tuple[str, float]:
    """The prefix without the question, and its value."""
    place = f"reasoning_steps[{index}]"
    if not isinstance(item, dict) or not isinstance(item.get("solution_prefix"), str):
        raise UserError(
            f"{row.where}: field '{place}' must be an object with a string 'solution_prefix', "
            f"got {show(item)}"
        )
    prefix = item["solution_prefix"]
    if not prefix.startswith(question):
        raise UserError(
            f"{row.where}: field '{place}.solution_prefix' must begin with the question, got {show(prefix)}"
        )
    return prefix[len(question) :], _unit(row, f"{place}.mc_value", item.get("mc_value"))


def _unit(row: Row, place: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"{row.where}: field '{place}' must be a number from 0 to 1, got {show(value)}")
    return float(value)


def _valued(row: Row, question: str, steps: list[str], value: float, number: int) -> StepSolution:
    return StepSolution(
        problem=question,
        steps=tuple(steps),
        labels=(*(None,) * (len(steps) - 1), value),
        id=f"{row_place(row)}/{number}",
        source="math_aps",
        label_kind="mc_soft",
        meta={"gold_answer": row.values["final_answer"]} if row.values.get("final_answer") else {},
    )
