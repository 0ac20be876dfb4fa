"""What a PRM's outputs mean: the objective it was trained with decides, and its config names that.

    config.prm_objective   head      score of a step
    cross_entropy          2 logits  softmax, class 1
    bce, mse               1 logit   sigmoid
    three_class            3 logits  1 - P(wrong): a neutral step is no mistake
    pqm, bradley_terry     1 logit   sigmoid of a value that was only ever ranked: an order, no probability
    implicit               no head   sigmoid(beta x log-ratio to the reference up to the step's end)

Scores of the first three rows are trained as P(correct); the sigmoid of a ranked value is monotone in it, so
thresholds for pqm and bradley_terry have to be chosen on held-out data (or calibrated: prm.calibrate).
"""

from typing import Any, get_args

import torch
from torch import Tensor, nn

from data.errors import UserError, did_you_mean
from prm.config import Objective

LABEL_NAMES: dict[int, dict[int, str]] = {
    1: {0: "correct"},
    2: {0: "wrong", 1: "correct"},
    3: {0: "wrong", 1: "neutral", 2: "correct"},
}
NUM_LABELS: dict[str, int] = {
    "cross_entropy": 2,
    "bce": 1,
    "three_class": 3,
    "mse": 1,
    "pqm": 1,
    "bradley_terry": 1,
}
"""Outputs of the head; "implicit" is a language model and has none."""


def objective_of(config: Any) -> str:
    """Return the objective that a model's config names; models saved before there were several are
    two-class. Raises UserError for one this version does not know."""
    name = getattr(config, "prm_objective", "cross_entropy")
    if name not in get_args(Objective):
        raise UserError(
            f"config.prm_objective '{name}' is unknown" + did_you_mean(str(name), get_args(Objective))
        )
    return name


def to_scores(logits: Tensor) -> Tensor:
    """Return scores (N,) in [0, 1] of head outputs (N, 1), (N, 2) or (N, 3)."""
    if logits.shape[-1] == 1:
        return logits.squeeze(-1).sigmoid()
    return 1 - logits.softmax(-1)[:, 0] if logits.shape[-1] == 3 else logits.softmax(-1)[:, 1]


def linear_value(head: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return weight (1, H) and bias (1,) of the score's first-order expansion around even logits.

    sigmoid(z) - 1/2 = z / 4; of two classes z is the difference; of three, with p = 1/3 each,
    1 - P(wrong) - 2/3 = (z_1 + z_2 - 2 z_0) / 9.
    """
    mix = {1: [1 / 4], 2: [-1 / 4, 1 / 4], 3: [-2 / 9, 1 / 9, 1 / 9]}[head.weight.shape[0]]
    row = torch.tensor([mix], dtype=head.weight.dtype, device=head.weight.device)
    with torch.no_grad():
        return row @ head.weight, None if head.bias is None else row @ head.bias
