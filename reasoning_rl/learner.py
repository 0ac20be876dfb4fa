"""What a PPO run trains and carries along: models, optimisers, running statistics; checkpoints hold all."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from reasoning_rl.config import PPOConfig
from reasoning_rl.models import Actor, Critic, disable_dropout
from reasoning_rl.moments import AdaptiveKL, FixedKL, RunningMoments, ValueNormalizer


@dataclass
class SkipCounter:
    """Updates skipped in a row for a non-finite loss. Stateful: five in a row may span a restart."""

    in_a_row: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.in_a_row = state["in_a_row"]


class Learner:
    """The trained state of a run: actor, critic, reference, their optimisers and all running statistics.

    critic: None for the algorithms without one; nothing of a critic is then held, trained or saved.
    """

    def __init__(
        self,
        config: PPOConfig,
        accelerator: Accelerator,
        *,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        critic: PreTrainedModel | None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.world = accelerator.num_processes
        device = accelerator.device
        for model in (policy, reference, critic):
            # Dropout would make the first ratio differ from 1 and the values inconsistent.
            if model is not None:
                disable_dropout(model)
        self.policy = policy.to(device)
        self.reference = Actor(reference.to(device)).eval().requires_grad_(False)
        self.actor, self.actor_optimizer = accelerator.prepare(
            Actor(policy), _adamw(policy, config.update.learning_rate, config)
        )
        self.critic_model, self.critic, self.critic_optimizer = critic, None, None
        if critic is not None:
            self.critic_model = critic.to(device)
            self.critic, self.critic_optimizer = accelerator.prepare(
                Critic(critic), _adamw(critic, config.critic.learning_rate, config)
            )
        self.moments = RunningMoments()
        self.value_norm = ValueNormalizer()
        kl = config.kl
        self.kl = AdaptiveKL(kl.coef, target=kl.target, horizon=kl.horizon) if kl.target else FixedKL(kl.coef)
        self.skips = SkipCounter()

    def parts(self) -> dict[str, Any]:
        """Everything with state, for checkpoints. A frozen reference too: its folder may be gone."""
        parts = {
            "policy": self.policy,
            "reference": self.reference,
            "actor_optimizer": self.actor_optimizer,
            "moments": self.moments,
            "kl": self.kl,
            "skips": self.skips,
        }
        if self.critic is None:
            return parts
        critic = {"critic": self.critic_model, "critic_optimizer": self.critic_optimizer}
        return parts | critic | {"value_norm": self.value_norm}

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum over processes, wherever the tensor lives (collectives of GPUs take only theirs)."""
        return self.accelerator.reduce(tensor.to(self.accelerator.device), "sum").to(tensor.device)

    def largest(self, count: int) -> int:
        """Maximum over processes."""
        return int(self.accelerator.gather(torch.tensor([count], device=self.accelerator.device)).max())

    def set_learning_rates(self, iteration: int) -> None:
        """Warm-up over the first iterations, then constant or down to a tenth."""
        update = self.config.update
        factor = min(1.0, iteration / (update.warmup_iterations + 1))
        if update.schedule == "linear":
            factor *= 1.0 - 0.9 * (iteration - 1) / max(1, self.config.iterations - 1)
        for optimizer, rate in (
            (self.actor_optimizer, update.learning_rate),
            (self.critic_optimizer, self.config.critic.learning_rate),
        ):
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = rate * factor

    @torch.no_grad()
    def update_reference(self) -> None:
        """reference <- (1 - eta) reference + eta actor (arXiv 2404.10719, section 5)."""
        eta = self.config.reference_ema
        if eta > 0:
            for old, new in zip(self.reference.model.parameters(), self.policy.parameters(), strict=True):
                old.lerp_(new.to(old.dtype), eta)


def _adamw(model: nn.Module, learning_rate: float, config: PPOConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(),
        lr=learning_rate,
        betas=config.update.betas,
        weight_decay=config.update.weight_decay,
        fused=True,
    )
