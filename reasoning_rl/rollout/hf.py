"""Rollouts with a transformers model in this process.

Not an inference server: one decode loop over a key-value cache, with prompts grouped by length,
shared prompts prefilled once for all their samples, and finished rows dropped from the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from data.errors import UserError
from data.schema import Sample, Sampling
from data.steps import decode
from reasoning_rl.rollout.samples import check_tokenizer, encode_prompts, make_sample


class HFGenerator:
    """A TextGenerator over a causal LM. Holds the model by reference: trained weights are seen at once.

    Logprobs are those of the distribution sampled from (after temperature, top-p and top-k).
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, *, max_batch: int = 256, seed: int = 0
    ) -> None:
        check_tokenizer(tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch = max_batch
        self.version = 0
        self.random = torch.Generator(device=model.device).manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"random": self.random.get_state(), "version": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random.set_state(state["random"].cpu())
        self.version = state["version"]

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Sample]]:
        """Return `sampling.n` samples a prompt, in order.

        Raises UserError when a prompt leaves no room for a token in the model's context.
        """
        if not prompts:
            return []
        if sampling.seed is not None:
            self.random.manual_seed(sampling.seed)
        encoded = encode_prompts(self.tokenizer, prompts)
        self._check_room(encoded)
        order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
        samples: list[list[Sample]] = [[] for _ in prompts]
        per_batch = max(1, self.max_batch // sampling.n)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(order), per_batch):
                    rows = order[start : start + per_batch]
                    drawn = self._decode([encoded[i] for i in rows], sampling)
                    for k, (token_ids, logprobs) in enumerate(drawn):
                        i = rows[k // sampling.n]
                        samples[i].append(
                            make_sample(
                                self.tokenizer, encoded[i], token_ids, logprobs, sampling, self.version
                            )
                        )
        finally:
            self.model.train(was_training)
        return samples

    def _check_room(self, encoded: list[list[int]]) -> None:
        context = getattr(self.model.config, "max_position_embeddings", None)
        for i, ids in enumerate(encoded):
            if context is not None and len(ids) >= context:
                raise UserError(
                    f"prompt {i} has {len(ids)} tokens but the model's context is {context}; "
                    "shorten it or use a model with a longer context"
                )

    def _decode(self, prompts: list[list[int]], sampling: Sampling) -> list[tuple[list[int], list[float]]]:
        """Return (token ids, logprobs) of n continuations of each prompt, a prompt's samples side by side."""
        device = self.model.device
        width = max(len(ids) for ids in prompts)
        context = (
            getattr(self.model.config, "max_position_embeddings", None) or width + sampling.max_new_tokens
        )
        budget = min(sampling.max_new_tokens, context - width)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        input_ids = torch.full((len(prompts), width), pad, device=device)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(prompts):  # left padding: every row's next token is in the last column
            input_ids[row, width - len(ids) :] = torch.tensor(ids, device=device)
            mask[row, width - len(ids) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        logits = self._forward(input_ids, mask, positions, cache)
        if sampling.n > 1:
            cache.batch_repeat_interleave(sampling.n)
            logits = logits.repeat_interleave(sampling.n, 0)
            mask = mask.repeat_interleave(sampling.n, 0)
            positions = positions.repeat_interleave(sampling.n, 0)
        total = logits.shape[0]
        alive = torch.arange(total, device=device)
        tokens = torch.full((total, budget), pad, device=device)
        token_logprobs = torch.zeros(total, budget, device=device)
        lengths = torch.full((total,), budget, device=device)
        position = positions[:, -1:]
        for t in range(budget):
            next_ids, next_logprobs = draw(logits, sampling, self.random)
            tokens[alive, t] = next_ids
            token_logprobs[alive, t] = next_logprobs
            ended = self._ended(next_ids, tokens, alive, t, sampling)
            lengths[alive[ended]] = t + 1
            if bool(ended.all()) or t + 1 == budget:
                break
            if bool(ended.any()):
                keep = (~ended).nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                alive, mask, position, next_ids = alive[keep], mask[keep], position[keep], next_ids[keep]
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
            position = position + 1
            logits = self._forward(next_ids[:, None], mask, position, cache)
        rows = zip(tokens.tolist(), token_logprobs.tolist(), lengths.tolist(), strict=True)
        return [(ids[:length], logprobs[:length]) for ids, logprobs, length in rows]

    def _forward(self, input_ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        full = bool(mask.all())  # without padding the fast causal path needs no mask
        output = self.model(
            input_ids=input_ids,
            attention_mask=None if full else mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _ended(self, next_ids: Tensor, tokens: Tensor, alive: Tensor, t: int, sampling: Sampling) -> Tensor:
        ended = next_ids == self.tokenizer.eos_token_id
        if sampling.stop:
            for row, index in enumerate(alive.tolist()):
                if not ended[row]:
                    text = decode(self.tokenizer, tokens[index, : t + 1].tolist())
                    ended[row] = any(stop in text for stop in sampling.stop)
        return ended


def draw(logits: Tensor, sampling: Sampling, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (token ids (B,), their logprobs (B,)) drawn from (B, V) logits; temperature 0 takes the largest.

    Greedy logprobs are those of the untempered distribution.
    """
    if sampling.temperature == 0:
        logprobs = logits.log_softmax(-1)
        token_ids = logits.argmax(-1)
        return token_ids, logprobs.gather(-1, token_ids[:, None]).squeeze(-1)
    logits = logits / sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        logits = truncate(logits, top_k=sampling.top_k, top_p=sampling.top_p)
    logprobs = logits.log_softmax(-1)
    token_ids = torch.multinomial(logprobs.exp(), 1, generator=random)
    return token_ids.squeeze(-1), logprobs.gather(-1, token_ids).squeeze(-1)


def truncate(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Return (B, V) logits with everything outside the top k and the nucleus of mass top_p set to -inf."""
    ordered, index = logits.sort(-1, descending=True)
    drop = torch.zeros_like(ordered, dtype=torch.bool)
    if top_k:
        drop[..., top_k:] = True
    if top_p < 1:
        mass = ordered.softmax(-1).cumsum(-1)
        drop[..., 1:] |= mass[..., :-1] >= top_p  # the token that crosses top_p stays in
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), float("-inf"))
