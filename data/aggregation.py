"""One score of a whole solution from the scores of its steps: the only place where that is decided.

    aggregate([0.9, 0.2, 0.8], "min")    # 0.2
    aggregate([0.9, None], "min")        # None: a step that was never scored leaves the solution unscored

Which fits depends on what the labels meant: `min` and `prod` for "this step is right", `last` for "the answer
will be right from here" (arXiv:2501.07301).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from data.errors import UserError, did_you_mean

Aggregation = Literal["min", "prod", "last", "mean", "max", "softmin", "sum"]
"""softmin: the scores' mean under weights softmax(-score / temperature). sum: for rewards that add up to the
solution's (log-ratios)."""


def aggregate(scores: Sequence[float | None], how: Aggregation, *, temperature: float = 0.1) -> float | None:
    """Return the solution's score; None when it has no step or a step without a score.

    `temperature` is softmin's: PURE's 0.1 is meant for rewards in [-1, 1], so scores p in [0, 1] take 0.05
    for the same weights. Raises UserError for an unknown way, a temperature that is not above 0, a score
    that is no number.
    """
    if how not in get_args(Aggregation):
        raise UserError(f"aggregation '{how}' is unknown{did_you_mean(how, get_args(Aggregation))}")
    if not temperature > 0:
        raise UserError(f"softmin's temperature must be above 0, got {temperature}")
    if any(score is not None and math.isnan(score) for score in scores):
        raise UserError("a step's score is not a number (nan): the model's weights or inputs are broken")
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return None
    if how == "softmin":
        return softmin(known, temperature)
    return _WAYS[how](known)


def softmin(values: Sequence[float], temperature: float) -> float:
    """Return sum_k w_k v_k with w = softmax(-v / temperature): between min (to 0) and mean (to infinity)."""
    # Sec. 3.2, arXiv:2504.15275. The smallest value gets exp(0): no overflow at any temperature.
    lowest = min(values)
    weights = [math.exp((lowest - value) / temperature) for value in values]
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


_WAYS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "max": max,
    "prod": math.prod,
    "last": lambda values: values[-1],
    "mean": lambda values: math.fsum(values) / len(values),
    "sum": math.fsum,
}
