r"""Answers as text: one spelling for the many of LaTeX.

    tidy(r"$\dfrac12\,\text{cm}$")        # r"\frac{1}{2} cm"
    strip_name("x = 5")                    # "5"

No sympy, nothing that takes more than linear time in the length of the text.
"""

import re

LONGEST_WORDS = 2000

_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ", "π": r"\pi ",
        "∞": r"\infty ", "º": "°", "′": "'", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "²": "^2", "³": "^3", "％": "%", "，": ",", "（": "(",
        "）": ")", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}", "∅": r"\emptyset ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "θ": r"\theta ",
        "⟨": r"\langle ", "⟩": r"\rangle ", "…": r"\ldots ", "\u200b": "",
    }
)  # fmt: skip
_DEGREE = r"\cdot\frac{\pi}{180}"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\!|\{,\}\\?!?", lambda m: "," if m[0].startswith("{") else ""),
        (r"\\(?:left|right|bigg?[lrm]?|Bigg?[lrm]?|middle)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits|mathstrut|phantom\{[^{}]*\}|hspace\{[^{}]*\})", ""),
        (r"(?<!\\)\\(?:[,;: ]|q?quad|(?:thinspace|enspace|hfill)(?![A-Za-z]))|~", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:text(?:bf|it|rm|sf|normal)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname)\*?\s*(?=\{)",
         r"\\text"),
        (r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degrees?(?![A-Za-z])|\\textdegree", "°"),
        # In a function degrees are not radians; elsewhere "45" is asked of an angle as of "45°".
        (r"(?<![A-Za-z])(\\?(?:sin|cos|tan|cot|sec|csc)(?:\s*\^\s*(?:\{[^{}]*\}|-?\w))?)\s*"
         r"([\d.]+\s*°|\\frac\s*\{[^{}]*\}\s*\{[^{}]*\}\s*°|\([^()°]*°[^()]*\)|\{[^{}°]*°[^{}]*\})",
         lambda m: f"{m[1]}({m[2][1:-1] if m[2][0] in '({' else m[2]})".replace("°", _DEGREE)),
        (r"°", ""),
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
    r"(?P<name>(?:[A-Za-z]|\\[a-z]+)(?:_\w|_\{[^{}]*\}|'|\([A-Za-z](?:,\s*[A-Za-z])*\))?)"
    r"\s*(?:=|\\in(?![a-z])|\\approx(?![a-z]))\s*(?=[^=<>]+$)"
)
# What a figure calls its points, lengths and areas: AB, \angle BAC, S_1 : S_2, \frac{NO}{BO}, P(A).
_LABEL = re.compile(r"[A-Z:/{}|()\s']+")
_NOT_IN_LABEL = re.compile(
    r"_\{[^{}]*\}|_\w|\\(?:frac|(?:measured)?angle|triangle|overline|cup|cap)(?![a-z])"
)
_APPROXIMATELY = re.compile(r"\s*\\(?:approx|simeq|thickapprox)(?![a-z])\s*")
_DOLLARS = re.compile(r"(?<!\\)\$")
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")


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
    if text.count("$") - text.count("\\$") > 1:  # $69$,$84$
        text = _DOLLARS.sub("", text)
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
    words = re.sub(r"\\[A-Za-z]+", " ", text[:LONGEST_WORDS])
    return len(re.findall(r"[A-Za-z]{2,}", words)) >= 4 or bool(
        re.search(r"\$[^$]+\$\s*\w|\w\s*(?:\$[^$]+\$|\\\()", text)
    )


def is_word(text: str) -> bool:
    """Whether an answer is a word, a name or words: no digit, no operator, three letters in a row or more."""
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z' -]*[A-Za-z.]", text)) and bool(
        re.search(r"[A-Za-z]{3}", text)
    )


def are_words(gold: str, prediction: str) -> bool:
    """Whether one answer at least is a word, and not the other's letters multiplied: "no" is not "on"."""
    short = all(re.fullmatch(r"[A-Za-z]{2}", side) for side in (gold, prediction))
    return (short or is_word(gold) or is_word(prediction)) and not may_be_product(gold, prediction)


def may_be_product(gold: str, prediction: str) -> bool:
    """Whether two answers hold the same few letters, and such as products are made of: "abc", but not "cat".

    A word has a vowel; of two letters "a" is none: "ma" is m times a.
    """
    letters = [sorted(re.sub(r"[^A-Za-z]", "", side)) for side in (gold, prediction)]
    if letters[0] != letters[1] or len(letters[0]) > 5:
        return False
    found = set("".join(letters[0]).lower())
    vowels = set("eiou") if len(letters[0]) == 2 else set("aeiou")
    return not found & vowels or found <= set("abcxyz")


def strip_name(text: str) -> str:
    r"""Return what follows "x =", "f(x) =", "\angle A =" or "x \in"; any other text as it is."""
    match = _NAME_PREFIX.match(text)
    if match:
        return text[match.end() :]
    left, equals, right = text.partition("=")
    if equals and "=" not in right and left[-1:] not in ("<", ">", "!"):
        label = _NOT_IN_LABEL.sub("", left)
        if _LABEL.fullmatch(label):
            return right.strip()
    return text


def names_agree(gold: str, prediction: str) -> bool:
    """Whether "x = ..." faces the same name or none: "y = 5" is no answer to "x = 5"."""
    names = [
        match and re.sub(r"[\s{}]", "", match["name"])
        for match in map(_NAME_PREFIX.match, (gold, prediction))
    ]
    return None in names or names[0] == names[1]


def without_approximation(text: str) -> str:
    r"""Return "1/3" for "1/3 \approx 0.33" and for "x \approx 1/3": what is exact, or all there is."""
    parts = _APPROXIMATELY.split(text, maxsplit=1) if "\\" in text else [text]
    if len(parts) == 1:
        return text
    return parts[1] if re.fullmatch(r"[A-Za-z](?:_\w)?", parts[0]) else parts[0]
