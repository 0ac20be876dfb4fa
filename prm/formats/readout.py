"""Logits at the places that are read -> scores. N places, C outputs of the head."""

from collections.abc import Callable

import torch
from torch import Tensor

READ: dict[str, Callable[[Tensor], Tensor]] = {
    # (N, 2), good first: P(good) of the two tokens alone.
    "two_token": lambda logits: logits.softmax(-1)[:, 0],
    "mean_logits": lambda logits: torch.sigmoid(logits[:, 0]),
    "class2": lambda logits: logits.softmax(-1)[:, 1],
    # In [-1, 1] (arXiv:2504.15275).
    "class2_difference": lambda logits: logits.softmax(-1) @ logits.new_tensor([-1.0, 1.0]),
    # Classes negative, neutral, positive (arXiv:2404.05692): a step is valid when it is not negative ...
    "validity": lambda logits: logits.softmax(-1)[:, 1:].sum(-1),
    # ... and redundant when it is neutral: right, but no step forward. The authors' score is P(neutral); its
    # complement, so that a higher score is the better step here as well.
    "redundancy": lambda logits: 1 - logits.softmax(-1)[:, 1],
    "sigmoid": lambda logits: torch.sigmoid(logits[:, 0]),
    "raw": lambda logits: logits[:, 0],
    "ensemble_mean": lambda logits: torch.sigmoid(logits).mean(-1),
}
"""Readout -> function (N, C) f32 -> (N,) f32."""

WIDTH = {
    "two_token": 2,
    "mean_logits": 1,
    "class2": 2,
    "class2_difference": 2,
    "validity": 3,
    "redundancy": 3,
    "sigmoid": 1,
    "raw": 1,
}
"""Outputs that a head must have for a readout; an ensemble may have any number."""
