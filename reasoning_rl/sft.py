"""Supervised fine-tuning on prompt-response pairs: next-token loss on the response and its end token only.

The LM head runs on the positions that are supervised, in chunks: no (B, T, V) tensor exists. No packing:
sequences are length-sorted under a token budget instead, which leaves attention and positions untouched.

    encoded = encode_pairs(tokenizer, [("2 + 2 =", " 4")], max_length=512)
    fit(model, encoded, NextToken(), FitConfig(), accelerator=accelerator, run_dir="runs/sft", log=log)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from data.errors import UserError
from data.protocols import MetricLog
from data.task_readers import read_sft
from prm.batching import drop_overlong
from prm.checkpoint import refuse_used_folder
from prm.fit import check_fit, fit
from prm.lora import add_adapters, merge
from prm.model import check_vocabulary, load_tokenizer
from prm.next_token import read_next_tokens
from prm.origin import check_origin, save_trained, start_language_model
from prm.sharding import compute_dtype
from reasoning_rl.functional import token_logprobs
from reasoning_rl.train_config import SFTConfig


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of a prompt followed by its response and the end-of-sequence token."""

    input_ids: list[int]
    prompt_length: int
    id: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)


class NextToken:
    """Cross-entropy of the response tokens, summed.

    B rows, T tokens.
    """

    def collate(self, examples: Sequence[EncodedPair]) -> dict[str, Tensor]:
        """Return input_ids, attention_mask and target_mask (B, T): True on tokens to be predicted."""
        width = max(len(example) for example in examples)
        input_ids = torch.zeros(len(examples), width, dtype=torch.long)
        attention_mask = torch.zeros(len(examples), width, dtype=torch.bool)
        target_mask = torch.zeros(len(examples), width, dtype=torch.bool)
        for row, example in enumerate(examples):
            input_ids[row, : len(example)] = torch.tensor(example.input_ids)
            attention_mask[row, : len(example)] = True
            # Nothing stands before the first token, so it is never a target.
            target_mask[row, max(example.prompt_length, 1) : len(example)] = True
        return {"input_ids": input_ids, "attention_mask": attention_mask, "target_mask": target_mask}

    def count(self, batch: Mapping[str, Tensor]) -> float:
        return float(batch["target_mask"].sum())

    def loss(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return minus the sum of the target tokens' logprobs, over the whole batch (the loop divides by
        `count`), and how many of them are the likeliest token."""
        logprobs, is_right = read_next_tokens(model, batch, _read)  # (supervised tokens,) each
        return -logprobs.sum(), {"accuracy": is_right.sum()}


def _read(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, ...]:
    """Log-probability of each token, and whether it is the likeliest."""
    return token_logprobs(logits, token_ids), logits.detach().argmax(-1) == token_ids


def encode_pairs(
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    max_length: int | None = None,
    *,
    overlong: Literal["error", "skip"] = "error",
    ids: Sequence[str] | None = None,
) -> list[EncodedPair]:
    """Return prompt ids (with the tokenizer's BOS, if it has one), response ids and EOS of every pair.

    Prompt and response are tokenised apart, as a generator does that is given the prompt alone. Nothing is
    truncated: longer than `max_length` is a UserError naming the pair, or the pair is left out ("skip").
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, so a response cannot end; set tokenizer.eos_token")
    if not pairs:
        return []
    prompts = prompt_ids(tokenizer, [prompt for prompt, _ in pairs])
    responses = tokenizer([response for _, response in pairs], add_special_tokens=False)["input_ids"]
    encoded = []
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        name = ids[index] if ids else f"pair {index}"
        encoded.append(EncodedPair([*prompt, *response, tokenizer.eos_token_id], len(prompt), name))
        if len(encoded[-1]) < 2:
            raise UserError(f"{name}: prompt and response are both empty; remove it")
    if max_length is None:
        return encoded
    return drop_overlong(encoded, max_length, overlong)[0]


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts that a response follows: with the tokenizer's BOS once (a chat template writes
    its own), and nothing that closes the text."""
    if not prompts:
        return []
    bos = tokenizer.bos_token
    own = bool(bos) and all(prompt.startswith(bos) for prompt in prompts)
    encoded = tokenizer(list(prompts), add_special_tokens=not own, return_special_tokens_mask=True)
    out = []
    for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        # A template that closes the prompt with EOS or SEP would end the text before the response.
        while len(ids) > 1 and special[len(ids) - 1] and ids[-1] in _closing(tokenizer):
            ids = ids[:-1]
        out.append(ids)
    return out


def train_sft(
    config: SFTConfig,
    *,
    accelerator: Any,
    log: MetricLog,
    validate: Callable[[Any], Mapping[str, float]] | None = None,
    resume: bool = False,
) -> Path:
    """Run supervised fine-tuning as configured; return the folder of the trained model."""
    check_origin(config)
    refuse_used_folder(config.output_dir, resume=resume)
    pairs = read_sft(config.data, split=config.split)
    check_fit(config.fit, len(pairs), accelerator.num_processes)
    tokenizer = load_tokenizer(config.tokenizer or config.model or "")
    encoded = encode_pairs(tokenizer, pairs, config.max_length, overlong=config.fit.overlong)
    model = start_language_model(config, config.fit.seed)
    check_vocabulary(model, tokenizer)
    torch.manual_seed(config.fit.seed)
    frozen = compute_dtype(accelerator)
    adapters = add_adapters(model, config.lora, frozen=frozen) if config.lora.rank else None
    fit(
        model,
        encoded,
        NextToken(),
        config.fit,
        accelerator=accelerator,
        run_dir=config.output_dir,
        log=log,
        validate=validate,
        saved=adapters,
        resume=resume,
    )
    if adapters:
        merge(model)
    return save_trained(config.output_dir, model, tokenizer, accelerator)


def _closing(tokenizer: Any) -> set[int | None]:
    return {tokenizer.eos_token_id, tokenizer.sep_token_id}
