r"""Inequalities in one variable as sets of numbers, in the notation of intervals.

    as_interval(r"2 < x \le 5")       # ("x", "(2,5]")
    as_interval(r"x \ne 3")           # ("x", r"(-\infty,3)\cup(3,\infty)")
    as_interval(r"\{x \mid x > 2\}")   # ("", r"(2,\infty)")
    as_interval("x + y > 3")          # None

Texts in, texts out, after eval.normalise.tidy; what the bounds are worth is not looked at.
"""

import re

_RELATION = re.compile(
    r"\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|\\lt(?![a-z])|\\gt(?![a-z])|<=|>=|!=|[<>=]"
)
_SUBSCRIPT = re.compile(r"_\{[^{}]*\}")
_SPELLINGS = {"\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\lt": "<", "\\gt": ">"}
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_NAME = re.compile(r"\s*(?:[A-Za-z]|\\(?:theta|alpha|beta|lambda|mu|phi))\s*")
_REALS = re.compile(r"\\mathbb\s*\{?R\}?|\\R(?![a-z])|\\Re(?![a-z])")
_WITHOUT = re.compile(r"(.+?)\s*(?:\\setminus|\\backslash|\\smallsetminus)\s*\\\{([^{},]*)\\\}")
_BUILDER = re.compile(
    rf"\\\{{({_NAME.pattern})(?:\\in\s*(?:{_REALS.pattern})\s*)?(?:\\mid(?![a-z])|\||:)(.*)\\\}}"
)
WHOLE_LINE = r"(-\infty,\infty)"


def relations_in(text: str) -> list[str]:
    """Return the relation signs of a text in their order, in ASCII; not those in subscripts."""
    return [_SPELLINGS.get(sign, sign) for sign in _RELATION.findall(_SUBSCRIPT.sub("", text))]


def as_interval(text: str) -> tuple[str, str] | None:
    """Return (name, numbers that satisfy an inequality in that variable); None for any other text.

    The name is "" for the real line, the real line without a point, and a set in braces.
    """
    if match := _BUILDER.fullmatch(text.strip()):  # {x | x > 2}
        inner = as_interval(match[2].strip())
        return ("", inner[1]) if inner and inner[0].strip() == match[1].strip() else None
    if _REALS.fullmatch(text.strip()):
        return "", WHOLE_LINE
    if match := _WITHOUT.fullmatch(text.strip()):
        return ("", _all_but(match[2])) if _REALS.fullmatch(match[1].strip()) else None
    parts = re.split(r"\s+or\s+|\s*\\lor\s*|\s*\\vee\s*", text)
    intervals = [_one(part) for part in parts]
    found = [interval for interval in intervals if interval]
    if len(found) < len(parts) or len({name for name, _ in found}) > 1:
        return None
    return found[0][0], r"\cup".join(numbers for _, numbers in found)


def _one(text: str) -> tuple[str, str] | None:
    signs = relations_in(text)
    sides = [side.strip() for side in _RELATION.split(text)]
    if not signs or "=" in signs or not all(sides) or len(sides) != len(signs) + 1:
        return None
    if len(signs) == 1:
        name, bound, sign = sides[0], sides[1], signs[0]
        if not _NAME.fullmatch(name):
            name, bound, sign = bound, name, _FLIPPED[sign]
        if not _NAME.fullmatch(name) or _mentions(bound, name):
            return None
        return name, _bounded(sign, bound)
    if len(signs) == 2 and _NAME.fullmatch(sides[1]) and not any(_mentions(s, sides[1]) for s in sides[::2]):
        if {sign[0] for sign in signs} == {"<"}:
            low, high = (sides[0], signs[0]), (sides[2], signs[1])
        elif {sign[0] for sign in signs} == {">"}:
            low, high = (sides[2], signs[1]), (sides[0], signs[0])
        else:
            return None
        numbers = f"{'[' if '=' in low[1] else '('}{low[0]},{high[0]}{']' if '=' in high[1] else ')'}"
        return sides[1], numbers
    return None


def _mentions(bound: str, name: str) -> bool:
    return name.strip() in bound


def _bounded(sign: str, bound: str) -> str:
    if sign == "!=":
        return _all_but(bound)
    closed = "=" in sign
    if sign.startswith("<"):
        return rf"(-\infty,{bound}{']' if closed else ')'}"
    return rf"{'[' if closed else '('}{bound},\infty)"


def _all_but(value: str) -> str:
    return rf"(-\infty,{value})\cup({value},\infty)"
