"""What a causal LM says of given tokens, without the logits of all of them at once.

The LM head runs on the positions that are asked about, in chunks, and each chunk's logits are computed again
in the backward: at most CHUNK x V of them exist, whatever the batch.

    (logprobs,) = read_next_tokens(model, batch, lambda logits, ids: (token_logprobs(logits, ids),))

B rows, T tokens, N positions asked about, n of them in one chunk, H width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prm.model import is_causal

CHUNK = 512
"""Positions whose logits exist at the same time: enough rows for the head's product to be bound by its FLOPs
(2 x 512 a byte of bf16 weights), few enough for half a dozen copies of them to be small beside a model."""
SMALL = 2**22
"""Logits that are kept for the backward instead: 16 MiB in float32, quicker than computing them again."""

Read = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""(logits (n, V) in at least float32, token ids (n,)) -> tensors (n,)."""


def read_next_tokens(model: PreTrainedModel, batch: Mapping[str, Tensor], read: Read) -> tuple[Tensor, ...]:
    """Return what `read` says of each token under `target_mask`, given those before it: tensors (N,).

    batch: input_ids, attention_mask and target_mask, all (B, T); column 0 is never a target. The N tokens are
    in row order. A model whose logits are more than its head's output (scaled, soft-capped) computes them
    itself, all at once.
    """
    mask = None if is_causal(model) else batch["attention_mask"]
    before = batch["target_mask"][:, 1:]  # (B, T-1): position t predicts token t+1
    targets = batch["input_ids"][:, 1:][before]  # (N,)
    if not has_plain_head(model):
        columns = before.any(0).nonzero().squeeze(1)  # every position that any row needs
        output = model(
            input_ids=batch["input_ids"], attention_mask=mask, use_cache=False, logits_to_keep=columns
        )
        return read(_at_least_f32(output.logits[before[:, columns]]), targets)
    hidden = model.base_model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False)[0]
    states = hidden[:, :-1][before]  # (N, H)
    head = model.get_output_embeddings()
    if len(states) <= CHUNK or len(states) * model.config.get_text_config().vocab_size <= SMALL:
        return read(_at_least_f32(head(states)), targets)
    # ZeRO-3 gathers the head's weight around each call, and processes have unequal numbers of chunks: the
    # head is called once, and goes through the chunks then.
    with _forward_of(head, partial(_read_chunks, head.forward, read, targets)):
        return head(states)


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else for a moment, hooks and all."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _read_chunks(
    head: Callable[[Tensor], Tensor], read: Read, targets: Tensor, states: Tensor
) -> tuple[Tensor, ...]:
    def read_chunk(some: Tensor, token_ids: Tensor) -> tuple[Tensor, ...]:
        return read(_at_least_f32(head(some)), token_ids)

    chunks = [
        checkpoint(read_chunk, some, ids, use_reentrant=False, preserve_rng_state=False)
        for some, ids in zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    return tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are nothing but lm_head(hidden)."""
    config = model.config.get_text_config()
    special = ("final_logit_softcapping", "logit_scale", "logits_scaling", "mup_width_multiplier")
    if any(getattr(config, name, None) for name in special):
        return False
    return getattr(model, "lm_head", None) is model.get_output_embeddings()


def _at_least_f32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
