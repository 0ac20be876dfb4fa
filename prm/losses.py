"""Losses of process reward models and which steps they look at. Pure functions of tensors.

N supervised steps. Class 0 is wrong, class 1 is correct; a label is P(correct) in [0, 1], hard or soft, and
counts as correct from 1/2 on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

Supervision = Literal["all", "first_error"]
"""all: every labelled step. first_error: labelled steps up to and including the first wrong one; what follows
a mistake has no agreed label."""


@dataclass(frozen=True)
class StepStats:
    """Detached sums over the supervised steps."""

    correct: Tensor
    """Steps whose predicted class agrees with the label cut at 1/2."""
    positive: Tensor
    """Sum of the labels: with the count, the share of correct steps."""
    score: Tensor
    """Sum of the predicted P(correct)."""


def step_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, StepStats]:
    """Return the cross-entropy in nats summed over steps, and sums to report.

    logits (N, 2); labels (N,) in [0, 1]: a soft label y weighs the classes y and 1 - y.
    """
    logprobs = log_softmax(logits.float(), dim=-1)  # (N, 2)
    labels = labels.to(logprobs.dtype)
    loss = -(labels * logprobs[:, 1] + (1 - labels) * logprobs[:, 0]).sum()
    with torch.no_grad():
        agrees = (logits[:, 1] >= logits[:, 0]) == (labels >= 0.5)
        stats = StepStats(correct=agrees.sum(), positive=labels.sum(), score=logprobs[:, 1].exp().sum())
    return loss, stats


def supervision_mask(
    labels: Sequence[float | None], mode: Supervision = "all", *, wrong_below: float = 0.5
) -> list[bool]:
    """Return which steps are supervised. A step without label never is; it does not end "first_error"."""
    mask = []
    open_ = True
    for label in labels:
        mask.append(label is not None and open_)
        if mode == "first_error" and label is not None and label < wrong_below:
            open_ = False
    return mask
