r"""Answers as text: one spelling for the many of LaTeX, exact numbers with units, and bracketed structures.

    tidy(r"$\dfrac12\,\text{cm}$")        # r"\frac{1}{2} cm"
    read_quantity(r"1\frac{4}{5}")        # 9/5, no unit
    read_structure("(1, 2]")              # an interval of two items

No sympy, no floats, nothing that takes more than linear time in the length of the text.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

MOST_DIGITS = 2000
LARGEST_DECIMAL_EXPONENT = 400

_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ", "π": r"\pi ",
        "∞": r"\infty ", "°": "", "º": "", "′": "'", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "²": "^2", "³": "^3", "％": "%", "，": ",", "（": "(",
        "）": ")", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}", "∅": r"\emptyset ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "θ": r"\theta ",
        "⟨": r"\langle ", "⟩": r"\rangle ", "…": r"\ldots ", "\u200b": "",
    }
)  # fmt: skip
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\!|\{,\}\\?!?", lambda m: "," if m[0].startswith("{") else ""),
        (r"\\(?:left|right|bigg?[lrm]?|Bigg?[lrm]?|middle)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits|mathstrut|phantom\{[^{}]*\}|hspace\{[^{}]*\})", ""),
        (r"(?<!\\)\\(?:[,;: ]|quad|qquad|thinspace|enspace|hfill)(?![A-Za-z])|~", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:text(?:bf|it|rm|sf|normal)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname)\*?\s*(?=\{)",
         r"\\text"),
        (r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degrees?(?![A-Za-z])|\\textdegree", ""),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\(?:lbrace|\{)", r"\\{"),
        (r"\\(?:rbrace|\})", r"\\}"),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"\\begin\{[bvBV]?(?:matrix|array)\}(?:\{[^{}]*\})?", r"\\begin{pmatrix}"),
        (r"\\end\{[bvBV]?(?:matrix|array)\}", r"\\end{pmatrix}"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d|[A-Za-z])", r"\1{\2}"),
        (r"\\sqrt\s*(\d|[A-Za-z])", r"\\sqrt{\1}"),
        (r"\^\{(\w)\}", r"^\1"),
        (r"\^\s*(-\s?(?:\d+|[A-Za-z]))", r"^{\1}"),  # LaTeX reads 2^-1 as (2^-)1
        (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])", lambda m: m[0].replace(" ", "")),
        (r"\\infin(?![A-Za-z])|(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty"),
    )
)  # fmt: skip
_WORDS_IN_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_OUTER = ((r"$$", r"$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_NAME_PREFIX = re.compile(
    r"(?P<name>(?:[A-Za-z]|\\[a-z]+)(?:_\w|_\{\w+\}|'|\([A-Za-z](?:,\s*[A-Za-z])*\))?)\s*(?:=|\\in(?![a-z]))\s*(?=[^=<>]+$)"
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
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
_NOT_UNITS = re.compile(r"\b(?:or|and|if|for|base|mod|is|to|in(?= \S))\b")

_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(scale))
    for dimension, names in {
        "length": {"mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100",
                   "m meter metre": 1, "km kilometer kilometre": 1000, "in inch inche": "254/10000",
                   "ft foot feet": "3048/10000",
                   "yd yard": "9144/10000", "mi mile": "1609344/1000"},
        "time": {"s sec second": 1, "min minute": 60, "h hr hour": 3600, "day": 86400, "week": 604800},
        "mass": {"mg milligram": "1/1000", "g gram": 1, "kg kilogram": 1000},
        "money": {"cent": "1/100", "dollar": 1},
        "volume": {"ml milliliter millilitre": "1/1000", "l liter litre": 1},
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


@dataclass(frozen=True, slots=True)
class Structure:
    """Elements in brackets, in the order written. Intervals and tuples look alike: brackets are kept."""

    kind: Literal["list", "brackets", "set", "union", "matrix"]
    items: tuple[str, ...]
    brackets: str = ""
    shape: tuple[int, ...] = ()
    """Row lengths of a matrix."""

    @property
    def ordered(self) -> bool:
        return self.kind in ("brackets", "matrix")

    def matches_kind(self, other: "Structure") -> bool:
        """Whether the two can be equal; a bare list agrees with a tuple or a set of the same elements."""
        kinds = {self.kind, other.kind}
        if kinds == {"brackets"}:
            return self.brackets == other.brackets
        if kinds == {"list", "brackets"}:
            return "()" in (self.brackets, other.brackets)
        return len(kinds) == 1 or kinds == {"list", "set"}

    def describe(self) -> str:
        return f"brackets {self.brackets}" if self.kind == "brackets" else f"a {self.kind}"


def tidy(text: str) -> str:
    """Return the answer in one spelling: no spacing commands, dressings, degree signs or final full stop."""
    text = text.translate(_CHARACTERS).strip()
    for _ in range(4):
        before = text
        text = text.rstrip(" \t\n;:") if not text.endswith("\\;") else text[:-2]
        if text.endswith(".") and not text.endswith("\\."):
            text = text[:-1]
        text = text.removesuffix(",").strip()
        for left, right in _OUTER:
            inner = text[len(left) : -len(right)]
            dressed = text.startswith(left) and text.endswith(right) and left not in inner
            if dressed and len(text) > len(left) + len(right):
                text = inner.strip()
        if text == before:
            break
    text = re.sub(r"(\d),\s*\\!\s*(?=\d{3})", r"\1,", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _WORDS_IN_TEXT.sub(lambda match: f" {match[1].strip()} ", text)
    text = text.replace("\\%", "%").replace("\\$", "$").replace("**", "^")
    text = re.sub(r"\s+", " ", text).strip().rstrip(".").strip()
    if choice := re.fullmatch(r"\(([A-Z])\)", text):
        return choice[1]
    return _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text) if not _top_comma(text) else text


def _top_comma(text: str) -> bool:
    """Whether commas may separate elements: brackets are open around one, or not all group thousands."""
    return "," in _THOUSANDS.sub("", text) or bool(re.search(r"[(\[{][^)\]}]*,", text))


def is_prose(text: str) -> bool:
    r"""Whether a text is a response to search rather than an answer: several lines, or a sentence."""
    if "\n" in text.strip() and "\\begin" not in text:
        return True
    words = re.sub(r"\\[A-Za-z]+", " ", text[:MOST_DIGITS])
    return len(re.findall(r"[A-Za-z]{2,}", words)) >= 4 or bool(
        re.search(r"\$[^$]+\$\s*\w|\w\s*\$[^$]+\$", text)
    )


def is_word(text: str) -> bool:
    """Whether an answer is a word, a name or words: no digit, no operator, three letters in a row or more."""
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z' -]*[A-Za-z.]", text)) and bool(
        re.search(r"[A-Za-z]{3}", text)
    )


def may_be_product(gold: str, prediction: str) -> bool:
    """Whether two answers hold the same few letters, so that "abc" may be a times b times c."""
    letters = [sorted(re.sub(r"[^A-Za-z]", "", side)) for side in (gold, prediction)]
    return letters[0] == letters[1] and len(letters[0]) <= 5


def strip_name(text: str) -> str:
    r"""Return what follows "x =", "f(x) =" or "x \in"; any other text as it is."""
    match = _NAME_PREFIX.match(text)
    return text[match.end() :] if match else text


def names_agree(gold: str, prediction: str) -> bool:
    """Whether "x = ..." faces the same name or none: "y = 5" is no answer to "x = 5"."""
    names = [
        match and match["name"].replace(" ", "") for match in map(_NAME_PREFIX.match, (gold, prediction))
    ]
    return None in names or names[0] == names[1]


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
    elif match := re.fullmatch(r"(.*[\d}.)])\s*(?:percent|per cent)", body):
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


def read_structure(text: str) -> Structure | None:
    """Return the elements of a matrix, union, set, tuple, interval or list; None for a single expression."""
    if match := re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", text, re.DOTALL):
        if "\\begin" in match[1]:
            return None
        rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[1]) if row.strip()]
        items = tuple(item.strip() for row in rows for item in row)
        return Structure("matrix", items, shape=tuple(len(row) for row in rows))
    parts = _split(text, (r"\cup",))
    if len(parts) > 1:
        return Structure("union", tuple(parts))
    if re.fullmatch(r"\{[^{}]*,[^{}]*\}", text):  # a set whose braces were typed without backslashes
        text = f"\\{text[:-1]}\\}}"
    closed = _enclosed(text)
    if closed is not None:
        opening, inner, closing = closed
        items = _split(inner, (",",))
        if opening == "{":
            return Structure("set", _expand(items))
        if len(items) > 1:
            return Structure("brackets", tuple(items), opening + closing)
        return None
    items = _expand(_split(text, (",", ";", " and ", " or ")))
    return Structure("list", items) if len(items) > 1 else None


def _value(text: str) -> Fraction | None:
    """The exact rational that a text without unit denotes."""
    text = text.strip()
    for _ in range(3):
        if closed := _enclosed(text):
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


def _enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, inner, closing) where one pair of brackets holds the whole text; a set's braces are bare."""
    plain = text.replace("\\{", "\x01").replace("\\}", "\x02")
    pairs = {"(": ")]", "[": ")]", "\x01": "\x02"}
    if len(plain) < 2 or plain[0] not in pairs or plain[-1] not in pairs[plain[0]]:
        return None
    depth = 0
    for index, character in enumerate(plain):
        depth += (character in "([{\x01") - (character in ")]}\x02")
        if depth == 0 and index < len(plain) - 1:
            return None
    if depth != 0:
        return None
    inner = plain[1:-1].replace("\x01", "\\{").replace("\x02", "\\}")
    names = {"\x01": "{", "\x02": "}"}
    return names.get(plain[0], plain[0]), inner, names.get(plain[-1], plain[-1])


def _split(text: str, separators: tuple[str, ...]) -> list[str]:
    """Split at separators outside all brackets."""
    pattern = re.compile("|".join(re.escape(separator) for separator in separators) + r"|\\?[{}]|[()\[\]]")
    parts, depth, start = [], 0, 0
    for match in pattern.finditer(text):
        token = match[0]
        if token in separators:
            if depth == 0:
                parts.append(text[start : match.start()].strip())
                start = match.end()
        else:
            depth += 1 if token[-1] in "([{" else -1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def _expand(items: list[str]) -> tuple[str, ...]:
    r"""Write each "a \pm b" as two elements."""
    expanded: list[str] = []
    for item in items:
        if item.count(r"\pm") == 1:
            expanded += [item.replace(r"\pm", "+"), item.replace(r"\pm", "-")]
        else:
            expanded.append(item)
    return tuple(item.lstrip("+ ") for item in expanded)
