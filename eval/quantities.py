r"""Exact numbers with units, from tidied text: no floats.

read_quantity(r"1\frac{4}{5}")        # 9/5, no unit
read_quantity("5 cm")                 # 5, unit "cm"
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from eval.structures import enclosed

MOST_DIGITS = 2000
LARGEST_DECIMAL_EXPONENT = 400

_NUMBER = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_PLAIN = re.compile(rf"(?:{_NUMBER})")
_QUOTIENT = re.compile(rf"([-+]?\s?)({_NUMBER})\s*/\s*([-+]?)({_NUMBER})")
_FRAC = re.compile(r"(\d*)\s*\\frac\s*\{\s*([-+]?[\d.,]+)\s*\}\s*\{\s*([-+]?[\d.,]+)\s*\}")
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)")
_SCIENTIFIC = re.compile(
    rf"({_NUMBER})(?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{{?(-?\d+)\}}?|[eE]([-+]?\d+))"
)
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s*\{(\d+)\}")
_BASED = re.compile(r"([0-9A-Za-z]+)_\{?\s*(\d+)\s*\}?")
_UNIT_TAIL = re.compile(
    r"(?P<body>.*[\d})\]]|.*\\pi)\s*(?P<unit>[A-Za-z][A-Za-z./ ]*)(?:\s?\^\s?\{?(?P<power>[23])\}?)?",
    re.DOTALL,
)
_EXPRESSION_UNIT = re.compile(
    r"(?P<body>.*[\d})\]]|.*\\pi)\s*(?<![A-Za-z\\])(?P<unit>[A-Za-z]{2,})\.?(?:\s?\^\s?\{?(?P<power>[23])\}?)?",
    re.DOTALL,
)
_NOT_UNITS = re.compile(r"\b(?:or|and|if|for|base|mod|is|to|in(?= \S))\b")

_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(scale))
    for dimension, names in {
        "length": {"mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100",
                   "m meter metre": "1", "km kilometer kilometre": "1000", "in inch inche": "254/10000",
                   "ft foot feet": "3048/10000",
                   "yd yard": "9144/10000", "mi mile": "1609344/1000"},
        "time": {"s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400",
                 "week": "604800"},
        "mass": {"mg milligram": "1/1000", "g gram": "1", "kg kilogram": "1000"},
        "money": {"cent": "1/100", "dollar": "1"},
        "volume": {"ml milliliter millilitre": "1/1000", "l liter litre": "1"},
    }.items()
    for words, scale in names.items()
    for name in words.split()
}  # fmt: skip

_MULTIPLIERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact number with what was written behind it."""

    value: Fraction
    unit: str = ""
    """Words behind the number, singular, lower case; "%" for percent; "" for none."""
    power: int = 1
    base: int = 0
    """Number base written as a subscript, 0 for none."""
    digits: str = ""


def read_quantity(text: str) -> Quantity | None:
    """Return the exact number that a tidied text denotes, with its unit, or None if it is something else."""
    if len(text) > MOST_DIGITS:
        return None
    unit, power = "", 1
    body = text.strip()
    if re.match(r"[-+]?\s?\$", body):
        body, unit = body.replace("$", "", 1), "dollar"
    if body.endswith("%"):
        body, unit = body[:-1].strip(), "%"
    elif match := re.fullmatch(r"(.*[\d}.)])\s*(?:percent|per cent|percentage|percents|pct)", body):
        body, unit = match[1], "%"
    based = _BASED.fullmatch(body)
    if based:
        return _in_base(based[1], int(based[2][:6]))
    value = _value(body)
    if value is None and (match := _UNIT_TAIL.fullmatch(body)) and not _NOT_UNITS.search(match["unit"]):
        value = _value(match["body"].strip()) if len(match["unit"]) > 1 or match["unit"] in _UNITS else None
        unit, power = _singular(match["unit"]), int(match["power"] or 1)
        if value is not None and unit in _MULTIPLIERS:
            return Quantity(value * _MULTIPLIERS[unit])
        if words := re.fullmatch(r"(square|sq|cubic|cu)\.? (.+)", unit):
            unit, power = words[2], 2 if words[1].startswith("s") else 3
    return None if value is None else Quantity(value, unit, power)


