r"""Forms of a whole answer beside its value: choices, ratios, values said again in words.

    choice_of("C. 12 apples")             # "C"
    same_ratio("1:2:3", "2:4:6")          # True
    without_gloss("0.75 (three quarters)")   # "0.75"

Texts after eval.normalise.tidy; None where a text has not the form.
"""

import re

from eval.quantities import read_quantity

_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])[.)])\s+\S.*", re.DOTALL)
_CHOICES = re.compile(r"[A-J](?:\s*(?:,\s*and|,\s*or|,|and|or)\s*[A-J])+")
_GLOSS = re.compile(r"([^()]*\d[^()]*?)\s*\(([A-Za-z][A-Za-z ,-]*)\)")
_NO_GLOSS = re.compile(r"\b(?:mod|base|not|or|and|if|for|with|where|to)\b")


def choice_of(text: str) -> str | None:
    """Return the letter, A to J, of a choice that is given alone or before its text."""
    if re.fullmatch("[A-J]", text):
        return text
    match = _CHOICE.fullmatch(text)
    return (match[1] or match[2]) if match else None


def are_choices(text: str) -> bool:
    """Whether a text is several letters of choices: "A and C"."""
    return bool(_CHOICES.fullmatch(text))


def same_ratio(gold: str, prediction: str) -> bool | None:
    """Return whether two ratios of three numbers or more are multiples of each other; None for other texts.

    With a part like "00" they are times, which are equal as they stand.
    """
    if gold.count(":") < 2 or prediction.count(":") < 2:
        return None
    sides, are_times = [], False
    for text in (gold, prediction):
        parts = [part.strip() for part in text.split(":")]
        numbers = [read_quantity(part) for part in parts]
        values = [number.value for number in numbers if number and not number.unit and number.value >= 0]
        if len(values) < len(parts):
            return None
        are_times |= any(part.startswith("0") for part in parts)
        sides.append(values)
    if are_times:
        return sides[0] == sides[1]
    return [value / sides[0][0] for value in sides[0]] == [value / sides[1][0] for value in sides[1]]


def without_gloss(text: str) -> str:
    """Return the number of "0.75 (three quarters)"; any other text as it is."""
    match = _GLOSS.fullmatch(text) if text.endswith(")") else None
    if match and read_quantity(match[1]) and not _NO_GLOSS.search(match[2]):
        return match[1]
    return text
