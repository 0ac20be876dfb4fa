r"""Which answers vote together: the spellings of one answer are one candidate.

vote_key("1,000") == vote_key("$1000")      # True
"""

import re
from fractions import Fraction

from eval.normalise import tidy

LONGEST = 4000
"""Characters of the longest answer that is looked into."""

_NUMBER = re.compile(r"([-+]?)\$?(\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})")
_FRACTION = re.compile(r"([-+]?)(?:\\frac\{(\d{1,40})\}\{(\d{1,40})\}|(\d{1,40})/(\d{1,40}))")


def vote_key(answer: str) -> str:
    r"""Return one text for the spellings of an answer that vote together: 0.5, \frac{1}{2} and 1/2 are one.

    Numbers are compared exactly, anything else as tidied text, or as it is where it is longer than LONGEST.
    No sympy: a vote compares all candidates.
    """
    if len(answer) > LONGEST:
        return answer
    text = tidy(answer)
    if match := _NUMBER.fullmatch(text):
        return str(Fraction(match[1] + match[2].rstrip(".")))
    if match := _FRACTION.fullmatch(text):
        top, bottom = int(match[2] or match[4]), int(match[3] or match[5])
        if bottom:
            return str(Fraction(-top if match[1] == "-" else top, bottom))
    return text