def same_quantity(gold: Quantity, prediction: Quantity) -> bool:
    """Return whether two quantities are equal. A missing unit is forgiven, a contradicting one is not."""
    g, p = gold, prediction
    if g.base or p.base:
        if g.base and p.base and g.base != p.base:
            return g.value == p.value
        return (
            g.digits == p.digits
            if g.base and p.base
            else g.digits == str(p.value) or p.digits == str(g.value)
        )
    if (g.unit == "%") != (p.unit == "%"):
        percent, plain = (g, p) if g.unit == "%" else (p, g)
        if plain.unit:
            return False
        # "What per cent" is asked of "10" as of "10%", but 0.5 is never 0.5%.
        return percent.value / 100 == plain.value or (percent.value == plain.value and abs(g.value) >= 1)
    known = _UNITS.get(g.unit), _UNITS.get(p.unit)
    if known[0] and known[1]:
        if (known[0][0], g.power) != (known[1][0], p.power):
            return False
        return g.value * known[0][1] ** g.power == p.value * known[1][1] ** p.power
    return g.value == p.value


def split_unit(text: str) -> tuple[str, str]:
    r"""Return ("3\sqrt{2}", "cm") for "3\sqrt{2} cm", an expression and a known unit with its power."""
    match = _EXPRESSION_UNIT.fullmatch(text)
    if not match or _singular(match["unit"]) not in _UNITS:
        return text, ""
    return match["body"].strip(), f"{_singular(match['unit'])}^{match['power'] or 1}"


def units_agree(gold: str, prediction: str) -> bool:
    """Whether one unit is missing or both are the same: expressions are not converted."""
    return not gold or not prediction or gold == prediction


def _value(text: str) -> Fraction | None:
    """The exact rational that a text without unit denotes."""
    text = text.strip()
    for _ in range(3):
        if closed := enclosed(text):
            if closed[0] != "(" or closed[2] != ")":
                return None
            text = closed[1].strip()
    sign = -1 if text.startswith("-") else 1
    body = text[1:].strip() if text[:1] in ("-", "+") else text
    try:
        if _PLAIN.fullmatch(body):
            return sign * Fraction(body.replace(",", "").rstrip("."))
        if match := _FRAC.fullmatch(body):
            value = _plain(match[2]) / _plain(match[3])
            if match[1]:  # 1\frac{4}{5}: a mixed number, never a product
                return sign * (int(match[1]) + value) if 0 <= value < 1 else None
            return sign * value
        if match := _MIXED.fullmatch(body):
            value = Fraction(int(match[2]), int(match[3]))
            return sign * (int(match[1]) + value) if value < 1 else None
        if match := _QUOTIENT.fullmatch(body):
            return sign * _plain(match[2]) / _plain(match[3] + match[4])
        if match := _SCIENTIFIC.fullmatch(body):
            exponent = match[2] or match[3]
            if len(exponent) > 5 or abs(int(exponent)) > LARGEST_DECIMAL_EXPONENT:
                return None
            return sign * _plain(match[1]) * Fraction(10) ** int(exponent)
        if match := _REPEATING.fullmatch(body):
            whole, fixed, repeated = match[1] or "0", match[2], match[3]
            nines = (10 ** len(repeated) - 1) * 10 ** len(fixed)
            return sign * (int(whole) + Fraction(int(fixed + repeated) - int(fixed or 0), nines))
    except (ValueError, ZeroDivisionError):
        return None
    return None


def _plain(text: str) -> Fraction:
    """ValueError for anything but a decimal number; a fraction such as 1/2 is no decimal."""
    if not re.fullmatch(rf"[-+]?(?:{_NUMBER})", text):
        raise ValueError(text)
    return Fraction(text.replace(",", "").rstrip("."))


def _in_base(digits: str, base: int) -> Quantity | None:
    if not 2 <= base <= 36:
        return None
    try:
        return Quantity(Fraction(int(digits, base)), base=base, digits=digits.upper())
    except ValueError:
        return None


def _singular(words: str) -> str:
    words = re.sub(r"\s+", " ", words.strip().strip(".")).lower()
    return words[:-1] if len(words) > 2 and words.endswith("s") and words not in _UNITS else words
