"""Running sums without CUDA's cumsum, against it."""

import pytest
import torch

from prm.sums import by_doubling


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 1000])
def test_doubling_gives_the_cumulative_sum_and_its_gradient(length) -> None:
    values = torch.randn(3, length, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, length, dtype=torch.float64)
    torch.testing.assert_close(by_doubling(values), values.cumsum(-1), rtol=1e-12, atol=1e-12)
    found, expected = (
        torch.autograd.grad((total * weights).sum(), values)[0]
        for total in (by_doubling(values), values.cumsum(-1))
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
