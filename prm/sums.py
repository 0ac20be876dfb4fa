"""Running sums that a GPU repeats bit for bit when it is asked to."""

import torch
from torch import Tensor


def running_sum(values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the cumulative sum over the last dimension, in `dtype`; shape and gradient of torch.cumsum.

    Differs: under torch.use_deterministic_algorithms CUDA refuses the cumsum of floats; there it is made of
    shifted additions.
    """
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        return by_doubling(values.to(dtype or values.dtype))
    return values.cumsum(-1, dtype=dtype)


def by_doubling(values: Tensor) -> Tensor:
    """Return the sums over the last dimension in log2(N) shifted additions (Hillis, Steele 1986)."""
    shift = 1
    while shift < values.shape[-1]:
        head, tail = values[..., :shift], values[..., shift:] + values[..., :-shift]
        values, shift = torch.cat([head, tail], dim=-1), 2 * shift
    return values
