r"""Answers of several parts: tuples, intervals, sets, lists, unions and matrices, as tidied text.

    read_structure("(1, 2]")              # an interval of two items
    read_structure(r"1 \pm \sqrt{2}")     # a list of two items

What the items are worth is not looked at. Linear in the length of the text.
"""

import re
from dataclasses import dataclass
from typing import Literal

_WORDS = re.compile(r"\s*,?\s+(?:and|or)\s+|(?<=[)\]}\d])\s*(?:and|or)\s*(?=[(\[{\\\d-])")


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
        """Whether the order of the elements counts."""
        return self.kind in ("brackets", "matrix")

    def matches_kind(self, other: "Structure") -> bool:
        """Whether the two can be equal; a bare list agrees with a tuple or a set of the same elements."""
        kinds = {self.kind, other.kind}
        if kinds == {"brackets"}:
            return self.brackets == other.brackets
        if kinds == {"list", "brackets"}:
            return "()" in (self.brackets, other.brackets)
        if kinds == {"set", "brackets"}:  # {1,3}, typed without backslashes, may be meant as a tuple
            return {self.brackets, other.brackets} == {"{}", "()"}
        return len(kinds) == 1 or kinds == {"list", "set"}

    def describe(self) -> str:
        return f"brackets {self.brackets}" if self.kind == "brackets" else f"a {self.kind}"


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
    braces = ""
    if re.fullmatch(r"\{[^{}]*,[^{}]*\}", text):
        text, braces = f"\\{text[:-1]}\\}}", "{}"
    closed = enclosed(text)
    if closed is not None:
        opening, inner, closing = closed
        inside = _split(inner, (",",))
        if opening == "{":
            return Structure("set", _expand(inside), braces)
        if len(inside) > 1:
            return Structure("brackets", tuple(inside), opening + closing)
        return None
    groups = _split(text, (";",))
    if len(groups) > 1 and any(len(_split(group, (",",))) > 1 for group in groups):
        return Structure("list", tuple(f"({group})" for group in groups))  # p=5,q=2; p=7,q=2
    items = _expand(_split(_WORDS.sub(",", text), (",", ";")))
    return Structure("list", items) if len(items) > 1 else None


def enclosed(text: str) -> tuple[str, str, str] | None:
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
