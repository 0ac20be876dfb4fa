"""Whether two expression trees have the same value: exactly for rationals, else in a hundred digits.

    same_value(read_expression(r"2\\sqrt{3}"), read_expression(r"\\sqrt{12}"))      # True
    same_value(read_expression("(x+1)^2"), read_expression("x^2+2x+1"))           # True
    same_value(read_expression("x+1"), read_expression("x+2"))                    # False

Variables are put at fixed points, where only an identity agrees every time; a point at which a side is not
real says nothing. None means that it stays open, and sympy is asked. Bounded: numbers above the limits below
are not computed, so that a comparison takes milliseconds.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from eval.expressions import Relation, Tree, names_in, operators_in

DIGITS = 100
TOLERANCE = 60
"""Numbers that agree in so many digits are equal."""
MOST_DIGITS = 2000
MOST_BITS = 20_000
LARGEST_ARGUMENT = 10**6
"""Of exponentials, trigonometric functions and factorials."""

REAL_POINTS = tuple(
    tuple(Fraction(*pair) for pair in point)
    for point in (
        ((17, 13), (29, 19), (7, 11), (37, 23)),
        ((3, 23), (31, 41), (5, 37), (2, 29)),
        ((-19, 17), (13, 29), (-43, 31), (11, 7)),
        ((53, 7), (-11, 47), (59, 5), (-3, 17)),
        ((71, 3), (43, 2), (61, 9), (83, 6)),
        ((-47, 5), (-67, 11), (-5, 53), (-29, 3)),
    )
)
WHOLE_POINTS = tuple(
    tuple(map(Fraction, point))
    for point in ((7, 3, 5, 2), (12, 5, 9, 4), (9, 4, 6, 5), (18, 7, 11, 3), (5, 2, 3, 1), (31, 14, 23, 9))
)
"""Where names stand for whole numbers: in factorials, binomials, floors and (-1)^n."""

_OF_WHOLES = {"factorial", "binomial", "floor", "ceil"}


class OpenError(ValueError):
    """The value is not defined here, or too large to be computed."""


def value_of(tree: Tree, *, deadline: float = math.inf) -> Fraction | None:
    """Return a constant as a fraction, in a hundred digits unless exact; None if it is none or not real."""
    if names_in(tree):
        return None
    values = _values((tree,), {}, deadline)
    if values is None or not _is_real(values[0]):
        return None
    if isinstance(values[0], Fraction):
        return values[0]
    sign, mantissa, exponent, _ = values[0].real._mpf_
    return Fraction((-1) ** sign * int(mantissa)) * Fraction(2) ** exponent


def same_value(gold: Tree, prediction: Tree, *, deadline: float = math.inf) -> bool | None:
    """Return whether two expressions are equal wherever both are real; None where that is open.

    Gives up at `deadline`, a time.monotonic().
    """
    names = sorted(names_in(gold) | names_in(prediction))
    agreed = 0
    for values in _points(names, gold, prediction):
        sides = _values((gold, prediction), values, deadline)
        if sides is None:
            continue
        left, right = sides
        same = _close(left, right, lambda digits: _values((gold, prediction), values, deadline, digits))  # noqa: B023
        if same is None:
            continue
        if not same:
            if names and not all(map(_is_real, sides)):
                continue
            return False
        agreed += 1
    needed = 3 if names else 1
    return True if agreed >= needed else None


def same_relation(gold: Relation, prediction: Relation, *, deadline: float = math.inf) -> bool | None:
    """Return whether two relations say the same: each a multiple of the other's; None where that is open.

    5x - 7y = -4 is 10x + 8 = 14y, and -x > -1 is x < 1. Equal solutions of another form are left open.
    """
    golds, predictions = _differences(gold), _differences(prediction)
    if len(golds) != len(predictions):
        return None
    left = list(predictions)
    for operator, difference in golds:
        found = next(
            (k for k, p in enumerate(left) if _proportional(operator, difference, *p, deadline)), None
        )
        if found is None:
            return None
        del left[found]
    return True


def _differences(relation: Relation) -> list[tuple[str, Tree]]:
    """(operator, tree) for "tree operator 0", with > and >= only."""
    found = []
    for k, operator in enumerate(relation.operators):
        left, right = relation.sides[k], relation.sides[k + 1]
        if operator in ("<", "<="):
            left, right = right, left
        found.append((operator.replace("<", ">"), ("-", left, right)))
    return found


def _proportional(operator: str, gold: Tree, other: str, prediction: Tree, deadline: float) -> bool:
    if operator != other:
        return False
    names = sorted(names_in(gold) | names_in(prediction))
    if names_in(gold) != names_in(prediction) or not names:
        return False
    ratio = None
    agreed = 0
    for values in _points(names, gold, prediction):
        sides = _values((gold, prediction), values, deadline)
        if sides is None or not all(map(_is_real, sides)):
            continue
        zeros = [side == 0 for side in sides]
        if any(zeros):
            if not all(zeros):
                return False
            continue
        here = _divide(*(sides if _both_exact(sides) else [_inexact(s, _context(DIGITS)) for s in sides]))
        if operator.startswith(">") and here < 0:
            return False
        if ratio is not None and not _near(ratio, here):
            return False
        ratio = here
        agreed += 1
    return agreed >= 4


def _both_exact(values: tuple[Any, Any]) -> bool:
    return all(isinstance(value, Fraction) for value in values)


def _near(left: Any, right: Any) -> bool:
    context = _context(DIGITS)
    left, right = _inexact(left, context), _inexact(right, context)
    return bool(abs(left - right) <= max(abs(left), abs(right)) * context.mpf(10) ** -TOLERANCE)


def _points(names: list[str], *trees: Tree) -> list[dict[str, Fraction]]:
    if not names:
        return [{}]
    whole = any(operators_in(tree) & _OF_WHOLES or _has_sign_power(tree) for tree in trees)
    points = WHOLE_POINTS if whole else REAL_POINTS
    return [
        {name: point[k % len(point)] + k // len(point) for k, name in enumerate(names)} for point in points
    ]


def _has_sign_power(tree: Tree) -> bool:
    """Whether a negative number is raised to a power with a name in it."""
    if tree[0] == "^" and names_in(tree[2]) and not names_in(tree[1]) and tree[1][0] in ("neg", "-"):
        return True
    return any(_has_sign_power(part) for part in tree[1:] if isinstance(part, tuple))


def _values(
    trees: tuple[Tree, ...], names: Mapping[str, Fraction], deadline: float, digits: int = DIGITS
) -> Any:
    """The values of the trees, or None where one of them is not defined, too large or too late."""
    context = _context(digits)
    context.deadline = deadline
    try:
        return tuple(_evaluate(tree, names, context) for tree in trees)
    except (OpenError, ZeroDivisionError, ValueError, OverflowError, ArithmeticError):
        return None


_LOCAL = threading.local()


def _context(digits: int) -> Any:
    """This thread's mpmath context: the module's own is shared by all threads."""
    context = getattr(_LOCAL, "context", None)
    if context is None:
        context = _LOCAL.context = mpmath.MPContext()
    context.dps = digits
    return context


def _evaluate(tree: Tree, names: Mapping[str, Fraction], context: Any) -> Any:
    """A Fraction as long as the value is rational, else an mpf or mpc."""
    if time.monotonic() > context.deadline:
        raise OpenError("too late")
    kind = tree[0]
    if kind == "number":
        return tree[1]
    if kind == "name":
        return names[tree[1]]
    if kind == "constant":
        return {"pi": +context.pi, "e": +context.e, "i": context.j}[tree[1]]
    parts = [_evaluate(part, names, context) for part in tree[1:]]
    if kind in _ARITHMETIC:
        if not all(isinstance(part, Fraction) for part in parts):
            parts = [_inexact(part, context) for part in parts]
        value = _ARITHMETIC[kind](*parts)
        if isinstance(value, Fraction) and _bits(value) > 2 * MOST_BITS:
            raise OpenError("a large number")
        return value
    if kind == "^":
        return _power(parts[0], parts[1], context)
    if kind == "root":
        return _root(parts[0], parts[1], context)
    if kind == "abs":
        return abs(parts[0])
    if kind in ("floor", "ceil"):
        return _rounded(parts[0], kind)
    if kind in ("factorial", "binomial"):
        return _count(kind, *parts)
    return _function(kind, _inexact(parts[0], context), context)


def _divide(a: Any, b: Any) -> Any:
    if b == 0:
        raise OpenError("division by zero")
    return a / b


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "neg": lambda a: -a,
}


def _inexact(value: Any, context: Any) -> Any:
    if isinstance(value, Fraction):
        return context.mpf(value.numerator) / value.denominator
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _power(base: Any, exponent: Any, context: Any) -> Any:
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        n = exponent.numerator
        if isinstance(base, Fraction):
            if base == 0 and n <= 0:
                raise OpenError("a power of zero")
            if _bits(base) * abs(n) > MOST_BITS:
                raise OpenError("a large power")
            return base**n
        _check_size(n * context.ln(abs(base)) if base else 0)
        return base**n
    if base == 0:
        raise OpenError("a power of zero")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and base > 0:
        if exponent.denominator > 12 or _bits(base) * abs(exponent.numerator) > MOST_BITS:
            raise OpenError("a large power")
        return _root(base**exponent.numerator, Fraction(exponent.denominator), context)
    base, exponent = _inexact(base, context), _inexact(exponent, context)
    _check_size(abs(exponent * context.ln(base)))
    return context.power(base, exponent)


def _root(radicand: Any, degree: Any, context: Any) -> Any:
    """The real root where there is one, so that the cube root of -8 is -2."""
    if not (isinstance(degree, Fraction) and degree.denominator == 1 and 2 <= degree <= 100):
        if degree == 0:
            raise OpenError("a root of degree zero")
        return _power(
            radicand, _divide(Fraction(1), degree) if isinstance(degree, Fraction) else 1 / degree, context
        )
    n = int(degree)
    real = _is_real(radicand)
    if real and radicand < 0:
        if n % 2:
            return -_root(-radicand, degree, context)
        return (
            context.j * context.sqrt(_inexact(-radicand, context))
            if n == 2
            else _complex_root(radicand, n, context)
        )
    if isinstance(radicand, Fraction):
        numerator, denominator = (_whole_root(k, n) for k in (radicand.numerator, radicand.denominator))
        if numerator is not None and denominator is not None:
            return Fraction(numerator, denominator)
    return context.root(_inexact(radicand, context), n)


def _complex_root(radicand: Any, n: int, context: Any) -> Any:
    return context.power(_inexact(radicand, context), context.mpf(1) / n)


def _whole_root(number: int, n: int) -> int | None:
    """The n-th root of a whole number, if it is whole."""
    if number < 2:
        return number
    low = 1 << ((number.bit_length() - 1) // n)
    high = low * 2
    while low < high:
        middle = (low + high) // 2
        if middle**n < number:
            low = middle + 1
        else:
            high = middle
    return low if low**n == number else None


def _rounded(value: Any, kind: str) -> Fraction:
    if not _is_real(value):
        raise OpenError("a complex number rounded")
    if isinstance(value, Fraction):
        return Fraction(value.__floor__() if kind == "floor" else value.__ceil__())
    value = value.real
    nearest = round(value)
    if abs(value - nearest) < 1e-50:  # which side of the whole number it is on cannot be seen
        return Fraction(nearest)
    return Fraction(int(mpmath.floor(value) if kind == "floor" else mpmath.ceil(value)))


def _count(kind: str, *parts: Any) -> Fraction:
    """n! and n over k of whole numbers."""
    if not all(isinstance(part, Fraction) and part.denominator == 1 and 0 <= part <= 3000 for part in parts):
        raise OpenError("a factorial of something else than a whole number")
    return Fraction(math.factorial(int(parts[0])) if kind == "factorial" else math.comb(*map(int, parts)))


def _check_size(value: Any) -> None:
    if abs(value) > LARGEST_ARGUMENT:
        raise OpenError("a large argument")


def _function(name: str, value: Any, context: Any) -> Any:
    if name in ("ln", "log"):
        if value == 0:
            raise OpenError("the logarithm of zero")
        return context.ln(value)
    _check_size(value)
    method = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(name, name)
    return getattr(context, method)(value)


def _is_real(value: Any) -> bool:
    if isinstance(value, Fraction) or not hasattr(value, "_mpc_"):
        return True
    return bool(abs(value.imag) <= abs(value) * 10.0**-TOLERANCE)


def _close(left: Any, right: Any, again: Callable[[int], Any]) -> bool | None:
    """Whether two values are equal; `again` computes them once more with so many digits."""
    if _both_exact((left, right)):
        return left == right
    context = _context(DIGITS)
    left, right = _inexact(left, context), _inexact(right, context)
    distance, size = abs(left - right), max(abs(left), abs(right))
    if not (context.isfinite(distance) and context.isfinite(size)):
        return None
    limit = context.mpf(10) ** -TOLERANCE
    if distance > size * limit and size > limit:
        magnitude = TOLERANCE  # or terms that cancel have left nothing but rounding
    elif limit < size < 1 / limit or size == 0:
        return True
    else:
        magnitude = int(abs(context.log10(size)))
    digits = DIGITS + 2 * magnitude
    if digits > MOST_DIGITS or (values := again(digits)) is None:
        return None
    context = _context(digits)
    left, right = (_inexact(value, context) for value in values)
    return bool(abs(left - right) <= context.mpf(10) ** -(TOLERANCE + magnitude))
