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

BOX_GAP = 200
"""Boxes farther apart, in characters, are not one answer."""

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
_BRACE_OR_BOX = re.compile(r"\\+(?:boxed|fbox)(?![A-Za-z])|\\[{}\\]|[{}]")
# Between boxes that are one answer; what stands after "and" may name the next: "and y =".
_CONJUNCTION = re.compile(
    r"(?:[\s,;$.]|\\[,;:! ()\[\]]|\\q?quad|and|or|\\(?:text|mbox)\s*\{[^{}\\]{0,40}?(?:and|or|,)\s*\}"
    r"|(?<=[\s$(])[A-Za-z](?:_\{?\w\}?)?\s*=){0,12}"
)
_NAME_BEFORE = re.compile(r"(?<![A-Za-z\\])([A-Za-z](?:_\{?\w\}?)?)\s*=\s*\\+f?box(?:ed)?\s*\{\s*$")
_CHOICE = re.compile(
    r"(?:[\s*$]|\\(?:text|mathrm|textbf|mathbf)\{)*(?:\(\s*([A-Ja-j])\s*\)|([A-J])(?![A-Za-z\d'^_=+*/-]))"
)
_LONE_CHOICE = re.compile(r"\(([A-J])\)|^[ \t*]*([A-J])[ \t*]*[.:)]?[ \t*]*$", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_MAY_SAY = re.compile(r"(?i:answer)|^[ \t]*A:", re.MULTILINE)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SAID = re.compile(r"\b(?:is|are|equals|was|be)\b(?:\s+(?:equal\s+to|exactly|about|approximately))?")


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
    r"""Return the content of the last \boxed{...} or \fbox{...} that closes; "\boxed 5" counts too.

    Boxes with nothing but a conjunction between them, \boxed{1} and \boxed{2}, are one answer: "1, 2".
    """
    if "boxed" not in response and "fbox" not in response:
        return None
    # Only the last boxes count: from the first of those that stand close together.
    start = max(response.rfind("boxed"), response.rfind("fbox"))
    while (before := response.rfind("box", max(0, start - BOX_GAP), start)) >= 0:
        start = before
    spans = _boxes(response, max(0, start - 8)) or _boxes(response, 0)
    if not spans:
        return None
    first = len(spans) - 1
    while first > 0 and _CONJUNCTION.fullmatch(
        response, spans[first - 1][1] + 1, _command_at(response, spans[first])
    ):
        first -= 1
    if first == len(spans) - 1:
        return response[slice(*spans[-1])].strip()
    parts = []
    for start, end in spans[first:]:
        part = response[start:end].strip()
        name = _NAME_BEFORE.search(response, max(0, start - 60), start)
        parts.append(f"{name[1]} = {part}" if name else part)
    return ", ".join(dict.fromkeys(parts))


def _boxes(response: str, begin: int) -> list[tuple[int, int]]:
    """Start and end of the content of every box after `begin` that closes, none inside another, in order."""
    opened: list[int | None] = []  # one entry an open brace: where a box's content starts, None for others
    found: list[tuple[int, int]] = []
    pending = -1  # end of a box command whose argument has not begun
    for match in _BRACE_OR_BOX.finditer(response, begin):
        token = match[0]
        between = response[pending : match.start()] if pending >= 0 else ""
        if pending >= 0 and (bare := re.match(r"\s*([^\s{}$\\]+|\\[A-Za-z]+)", between)):
            found.append((pending + bare.start(1), pending + bare.end(1)))
            pending = -1
        if token == "{":
            opened.append(match.end() if pending >= 0 and not between.strip() else None)
        elif token == "}" and opened:
            start = opened.pop()
            # A box around a box: the one inside is the answer.
            if (
                start is not None
                and response[start : match.start()].strip()
                and not (found and found[-1][0] >= start)
            ):
                found.append((start, match.start()))
        pending = match.end() if token.endswith("box") or token.endswith("boxed") else -1
    if pending >= 0 and (bare := re.match(r"\s*([^\s{}$\\]+)", response[pending : pending + TAIL_CHARS])):
        found.append((pending + bare.start(1), pending + bare.end(1)))
    return found


def _command_at(response: str, span: tuple[int, int]) -> int:
    r"""Where the \boxed of a content begins."""
    return response.rfind("\\", max(0, span[0] - 12), span[0])


def after_answer_is(response: str) -> str | None:
    """Return what follows the last "answer is", "Answer:" or line-opening "A:", to the sentence's end.

    Of a sentence, "Answer: the volume is 120", what follows its "is", or else its last number.
    """
    response = response[-LAST_CHARS:]
    if not _MAY_SAY.search(response):
        return None
    found = None
    for match in _ANSWER_IS.finditer(response):
        tail = response[match.end() : match.end() + TAIL_CHARS].lstrip(" \t*:")
        found = _first_clause(tail) or found
    if found and len(_WORD.findall(_MATH.sub(" ", found))) >= 3:
        said = _SAID.split(found)[-1].strip()
        brief = said if len(said) < len(found) and len(_WORD.findall(said)) < 4 else last_number(found)
        return brief or found
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


def last_value(response: str) -> str | None:
    r"""Return the last formula, or the last number where the sentence it stands in has no formula."""
    formula = number = None
    for formula in _MATH.finditer(response[-LAST_CHARS:]):  # noqa: B007 - the last one is wanted
        pass
    for number in NUMBER.finditer(response[-LAST_CHARS:]):  # noqa: B007
        pass
    if formula is None or number is None:
        return in_dollars(response) or last_number(response)
    if formula[0].rstrip("$)]\\ \n").endswith((".", "?", "!")) and number.start() > formula.end():
        return last_number(response)
    between = response[-LAST_CHARS:][formula.end() : number.start()] if number.start() > formula.end() else ""
    return last_number(response) if _SENTENCE_END.search(between + " ") else in_dollars(response)


def in_dollars(response: str) -> str | None:
    r"""Return the content of the last $...$, \(...\) or \[...\]."""
    found = None
    for match in _MATH.finditer(response):
        found = next(group for group in match.groups() if group is not None).strip() or found
    return found


def final_answer(response: str) -> str | None:
    """Return what follows the last "the final answer is" where no box comes after it: it corrects one."""
    at = max(response.rfind("inal answer is"), response.rfind("inal Answer is"))
    if at < 0 or "boxed" in response[at:]:
        return None
    return after_answer_is(response[at:])


def choice_letter(response: str) -> str | None:
    """Return the letter, A to J, of the choice that a response names; upper case.

    A box or the last "answer is" decides where it holds a letter, alone or before its choice's text, "B" or
    "(B) 12 metres"; else the last letter in round brackets, or alone on a line.
    """
    for said in (in_box(response), after_answer_is(response)):
        match = _CHOICE.match(said) if said else None
        if match:
            return (match[1] or match[2]).upper()
    found = _LONE_CHOICE.findall(response[-LAST_CHARS:])
    return next((one for one in reversed(found[-1]) if one), None) if found else None


def in_fence(response: str, entry_point: str = "") -> str | None:
    """Return the code of the last fenced block that defines `entry_point`, else of the longest Python block;
    None without one. A block that never closes goes to the end."""
    blocks = [(tag.strip().lower(), body) for tag, body in _FENCE.findall(response)]
    python = [body for tag, body in blocks if tag in ("", "python", "py", "python3")]
    if not python:
        return None
    name = re.escape(entry_point.rpartition(".")[2])
    defining = [body for body in python if name and re.search(rf"^\s*def\s+{name}\b", body, re.MULTILINE)]
    return defining[-1] if defining else max(python, key=len)


CONVENTIONS: dict[str, Callable[[str], str | None]] = {
    "hash": after_hash,
    "final_answer": final_answer,
    "boxed": in_box,
    "answer_is": after_answer_is,
    "last_number": last_number,
    "dollars": in_dollars,
    "last_value": last_value,
    "choice": choice_letter,
    "code": in_fence,
}

CHAINS: dict[str, tuple[str, ...]] = {
    "gsm8k": ("hash", "boxed", "answer_is", "last_number"),
    "math": ("final_answer", "boxed", "answer_is", "hash", "last_value"),
    "arithmetic": ("hash",),
    "program": ("code",),
    "marked": ("final_answer", "boxed", "hash", "answer_is"),
}
"""Benchmark -> conventions in order. "marked": any explicit mark, for text of unknown origin."""


def _first_clause(tail: str) -> str:
    """The answer at the start of `tail`: one formula if it starts with one, else up to the sentence's end."""
    formula = _MATH.match(tail)
    money = re.match(r"\$\d[\d,.]*\s+[a-z]{2,}|\$\d[\d,.]*(?=[^$]*\$\d)", tail)
    if formula and not money:  # "$5 and not $6" is money
        rest = tail[formula.end() :].split("\n", 1)[0]
        more = re.match(r"(?:\s*(?:,|and|or)\s*\$[^$\n]+\$)+", rest)  # "$1$ and $-2$"
        return (tail[: formula.end()] + (more[0] if more else "")).strip()
    end = _SENTENCE_END.search(tail)
    return (tail[: end.start()] if end else tail).strip().rstrip("*,;").strip()
