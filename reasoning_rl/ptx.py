"""Demonstrations for PPO-ptx: next-token loss on them keeps abilities that the reward says nothing about."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reasoning_rl.functional import next_token_loss
from reasoning_rl.sft import EncodedPair, NextToken

if TYPE_CHECKING:
    from reasoning_rl.learner import Learner


class Demonstrations:
    """A stream of batches, the same on every process, of which each takes its share. Stateful."""

    def __init__(self, pairs: Sequence[EncodedPair], *, batch_size: int, seed: int) -> None:
        self.pairs = pairs
        self.batch_size = batch_size
        self.random = torch.Generator().manual_seed(seed)

    def loss(self, learner: "Learner") -> Tensor:
        """Return this process's part of a fresh batch's next-token loss per token (scalar, nats)."""
        rows = torch.randint(len(self.pairs), (self.batch_size,), generator=self.random).tolist()
        batch = NextToken().collate([self.pairs[row] for row in rows])
        num_tokens = batch["target_mask"].sum().double()
        own = slice(learner.accelerator.process_index, None, learner.world)
        batch = {name: values[own] for name, values in batch.items()}
        mask = batch["target_mask"].to(learner.accelerator.device)
        logprobs, _ = learner.actor(batch["input_ids"].to(mask.device), mask)
        loss, _ = next_token_loss(logprobs, mask, num_tokens=num_tokens.to(mask.device))
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"random": self.random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random.set_state(state["random"])
