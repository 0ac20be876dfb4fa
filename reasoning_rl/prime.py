"""Token rewards from an implicit PRM that learns during the run, from verified outcomes alone (PRIME).

    rewards = implicit.token_rewards(rollout)               # (B, T), before this batch was learned from
    metrics |= implicit.update(rollout, scores)             # cross-entropy of outcomes, one pass

The reward model is a language model phi with a frozen reference (`prm/implicit.py`), both on the policy's
tokens: r_t = beta log(phi(token) / ref(token)). It drifts with the policy, which no fixed PRM can, and costs
a second training of the policy's size. Every process holds it whole, and the whole batch; forwards and
gradients are shared out. B rollouts, T tokens. arXiv:2502.01456.
"""

import math
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from data.protocols import Stateful
from prm.implicit import ImplicitPRM
from prm.losses import implicit_cross_entropy
from reasoning_rl.group import returns_to_go
from reasoning_rl.models import disable_dropout
from reasoning_rl.process_config import ImplicitConfig
from reasoning_rl.shares import shares
from reasoning_rl.types import Rollout, Scores


class OnlineImplicitPRM:
    """An implicit PRM and its optimiser. `parts` is what a checkpoint must hold of it."""

    def __init__(
        self,
        prm: ImplicitPRM,
        config: ImplicitConfig,
        accelerator: Accelerator,
        *,
        micro_batch_tokens: int = 16_384,
    ) -> None:
        disable_dropout(prm)
        self.prm = prm.to(accelerator.device).eval()
        self.config = config
        self.accelerator = accelerator
        self.micro_batch_tokens = micro_batch_tokens
        self.optimizer = torch.optim.AdamW(
            prm.policy.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )

    def parts(self) -> dict[str, Stateful]:
        """The reference too: it may be the policy's start, whose folder may be gone on resuming."""
        return {
            "implicit": self.prm,
            "implicit_reference": self.prm.reference,
            "implicit_optimizer": self.optimizer,
        }

    def token_rewards(self, rollout: Rollout) -> Tensor:
        """Return (B, T), 0 off the actions: beta times each token's log-ratio to the reference.

        normalise "max_return": divided by the largest absolute return in the batch, so that returns stay
        within [-1, 1]; the sum over a response orders them as the outcome model does.
        """
        rewards = torch.zeros(rollout.input_ids.shape)
        with torch.no_grad():
            for rows in self._own(rollout.lengths):
                width = int(rollout.lengths[rows].max())
                ratios = self._ratios(rollout, rows, width)
                rewards[rows, :width] = self.config.beta * ratios.float().cpu()
        rewards = self._sum(rewards)  # of other processes' rows this one has 0
        if self.config.normalise == "max_return":
            largest = returns_to_go(rewards, rollout.action_mask).abs().max()
            rewards = rewards / largest.clamp(min=1e-8)  # an untrained model is its reference: all 0
        return rewards

    def update(self, rollout: Rollout, scores: Scores) -> dict[str, float]:
        """Learn sigmoid(beta sum_t log-ratio) = outcome by cross-entropy; return loss and accuracies.

        Responses that nobody could judge are left out. Loss and accuracy (that of the sum's sign) are those
        of the first pass, each minibatch before its own update. A gradient that is not finite is skipped.
        """
        rows = scores.judged.nonzero().squeeze(1)
        num_batches = math.ceil(len(rollout.lengths) / self.config.minibatch_size)
        totals = torch.zeros(2, dtype=torch.float64)
        norms = []
        for epoch in range(self.config.epochs):
            for batch in rows[torch.randperm(len(rows))].tensor_split(num_batches):
                sums, norm = self._update_minibatch(rollout, scores.outcomes, batch)
                totals += sums if epoch == 0 else 0.0
                norms.append(norm)
        loss, right = (self._sum(totals) / max(1, len(rows))).tolist()
        finite = [norm for norm in norms if math.isfinite(norm)]
        return {
            "implicit/loss": loss,
            "implicit/accuracy": right,
            "implicit/grad_norm": sum(finite) / max(1, len(finite)),
            "implicit/skipped": float(len(norms) - len(finite)),
        }

    def _update_minibatch(self, rollout: Rollout, outcomes: Tensor, batch: Tensor) -> tuple[Tensor, float]:
        """One optimiser update; return (summed loss and hits of this process's rows, gradient norm)."""
        sums = torch.zeros(2, dtype=torch.float64)
        device = self.accelerator.device
        with torch.enable_grad():
            for group in self._own(rollout.lengths[batch]) if len(batch) else ():
                rows = batch[group]
                ratios = self._ratios(rollout, rows, int(rollout.lengths[rows].max()))
                loss, stats = implicit_cross_entropy(
                    ratios.sum(1), outcomes[rows].to(device), beta=self.config.beta
                )
                (loss / len(batch)).backward()
                sums += torch.stack([loss.detach().cpu().double(), stats.correct.cpu().double()])
        parameters = [p for p in self.prm.policy.parameters() if p.requires_grad]
        if self.accelerator.num_processes > 1:
            for parameter in parameters:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(gradient, "sum")
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return sums, norm

    def _own(self, lengths: Tensor) -> Iterator[Tensor]:
        """Row indices of this process's micro-batches."""
        place = {"rank": self.accelerator.process_index, "world": self.accelerator.num_processes}
        yield from (rows for rows, counts in shares(lengths, self.micro_batch_tokens, **place) if counts)

    def _ratios(self, rollout: Rollout, rows: Tensor, width: int) -> Tensor:
        """Log-ratios (rows, width) of the actions, 0 elsewhere."""
        device = self.accelerator.device
        input_ids = rollout.input_ids[rows, :width].to(device)
        real = torch.arange(width, device=device) < rollout.lengths[rows, None].to(device)
        return self.prm.token_log_ratios(input_ids, real) * rollout.action_mask[rows, :width].to(device)

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor.to(self.accelerator.device), "sum").cpu()
