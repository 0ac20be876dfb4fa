"""Is a value, or a program's output, the expected one? Plain values only; nothing here calls a program.

same_value([1, 2.0], [1, 2], tolerance=1e-6)
same_output("1.50 yes\n", "1.5 YES")          # numbers by value, words as they are
"""

import math
from typing import Any, Literal

NUMBERS = (int, float, complex, bool)
OUTPUT_TOLERANCE = 1e-6
"""Absolute or relative error of a printed number that carries a decimal point."""

Sequences = Literal["strict", "json"]
Compare = Literal["value", "set", "truth", "root", "or_true", "or_zero"]
"""What makes a value right. value: it is the expected one. set: it has the same items. truth: both are None
or neither is. root: it is a zero of the polynomial whose coefficients are the argument. or_true, or_zero: all
values of a run are the expected ones, or all are True or 0."""


def same_value(got: Any, expected: Any, *, tolerance: float = 0.0, sequences: Sequences = "strict") -> bool:
    """Return whether two plain values are equal as Python has it, with type checks.

    Numbers compare by value (1 == 1.0 == True), floats within `tolerance`, absolute or relative; nan equals
    nan. Other types must be the same. `sequences` "json": a tuple counts as a list and a dict's keys as text,
    for expected values that were stored as JSON.
    """
    if type(expected) in NUMBERS and type(got) in NUMBERS:
        return _same_number(got, expected, tolerance)
    if sequences == "json" and type(got) is tuple:
        got = list(got)
    if sequences == "json" and type(expected) is tuple:
        expected = list(expected)
    if type(got) is not type(expected):
        return False
    inner = {"tolerance": tolerance, "sequences": sequences}
    if type(got) in (list, tuple):
        return len(got) == len(expected) and all(
            same_value(a, b, **inner) for a, b in zip(got, expected, strict=True)
        )
    if type(got) is dict:
        if sequences == "json":
            got, expected = ({str(key): value for key, value in d.items()} for d in (got, expected))
        return got.keys() == expected.keys() and all(same_value(got[k], expected[k], **inner) for k in got)
    return got == expected


def same_items(got: Any, expected: Any) -> bool:
    """Return whether two collections hold the same items, order and repetition aside."""
    kinds = (list, tuple, set, frozenset)
    if type(got) not in kinds or type(expected) not in kinds:
        return False
    try:
        return set(got) == set(expected)
    except TypeError:  # items that cannot be hashed: lists
        return all(item in expected for item in got) and all(item in got for item in expected)


def is_root(coefficients: list[float], x: Any, tolerance: float) -> bool:
    """Return whether sum coefficients[i] x**i is within `tolerance` of 0."""
    if type(x) not in (int, float):
        return False
    try:
        return abs(math.fsum(c * math.pow(x, i) for i, c in enumerate(coefficients))) <= tolerance
    except (ValueError, OverflowError):
        return False


def _same_number(got: Any, expected: Any, tolerance: float) -> bool:
    if got == expected:
        return True
    if type(got) in (int, bool) and type(expected) in (int, bool):
        return False
    try:
        if math.isnan(got) and math.isnan(expected):
            return True
        return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance) if tolerance else False
    except (TypeError, OverflowError):  # complex, or an integer beyond the floats
        return abs(got - expected) <= tolerance if complex in (type(got), type(expected)) else False


def same_output(got: str, expected: str, *, tolerance: float = OUTPUT_TOLERANCE) -> bool:
    """Return whether an output has the expected tokens, whitespace aside.

    Tokens are equal as text, or both numbers, one with a decimal point or exponent, within `tolerance`
    absolutely or relatively. Integers must be equal as text: 1000001 is not 1000002.
    """
    mine, wanted = got.split(), expected.split()
    return len(mine) == len(wanted) and all(
        a == b or _same_decimal(a, b, tolerance) for a, b in zip(mine, wanted, strict=True)
    )


def _same_decimal(got: str, expected: str, tolerance: float) -> bool:
    if len(got) > 400 or len(expected) > 400 or not (_is_decimal(got) or _is_decimal(expected)):
        return False
    try:
        a, b = float(got), float(expected)
    except ValueError:
        return False
    return math.isfinite(a) and math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def _is_decimal(token: str) -> bool:
    return any(mark in token for mark in ".eE")
