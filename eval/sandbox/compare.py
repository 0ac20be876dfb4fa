"""Is a value, or a program's output, the expected one? Plain values only; nothing here calls a program.

same_value([1, 2.0], [1, 2], tolerance=1e-6)
same_as_reference([0.1 + 0.2], [0.3])         # EvalPlus' rule
same_output("1.50 yes\n", "1.5 YES")          # numbers by value, words as they are
"""

import math
from typing import Any, Literal

NUMBERS = (int, float, complex, bool)
OUTPUT_TOLERANCE = 1e-6
"""Absolute or relative error of a printed number that carries a decimal point."""

Sequences = Literal["strict", "json"]
REFERENCE_ATOL, REFERENCE_RTOL = 1e-6, 1e-7
"""EvalPlus' tolerances: absolute where a task names none, and relative."""
Compare = Literal["value", "reference", "set", "truth", "root", "any"]
"""What makes a value right. value: `same_value`. The others are EvalPlus' (evalplus/eval, commit 26d6d00).
reference: `same_as_reference`. set: it has the same items. truth: it is a Boolean that says whether the
reference's value is something, or it is something itself just when that is. root: it is a zero of the
polynomial whose coefficients are the argument. any: that it is there."""


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
    inner: dict[str, Any] = {"tolerance": tolerance, "sequences": sequences}
    if type(got) in (list, tuple):
        return len(got) == len(expected) and all(
            same_value(a, b, **inner) for a, b in zip(got, expected, strict=True)
        )
    if type(got) is dict:
        if sequences == "json":
            got, expected = ({str(key): value for key, value in d.items()} for d in (got, expected))
        return got.keys() == expected.keys() and all(same_value(got[k], expected[k], **inner) for k in got)
    return got == expected


def same_as_reference(got: Any, expected: Any, *, atol: float = 0.0) -> bool:
    """Return whether a value is a reference's by EvalPlus' rule.

    It is equal, or of the same type and `numpy.allclose`: |got - expected| <= atol + 1e-7 |expected|. Without
    `atol` only a float or a non-empty list or tuple of floats may differ, by 1e-6.
    """
    if got == expected:
        return True
    if not atol and not is_floats(expected):
        return False
    return type(got) is type(expected) and _all_close(got, expected, atol or REFERENCE_ATOL)


def is_floats(value: Any) -> bool:
    """Return whether a value is a float, or a non-empty list or tuple of floats."""
    if type(value) in (list, tuple):
        return bool(value) and all(type(item) is float for item in value)
    return type(value) is float


def _all_close(got: Any, expected: Any, atol: float) -> bool:
    if type(got) in (list, tuple) and type(expected) in (list, tuple):
        pairs = zip(got, expected, strict=False)
        return len(got) == len(expected) and all(_all_close(a, b, atol) for a, b in pairs)
    if type(got) not in NUMBERS or type(expected) not in NUMBERS:
        return False
    try:
        return got == expected or abs(got - expected) <= atol + REFERENCE_RTOL * abs(expected)
    except OverflowError:  # an integer beyond the floats
        return False


def same_items(got: Any, expected: Any) -> bool:
    """Return whether two collections hold the same items, order and repetition aside."""
    kinds = (list, tuple, set, frozenset)
    if type(got) not in kinds or type(expected) not in kinds:
        return False
    try:
        return set(got) == set(expected)
    except TypeError:  # items that cannot be hashed are wrong there too
        return False


def same_truth(got: Any, expected: Any) -> bool:
    """Return whether a value says of "there is a match" what the reference's value says."""
    there_is = expected is not None
    return got == there_is if type(got) is bool else (got is not None) == there_is


def is_root(coefficients: list[float], x: Any, tolerance: float) -> bool:
    """Return whether sum coefficients[i] x**i, added up from the first on, is within `tolerance` of 0."""
    if type(x) not in (int, float):
        return False
    try:
        # Rounded as in EvalPlus: the exact sum at its own reference's roots is up to 3e20 off.
        return abs(sum(c * math.pow(x, i) for i, c in enumerate(coefficients))) <= tolerance
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
