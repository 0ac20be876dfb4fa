"""Which of several candidates is given as the answer.

choose(candidates, answers, "weighted")     # index of the candidate, None where there is none to choose
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from eval.normalise import tidy
from eval.search.rules import Candidate, Choice


def choose(candidates: Sequence[Candidate], answers: Sequence[str | None], how: Choice) -> int | None:
    """Return the index of the chosen candidate. Of equals the one seen first.

    best: the highest score. weighted: the answer with the largest sum of scores, shown by its best candidate.
    majority: the commonest answer. Only responses that ended count, and only those with an answer vote; where
    none votes the best one is taken, and where none ended nothing is.
    """
    assert len(candidates) == len(answers), (len(candidates), len(answers))
    ended = [k for k, one in enumerate(candidates) if one.state == "ended"]
    voting = [k for k in ended if answers[k] is not None]
    if how == "best" or not voting:
        return max(ended, key=lambda k: candidates[k].rank, default=None)
    votes: dict[str, float] = {}
    for k in voting:
        weight = 1.0 if how == "majority" else candidates[k].score or 0.0
        votes[str(answers[k])] = votes.get(str(answers[k]), 0.0) + weight
    winner = max(votes, key=votes.__getitem__)
    backers = [k for k in voting if answers[k] == winner]
    return backers[0] if how == "majority" else max(backers, key=lambda k: candidates[k].rank)


_NUMBER = re.compile(r"([-+]?)\$?(\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})")
_FRACTION = re.compile(r"([-+]?)(?:\\frac\{(\d{1,40})\}\{(\d{1,40})\}|(\d{1,40})/(\d{1,40}))")


def vote_key(answer: str) -> str:
    r"""Return one text for the spellings of an answer that vote together: 0.5, \frac{1}{2} and 1/2 are one.

    Numbers are compared exactly; anything else as tidied text. No sympy: a vote compares all candidates.
    """
    text = tidy(answer)
    if match := _NUMBER.fullmatch(text):
        return str(Fraction(match[1] + match[2].rstrip(".")))
    if match := _FRACTION.fullmatch(text):
        top, bottom = int(match[2] or match[4]), int(match[3] or match[5])
        if bottom:
            return str(Fraction(-top if match[1] == "-" else top, bottom))
    return text
