"""Rollouts with a transformers model in this process.

Not an inference server: one decode loop over a key-value cache that is written in place, with prompts grouped
by length, shared prompts prefilled once for all their samples, and finished rows dropped from the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from data.schema import Sample, Sampling
from data.steps import decode
from prm.compiled import eagerly
from prm.sums import running_sum
from reasoning_rl.rollout.samples import check_tokenizer, encode_prompts, make_sample, too_long

ROOM = 64
"""Tokens that a cache grows by at a time."""
FULL_ENOUGH = 7 / 8
"""Finished rows leave the batch once no more than this share still runs: each time copies the cache."""


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

        A prompt that leaves no room in the model's context gives samples without a token. Raises UserError
        for an empty prompt.
        """
        if not prompts:
            return []
        if sampling.seed is not None:
            self.random.manual_seed(sampling.seed)
        encoded = encode_prompts(self.tokenizer, prompts)
        fitting = [i for i, ids in enumerate(encoded) if self._room(ids, sampling) > 0]
        order = sorted(fitting, key=lambda i: len(encoded[i]))
        samples: list[list[Sample]] = [too_long(ids, sampling, self.version) for ids in encoded]
        for i in fitting:
            samples[i] = []
        per_batch = max(1, self.max_batch // sampling.n)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), eagerly(self.model):
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

    def _room(self, ids: list[int], sampling: Sampling) -> int:
        """Tokens that may follow a prompt."""
        context = getattr(self.model.config, "max_position_embeddings", None)
        room = sampling.max_new_tokens if context is None else context - len(ids)
        return min(sampling.max_new_tokens, room)

    def _decode(self, prompts: list[list[int]], sampling: Sampling) -> list[tuple[list[int], list[float]]]:
        """Return (token ids, logprobs) of n continuations of each prompt, a prompt's samples side by side."""
        device = self.model.device
        width = max(len(ids) for ids in prompts)
        rooms = [self._room(ids, sampling) for ids in prompts for _ in range(sampling.n)]
        room, budget = torch.tensor(rooms, device=device), max(rooms)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        input_ids = torch.full((len(prompts), width), pad, device=device)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(prompts):  # left padding: every row's next token is in the last column
            input_ids[row, width - len(ids) :] = torch.tensor(ids, device=device)
            mask[row, width - len(ids) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = roomy_cache(self.model.config)
        logits = self._forward(input_ids, mask, positions, cache)
        if sampling.n > 1:
            cache.batch_repeat_interleave(sampling.n)
            logits = logits.repeat_interleave(sampling.n, 0)
            mask = mask.repeat_interleave(sampling.n, 0)
            positions = positions.repeat_interleave(sampling.n, 0)
        total = logits.shape[0]
        held = torch.arange(total, device=device)  # the sample that each row of the cache is of
        live = torch.arange(total, device=device)  # the rows whose samples have not ended
        tokens = torch.full((total, budget), pad, device=device)
        token_logprobs = torch.zeros(total, budget, device=device)
        lengths = room.clone()
        position = positions[:, -1:]
        for t in range(budget):
            drawn = logits if len(live) == len(held) else logits[live]
            next_ids, next_logprobs = draw(drawn, sampling, self.random)
            running = held[live]
            tokens[running, t] = next_ids
            token_logprobs[running, t] = next_logprobs
            ended = self._ended(next_ids, tokens, running, t, sampling)
            lengths[running[ended]] = t + 1
            live = live[~ended & (room[running] > t + 1)]
            if not len(live):
                break
            if len(live) <= FULL_ENOUGH * len(held):
                cache.batch_select_indices(live)
                held, mask, position = held[live], mask[live], position[live]
                live = torch.arange(len(held), device=device)
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
            position = position + 1
            logits = self._forward(tokens[held, t][:, None], mask, position, cache)
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

    def _ended(self, next_ids: Tensor, tokens: Tensor, running: Tensor, t: int, sampling: Sampling) -> Tensor:
        ended = next_ids == self.tokenizer.eos_token_id
        if sampling.stop:
            # The stop string ends in the newest token; a token holds a character at least, but for a few.
            first = max(0, t - max(map(len, sampling.stop)) - 8)
            for row, ids in enumerate(tokens[running, first : t + 1].tolist()):
                if not ended[row]:
                    text = decode(self.tokenizer, ids)
                    ended[row] = any(stop in text for stop in sampling.stop)
        return ended


class RoomyLayer(DynamicLayer):
    """A layer of the key-value cache with room behind its tokens, so that a new one moves no other.

    transformers' own joins old and new, which copies every key and value for every token. Here `keys` and
    `values` (rows, heads, tokens, D) are views into room for up to ROOM tokens more.
    """

    rooms: list[Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (rows, heads, new tokens, D); return those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not start or end > self.rooms[0].shape[-2]:
            size = (*key_states.shape[:-2], end + ROOM)
            rooms = [state.new_empty(*size, state.shape[-1]) for state in (key_states, value_states)]
            if start:
                assert self.keys is not None and self.values is not None
                rooms[0][..., :start, :], rooms[1][..., :start, :] = self.keys, self.values
            self.rooms = rooms
        self.rooms[0][..., start:end, :], self.rooms[1][..., start:end, :] = key_states, value_states
        return self._show(end)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (room[..., :length, :] for room in self.rooms)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        if length := self.get_seq_length():
            self.rooms = [room.repeat_interleave(repeats, dim=0) for room in self.rooms]
            self._show(length)

    def batch_select_indices(self, indices: Tensor) -> None:
        if length := self.get_seq_length():
            self.rooms = [room[indices] for room in self.rooms]
            self._show(length)


def roomy_cache(config: Any) -> DynamicCache:
    """Return transformers' cache for a model, whose plain layers have room; others (sliding ones) stay."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


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
    # Where a uniform number falls in the distribution function: one random number a row, where multinomial
    # draws one for every token of the vocabulary. In float64, so that rare tokens keep their share.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    mass = running_sum(logprobs.exp(), dtype=wide)
    total = mass[:, -1:]
    point = total * torch.rand(total.shape, generator=random, device=logits.device, dtype=wide)
    # Below the total even when rounded: a token of no mass can then not be met.
    point = torch.minimum(point, total.nextafter(torch.zeros_like(total)))
    token_ids = torch.searchsorted(mass, point, right=True)
    return token_ids.squeeze(-1), logprobs.gather(-1, token_ids).squeeze(-1)


def truncate(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Return (B, V) logits with everything outside the top k and the nucleus of mass top_p set to -inf."""
    ordered, index = logits.sort(-1, descending=True)
    drop = torch.zeros_like(ordered, dtype=torch.bool)
    if top_k:
        drop[..., top_k:] = True
    if top_p < 1:
        mass = running_sum(ordered.softmax(-1))
        drop[..., 1:] |= mass[..., :-1] >= top_p  # the token that crosses top_p stays in
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), float("-inf"))
