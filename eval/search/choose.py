"""Which of several candidates is given as the answer.

choose(candidates, answers, "weighted")     # index of the candidate, None where there is none to choose
"""

from collections.abc import Sequence

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
