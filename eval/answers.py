r"""Find the final answer in a response. Not a judge of it: that is eval.math_grader.

    extract_answer("... so 3 + 4 = 7\n#### 7", "gsm8k")        # "7"
    extract_answer(r"Hence $\boxed{\frac{1}{2}}$.", "boxed")   # r"\frac{1}{2}"

A *convention* is one way of marking an answer; a *chain* is the conventions of a benchmark in the order in
which they are tried. Every function is at most linear in the length of the response, whatever it holds.
"""

import re
from collections.abc import Callable, Sequence

from data.errors import UserError, did_you_mean

TAIL_CHARS = 400
"""How much of the text after "the answer is" is looked at."""
LAST_CHARS = 20_000
"""How far back from its end a response is searched for unboxed answers."""

NUMBER = re.compile(
    r"(?<![\w.)\]}])[-+](?=\\?\$?\.?\d)"  # a sign, unless it stands between two terms
    r"|(?P<body>\\?\$?(?<![\d.])(?:\d+(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\\?\$?(?<![\w.])\.\d+)"
)
_FRACTION_TAIL = re.compile(r"\s?/\s?\d+(?:\.\d+)?|\s?\\?%")
_HASH = re.compile(r"####[ \t]*([^\n]*)")
_ANSWER_IS = re.compile(
    r"(?i:\banswer\b)(?:\*\*|[^.\n:=*]){0,60}?(?:(?i:\bis\b)|:|=)(?:[ \t]*(?:\*\*|:))*\s*|^[ \t]*A:[ \t]*",
    re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\*|$)|\n|(?<=\s)(?:because|since|I hope)\b")
# A formula stops at the next opening mark as well as at its closing one, so that a scan stays linear.
_MATH = re.compile(
    r"(?<!\\)\$\$?([^$]+)(?<!\\)\$|\\\(((?:[^\\]|\\[^()\[\]])*)\\\)|\\\[((?:[^\\]|\\[^()\[\]])*)\\\]"
)
_BRACE_OR_BOX = re.compile(r"\\[{}\\]|[{}]|\\(?:boxed|fbox)(?![A-Za-z])")


def extract_answer(response: str, conventions: Sequence[str] | str) -> str | None:
    """Return the answer that a response marks, stripped, or None when it marks none.

    `conventions` is the name of a chain or of a convention, or a sequence of names: the first that finds
    something wins. One strict convention ("hash", "boxed") is strict extraction.

    Raises UserError for an unknown name.
    """
    names = (conventions,) if isinstance(conventions, str) else conventions
    for name in names:
        if name in CHAINS:
            found = extract_answer(response, CHAINS[name])
        elif name in CONVENTIONS:
            found = CONVENTIONS[name](response)
        else:
            known = [*CONVENTIONS, *CHAINS]
            raise UserError(f"answer convention '{name}' is unknown" + did_you_mean(name, known))
        if found:
            return found
    return None


def after_hash(response: str) -> str | None:
    """Return what follows the last "####" that anything follows on its line."""
    found = [match[1].strip() for match in _HASH.finditer(response) if match[1].strip(" \t*.")]
    return found[-1] if found else None


def in_box(response: str) -> str | None:
    r"""Return the content of the last \boxed{...} or \fbox{...} that closes; "\boxed 5" counts too."""
    opened: list[int | None] = []  # one entry an open brace: where a box's content starts, None for others
    last: tuple[int, int] | None = None
    pending = -1  # end of a box command whose argument has not begun
    for match in _BRACE_OR_BOX.finditer(response):
        token = match[0]
        between = response[pending : match.start()] if pending >= 0 else ""
        if pending >= 0 and (bare := re.match(r"\s*([^\s{}$\\]+|\\[A-Za-z]+)", between)):
            last = _later(last, (pending + bare.start(1), pending + bare.end(1)))
            pending = -1
        if token == "{":
            opened.append(match.end() if pending >= 0 and not between.strip() else None)
        elif token == "}" and opened:
            start = opened.pop()
            if start is not None and response[start : match.start()].strip():
                last = _later(last, (start, match.start()))
        pending = match.end() if token in ("\\boxed", "\\fbox") else -1
    if pending >= 0 and (bare := re.match(r"\s*([^\s{}$\\]+)", response[pending : pending + TAIL_CHARS])):
        last = _later(last, (pending + bare.start(1), pending + bare.end(1)))
    return response[slice(*last)].strip() if last else None


def after_answer_is(response: str) -> str | None:
    """Return what follows the last "answer is", "Answer:" or line-opening "A:", to the sentence's end."""
    found = None
    response = response[-LAST_CHARS:]
    for match in _ANSWER_IS.finditer(response):
        tail = response[match.end() : match.end() + TAIL_CHARS].lstrip(" \t*:")
        tail = _first_clause(tail)
        if tail:
            found = tail
    return found


def last_number(response: str) -> str | None:
    """Return the last number: sign, thousands separators, decimals, "/ n" and "%" belong to it."""
    response = response[-LAST_CHARS:]
    span: tuple[int, int] | None = None
    sign_at = -1
    for match in NUMBER.finditer(response):
        if match["body"] is None:
            sign_at = match.start()
            continue
        start = sign_at if sign_at >= 0 and sign_at == match.start() - 1 else match.start()
        if span and re.fullmatch(r"\s?/\s?", response[span[1] : start]):
            start = span[0]
        span = (start, match.end())
    if span is None:
        return None
    tail = _FRACTION_TAIL.match(response, span[1])
    return response[span[0] : tail.end() if tail else span[1]].replace("\\$", "").replace("$", "").strip()


def in_dollars(response: str) -> str | None:
    r"""Return the content of the last $...$, \(...\) or \[...\]."""
    found = None
    for match in _MATH.finditer(response):
        found = next(group for group in match.groups() if group is not None).strip() or found
    return found


CONVENTIONS: dict[str, Callable[[str], str | None]] = {
    "hash": after_hash,
    "boxed": in_box,
    "answer_is": after_answer_is,
    "last_number": last_number,
    "dollars": in_dollars,
}

CHAINS: dict[str, tuple[str, ...]] = {
    "gsm8k": ("hash", "boxed", "answer_is", "last_number"),
    "math": ("boxed", "answer_is", "hash", "dollars", "last_number"),
    "arithmetic": ("hash",),
    "marked": ("boxed", "hash", "answer_is"),
}
"""Benchmark -> conventions in order. "marked": any explicit mark, for text of unknown origin."""


def _later(a: tuple[int, int] | None, b: tuple[int, int]) -> tuple[int, int]:
    return b if a is None or b[0] >= a[0] else a


def _first_clause(tail: str) -> str:
    """The answer at the start of `tail`: one formula if it starts with one, else up to the sentence's end."""
    formula = _MATH.match(tail)
    if formula and not re.match(r"\$\d[\d,.]*\s+[a-z]{2,}", tail):  # "$5 and not $6" is money
        rest = tail[formula.end() :].split("\n", 1)[0]
        more = re.match(r"(?:\s*(?:,|and|or)\s*\$[^$\n]+\$)+", rest)  # "$1$ and $-2$"
        return (tail[: formula.end()] + (more[0] if more else "")).strip()
    end = _SENTENCE_END.search(tail)
    return (tail[: end.start()] if end else tail).strip().rstrip("*,;").strip()
