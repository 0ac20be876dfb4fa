"""What a frozen reference says about pairs: computed once and kept, so that no second model is needed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from prm.batching import cut_by_tokens
from prm.next_token import read_next_tokens
from reasoning_rl.functional import token_logprobs
from reasoning_rl.preference_examples import EncodedPreference, collate_preferences


def response_logprobs(model: PreTrainedModel, batch: Any) -> Tensor:
    """Return (B,): each row's log-probability, summed over the tokens under `target_mask`."""
    mask = batch["target_mask"]
    (logprobs,) = read_next_tokens(model, batch, lambda logits, ids: (token_logprobs(logits, ids),))  # (N,)
    rows = mask.nonzero()[:, 0]
    return logprobs.new_zeros(len(mask)).index_add(0, rows, logprobs)


@torch.no_grad()
def reference_logprobs(
    model: PreTrainedModel, examples: Sequence[EncodedPreference], *, max_tokens: int = 8192
) -> list[tuple[float, float]]:
    """Return (chosen, rejected) log-probabilities of every pair under `model`, in length-sorted batches."""
    lengths = [2 * len(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda row: -lengths[row])
    out: list[tuple[float, float]] = [(0.0, 0.0)] * len(examples)
    was_training = model.training
    model.eval()
    for rows in cut_by_tokens(order, lengths, max_tokens):
        batch = collate_preferences([examples[row] for row in rows])
        values = response_logprobs(model, {k: v.to(model.device) for k, v in batch.items()}).cpu()
        for row, chosen, rejected in zip(rows, values[0::2].tolist(), values[1::2].tolist(), strict=True):
            out[row] = (chosen, rejected)
    model.train(was_training)
    return out


def cache_reference(
    model: PreTrainedModel,
    examples: Sequence[EncodedPreference],
    *,
    path: str | Path | None = None,
    max_tokens: int = 8192,
    accelerator: Any = None,
) -> list[EncodedPreference]:
    """Return the examples with what the reference `model` says about them.

    path: a file that keeps the answers; read instead of asking when the same weights were asked about the
    same pairs before. accelerator: several processes share the work.
    """
    digest = _digest(model, examples)
    known = _read(path, digest)
    if known is None:
        known = _ask(model, examples, max_tokens, accelerator)
        if path is not None and (accelerator is None or accelerator.is_main_process):
            _write(Path(path), known, digest)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return [replace(e, reference=(a, b)) for e, (a, b) in zip(examples, known.tolist(), strict=True)]


def _ask(
    model: PreTrainedModel, examples: Sequence[EncodedPreference], max_tokens: int, accelerator: Any
) -> Tensor:
    """(N, 2), every process asking about its share."""
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    known = torch.zeros(len(examples), 2, dtype=torch.float64)
    mine = reference_logprobs(model, examples[rank::world], max_tokens=max_tokens)
    known[rank::world] = torch.tensor(mine, dtype=torch.float64).reshape(-1, 2)
    return accelerator.reduce(known.to(accelerator.device), "sum").cpu() if accelerator else known


def _digest(model: PreTrainedModel, examples: Sequence[EncodedPreference]) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        # Sums tell two sets of weights apart without a copy of them.
        sums = [float(value.double().sum()), float(value.double().abs().sum())]
        digest.update(json.dumps([name, list(value.shape), sums]).encode())
    for e in examples:
        digest.update(json.dumps([e.chosen_ids, e.rejected_ids, e.prompt_length]).encode())
    return digest.hexdigest()


def _read(path: str | Path | None, digest: str) -> Tensor | None:
    if path is None or not Path(path).exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            return file.get_tensor("logprobs") if (file.metadata() or {}).get("digest") == digest else None
    except (SafetensorError, OSError):
        return None  # torn by a crash: made anew


def _write(path: Path, known: Tensor, digest: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    save_file({"logprobs": known}, str(temporary), metadata={"digest": digest})
    temporary.replace(path)
