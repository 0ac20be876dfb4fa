"""Examples of unequal length: what is left out, and which run together in one forward.

On a CPU sorting by length is nearly the whole gain over padding; packing pays only with variable-length
attention kernels. The plan never changes what is learned: losses are sums, divided once.
"""

import logging
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from data.errors import UserError

logger = logging.getLogger(__name__)


class Example(Protocol):
    """One training example: `id` names it in messages, len() is the tokens it takes in a forward."""

    @property
    def id(self) -> str: ...

    def __len__(self) -> int: ...


def drop_overlong(
    examples: Sequence[Any], limit: int, policy: Literal["error", "skip"]
) -> tuple[list[Any], int]:
    """Return the examples of at most `limit` tokens and how many were left out, of which a warning tells.

    Raises UserError naming the longest when the policy is "error" and any is too long.
    """
    kept = [example for example in examples if len(example) <= limit]
    if len(kept) < len(examples) and policy == "error":
        worst = max(examples, key=len)
        raise UserError(
            f"example {worst.id or '(unnamed)'} has {len(worst)} tokens, the limit is {limit} "
            f"({len(examples) - len(kept)} of {len(examples)} exceed it); shorten it, raise max_length "
            "(within the model's context) or fit.micro_batch_tokens, or set fit.overlong: skip"
        )
    if len(kept) < len(examples):
        logger.warning(
            "%d of %d examples exceed %d tokens and are left out",
            len(examples) - len(kept),
            len(examples),
            limit,
        )
    return kept, len(examples) - len(kept)


def plan_micro_batches(
    rows: Sequence[int], lengths: Sequence[int], max_tokens: int, *, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """Return this process's share of `rows`, length-sorted and cut under the padded token budget.

    Every process gets as many micro-batches as the others (collectives inside the forward need equal counts);
    one that has too few rows for that, as in an odd last batch, gets empty ones.
    """
    ordered = sorted(rows, key=lambda row: -lengths[row])
    shares = [ordered[index::world] for index in range(world)]
    cuts = [cut_by_tokens(share, lengths, max_tokens) for share in shares]
    return split_to(cuts[rank], max(len(cut) for cut in cuts))


def split_to(cuts: list[list[int]], count: int) -> list[list[int]]:
    """Halve the largest micro-batches until there are `count`; empty ones where no row is left to part."""
    cuts = list(cuts)
    while len(cuts) < count:
        index = max(range(len(cuts)), key=lambda i: len(cuts[i]), default=0)
        if not cuts or len(cuts[index]) < 2:
            cuts.append([])
        else:
            half = len(cuts[index]) // 2
            cuts[index : index + 1] = [cuts[index][:half], cuts[index][half:]]
    return cuts


def cut_by_tokens(rows: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut rows sorted by falling length so that rows x longest stays within the budget."""
    cuts: list[list[int]] = []
    for row in rows:
        if cuts and (len(cuts[-1]) + 1) * lengths[cuts[-1][0]] <= max_tokens:
            cuts[-1].append(row)
        else:
            cuts.append([row])
    return cuts
