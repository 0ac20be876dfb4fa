"""Several solutions in one row without padding, each attending only to itself.

Flash attention reads the cumulative lengths itself. For the other backends `varlen_attention` calls the
causal kernel once a solution; it is registered with transformers under VARLEN. Linear layers, most of the
work, run on the one long row either way. Packing pays where padding is large or kernels are launched from
afar (GPUs); on a CPU length-sorted batches waste so little that the loop costs more than it saves.

    with packed_attention(model):
        hidden = model(**pack(solutions).forward_kwargs())
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

VARLEN = "stepwell_varlen"


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the boundaries say it all
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each packed solution. query (1, heads, T, D), key, value (1, kv heads, T, D),
    cu_seq_lens_q (R + 1,); returns (1, T, heads, D). Without boundaries the rows are taken whole, as the
    validation between packed updates needs."""
    sizes = [query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.diff().tolist()
    parts = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    outputs = [
        nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
        )
        for q, k, v in parts
    ]
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, lambda *args, **kwargs: None)  # noqa: ARG005 - no mask at all


def reads_boundaries(model: Any) -> bool:
    """Return whether the model's attention kernel takes packed solutions by itself (flash attention)."""
    return str(getattr(model.config, "_attn_implementation", "")).startswith("flash")


def sliding_window(model: Any) -> int | None:
    """Return how many tokens a layer of the model looks back at most; None when every layer sees all.

    `varlen_attention` lets every layer see all, so packing changes such a model's answers beyond its window.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if not getattr(config, "use_sliding_window", True) or (kinds and "sliding_attention" not in kinds):
        return None
    return getattr(config, "sliding_window", None)


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Let `model` attend within packed solutions; its own attention is restored afterwards."""
    before = model.config._attn_implementation
    if reads_boundaries(model):
        yield
        return
    model.set_attn_implementation(VARLEN)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def packed_arguments(lengths: Sequence[int] | Tensor, device: Any = None) -> dict[str, Any]:
    """Return the forward's arguments beside input_ids (1, T) for solutions of these lengths."""
    sizes = torch.as_tensor(lengths, device=device)
    ends = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()
    starts = ends[:-1].repeat_interleave(sizes)
    longest = int(sizes.max())
    return {
        "position_ids": (torch.arange(int(ends[-1]), device=device) - starts)[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
    }
