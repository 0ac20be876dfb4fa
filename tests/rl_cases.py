"""What several tests of the PPO maths share: a ragged batch, and ranks that are threads."""

import threading
from collections.abc import Callable

import torch
from torch import Tensor


def ragged_mask(starts: list[int], ends: list[int], width: int) -> Tensor:
    columns = torch.arange(width)
    return (columns >= torch.tensor(starts)[:, None]) & (columns < torch.tensor(ends)[:, None])


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Four tensors (5, 11) and a ragged mask: prompts of 1-4 tokens, 0-9 actions, padding."""
    torch.manual_seed(seed)
    mask = ragged_mask([1, 2, 4, 3, 1], [10, 11, 5, 3, 8], 11)
    return *(torch.randn(5, 11, dtype=dtype) for _ in range(4)), mask


def in_ranks(run: Callable[..., object], shards: list[tuple]) -> list:
    """Run `run(*shard, total, largest)` once per rank, in threads that meet in every collective."""
    meet = threading.Barrier(len(shards))
    slots: list = [None] * len(shards)
    results: list = [None] * len(shards)

    def work(rank: int) -> None:
        def collective(join: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def call(x: Tensor) -> Tensor:
                slots[rank] = x
                meet.wait(timeout=10)
                joined = join(torch.stack(slots))
                meet.wait(timeout=10)
                return joined

            return call

        results[rank] = run(*shards[rank], collective(lambda x: x.sum(0)), collective(lambda x: x.amax(0)))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
