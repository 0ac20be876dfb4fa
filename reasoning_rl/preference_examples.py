"""Pairs of responses as token ids, for every objective that learns from them. B = 2N rows, T tokens."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from data.preference_readers import read_preferences, transcript
from data.schema import Preference
from prm.model import EncodedSolution, pad_right
from reasoning_rl.sft import prompt_ids
from reasoning_rl.train_config import PairsConfig


@dataclass(frozen=True, slots=True)
class EncodedPreference:
    """Token ids of both texts, prompt included, end token included where the response ends."""

    chosen_ids: list[int]
    rejected_ids: list[int]
    prompt_length: int
    """Tokens of prompt and shared prefix, the same in both: no loss is on them."""
    id: str = ""
    reference: tuple[float, float] | None = None
    """Reference's log-probability of the chosen and the rejected response."""

    def __len__(self) -> int:
        """Tokens of the longer side; a pair takes two rows of it."""
        return max(len(self.chosen_ids), len(self.rejected_ids))


def collate_preferences(examples: Sequence[EncodedPreference]) -> dict[str, Tensor]:
    """Return input_ids, attention_mask and target_mask (B, T), right-padded; row 2k: chosen of pair k."""
    sides = [ids for example in examples for ids in (example.chosen_ids, example.rejected_ids)]
    input_ids, attention_mask = pad_right([EncodedSolution(ids, []) for ids in sides])
    # Nothing stands before the first token, so it is never a target.
    prompt_lengths = torch.tensor([max(e.prompt_length, 1) for e in examples]).repeat_interleave(2)
    places = torch.arange(input_ids.shape[1])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "target_mask": attention_mask & (places[None] >= prompt_lengths[:, None]),
    }


def encode_preferences(
    tokenizer: Any, pairs: Sequence[Preference], max_length: int | None = None, *, cut_prompt: bool = False
) -> list[EncodedPreference]:
    """Return the token ids of every pair. The prompt is tokenised apart from the response, as in sampling;
    prefix and continuation are one text, and a token that holds both's characters counts as the latter's.

    max_length: with cut_prompt, longer pairs lose the oldest tokens of their prompt; nothing else is cut.
    """
    prompts = prompt_ids(tokenizer, [pair.prompt for pair in pairs])
    sides = [
        _continuations(tokenizer, [pair.prefix for pair in pairs], texts, ends)
        for texts, ends in (
            ([pair.chosen for pair in pairs], [pair.chosen_ends for pair in pairs]),
            ([pair.rejected for pair in pairs], [pair.rejected_ends for pair in pairs]),
        )
    ]
    encoded = []
    for index, (pair, prompt, (chosen, kept), (rejected, _)) in enumerate(
        zip(pairs, prompts, *sides, strict=True)
    ):
        shared = next((k for k in range(kept) if chosen[k : k + 1] != rejected[k : k + 1]), kept)
        if cut_prompt and max_length is not None:
            room = max_length - max(len(chosen), len(rejected))
            prompt = prompt[-room:] if room > 0 else []
        name = pair.id or f"pair {index}"
        if not prompt and not (chosen and rejected):
            raise UserError(f"{name}: prompt and a response are both empty; remove it")
        encoded.append(
            EncodedPreference([*prompt, *chosen], [*prompt, *rejected], len(prompt) + shared, name)
        )
    return encoded


def _continuations(
    tokenizer: Any, prefixes: Sequence[str], texts: Sequence[str], ends: Sequence[bool]
) -> list[tuple[list[int], int]]:
    """(ids of prefix and text, with EOS where the response ends; how many tokens are the prefix's alone)."""
    if not texts:
        return []
    whole = [prefix + text for prefix, text in zip(prefixes, texts, strict=True)]
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    out = []
    for prefix, end, ids, offsets in zip(
        prefixes, ends, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        shared = sum(stop <= len(prefix) for _, stop in offsets) if prefix else 0
        out.append(([*ids, tokenizer.eos_token_id] if end else list(ids), shared))
    return out


def split_by_prompt(
    pairs: Sequence[Preference], share: float, seed: int
) -> tuple[list[Preference], list[Preference]]:
    """Return (training, held-out) pairs; all pairs of a prompt fall on the same side."""

    def rank(prompt: str) -> str:
        return hashlib.sha256(f"{seed}:{prompt}".encode("utf-8", "replace")).hexdigest()

    prompts = sorted({pair.prompt for pair in pairs}, key=rank)
    chosen = set(prompts[: round(share * len(prompts))])
    return [p for p in pairs if p.prompt not in chosen], [p for p in pairs if p.prompt in chosen]


def chat_renderer(tokenizer: Any) -> Callable[[Sequence[Mapping[str, str]]], str]:
    """Return how messages become a prompt: the tokenizer's chat template, or a transcript without one."""
    if not getattr(tokenizer, "chat_template", None):
        return transcript
    return lambda messages: tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True
    )


def read_pairs(
    config: PairsConfig, tokenizer: Any, *, seed: int
) -> tuple[list[Preference], list[Preference]]:
    """Return (pairs to learn from, held-out pairs) as the settings ask for them."""
    options: dict[str, Any] = {"prefer": config.prefer, "render": chat_renderer(tokenizer)}
    pairs = read_preferences(config.data, split=config.split, **options)
    if config.eval_data:
        return pairs, read_preferences(config.eval_data, split=config.eval_split, **options)
    return split_by_prompt(pairs, config.holdout, seed)
