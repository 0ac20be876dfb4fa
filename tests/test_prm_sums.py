"""Running sums without CUDA's cumsum, against it."""

from typing import Any

import pytest
import torch

from prm.sums import by_doubling, running_sum


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


class Cuda(torch.Tensor):
    """Values on a CPU that say they are on a GPU, and refuse what CUDA refuses when it must repeat itself."""

    is_cuda = True

    def cumsum(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")


def test_a_gpu_that_must_repeat_itself_takes_the_additions(monkeypatch) -> None:
    values = torch.randn(3, 9)
    torch.testing.assert_close(running_sum(values, torch.float64), values.cumsum(-1, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="deterministic"):
        running_sum(values.as_subclass(Cuda))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    found = running_sum(values.as_subclass(Cuda), torch.float64).as_subclass(torch.Tensor)
    torch.testing.assert_close(found, values.cumsum(-1, dtype=torch.float64), rtol=1e-12, atol=1e-12)
