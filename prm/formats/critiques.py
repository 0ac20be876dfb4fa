"""Critiques in words -> scores of steps. Pure text; what cannot be read is None, never 0."""

import re
from collections.abc import Sequence

_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_VERDICT = re.compile(r"\b(correct|incorrect|right|wrong|yes|no)\b", re.IGNORECASE)
_YES_NO = re.compile(r"\(\s*yes\s*/\s*no\s*\)\s*\??\s*[*_:\s]*\b(yes|no)\b", re.IGNORECASE)
_RIGHT = ("correct", "right", "yes")


def read_index(text: str, num_steps: int) -> list[float | None] | None:
    """Return 1 for the steps before the first wrong one and 0 from there on; all 1 for an index of -1.

    The last box counts (as ProcessBench reads it). None without a box that holds -1 or a step's index from 0.
    """
    boxes = _BOX.findall(text)
    # Models write \text{3} or "paragraph 3" in the box: one whole number is enough.
    numbers = re.findall(r"-?\d+", boxes[-1]) if boxes else []
    if len(numbers) != 1 or not -1 <= int(numbers[0]) < num_steps:
        return None
    first_error = int(numbers[0])
    return [1.0 if first_error == -1 or k < first_error else 0.0 for k in range(num_steps)]


def read_boxes(text: str, num_steps: int) -> list[float | None] | None:
    """Return 1 or 0 for the k-th box that says correct or incorrect, in order.

    A critic that stops at the first mistake has judged what follows: 0. Steps otherwise unjudged are None;
    so is a text without any such box.
    """
    found = [_VERDICT.search(box) for box in _BOX.findall(text)]
    verdicts = [match[1].lower() in _RIGHT for match in found if match][:num_steps]
    if not verdicts:
        return None
    rest: float | None = None if all(verdicts) else 0.0
    return [float(v) for v in verdicts] + [rest] * (num_steps - len(verdicts))


def read_yes_no(text: str) -> float | None:
    """Return 1 or 0 for the last "... (Yes/No)? X" of a critique of one step, None where it says neither."""
    found = _YES_NO.findall(text)
    return float(found[-1].lower() == "yes") if found else None


def average(readings: Sequence[list[float | None] | None], num_steps: int) -> list[float | None]:
    """Return each step's mean over the critiques that judged it; None where none did."""
    means: list[float | None] = []
    for k in range(num_steps):
        values = [v for reading in readings if reading is not None and (v := reading[k]) is not None]
        means.append(sum(values) / len(values) if values else None)
    return means
