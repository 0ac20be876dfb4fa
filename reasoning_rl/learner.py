"""What a PPO run trains and carries along: models, optimisers, running statistics; checkpoints hold all."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from prm.sharding import compute_dtype, cuts_parameters, prepare
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
        samples_here: bool = True,
    ) -> None:
        """samples_here: off where an engine outside samples; a whole copy then stays in host memory."""
        self.config = config
        self.accelerator = accelerator
        self.world = accelerator.num_processes
        device = accelerator.device
        for model in (policy, reference, critic):
            # Dropout would make the first ratio differ from 1 and the values inconsistent.
            if model is not None:
                disable_dropout(model)
        # Where weights are cut up, nothing can be sampled from or exported: a whole copy follows the actor.
        self._follows = cuts_parameters(accelerator)
        trained = copy.deepcopy(policy).to(device) if self._follows else policy
        self.policy = policy.to(device) if samples_here or not self._follows else policy
        frozen = Actor(reference.to(device)).eval().requires_grad_(False)
        if config.reference_ema == 0:  # an average moves by less than bf16 can tell
            frozen.to(compute_dtype(accelerator))
        self.reference = prepare(frozen, None, owner=frozen, accelerator=accelerator)
        options = {
            "accelerator": accelerator,
            "max_grad_norm": config.update.max_grad_norm or math.inf,
        }
        optimizer = _adamw(trained, config.update.learning_rate, config)
        self.actor = prepare(Actor(trained), optimizer, owner=trained, **options)
        self.critic_model, self.critic = critic, None
        if critic is not None:
            self.critic_model = critic.to(device)
            optimizer = _adamw(critic, config.critic.learning_rate, config)
            self.critic = prepare(Critic(critic), optimizer, owner=critic, **options)
        self.moments = RunningMoments()
        self.value_norm = ValueNormalizer()
        kl = config.kl
        self.kl = AdaptiveKL(kl.coef, target=kl.target, horizon=kl.horizon) if kl.target else FixedKL(kl.coef)
        self.skips = SkipCounter()

    def parts(self) -> dict[str, Any]:
        """Everything with state, for checkpoints. A frozen reference too: its folder may be gone."""
        parts = {
            "policy": self.actor.weights,
            "reference": self.reference.weights,
            "actor_optimizer": self.actor.moments,
            "moments": self.moments,
            "kl": self.kl,
            "skips": self.skips,
        }
        if self.critic is None:
            return parts
        critic = {"critic": self.critic.weights, "critic_optimizer": self.critic.moments}
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
        for trained, rate in (
            (self.actor, update.learning_rate),
            (self.critic, self.config.critic.learning_rate),
        ):
            for group in trained.optimizer.param_groups if trained is not None else ():
                group["lr"] = rate * factor

    def update_reference(self) -> None:
        """reference <- (1 - eta) reference + eta actor (arXiv 2404.10719, section 5)."""
        if self.config.reference_ema > 0:
            self.reference.follow(self.actor, self.config.reference_ema)

    @torch.no_grad()
    def refresh_policy(self) -> None:
        """Bring the whole copy of the policy up to date, where there is one. Call it on every process."""
        if self._follows:
            values = self.actor.whole_parameters()
            for whole, (_, value) in zip(self.policy.parameters(), values, strict=True):
                whole.copy_(value)


def _adamw(model: nn.Module, learning_rate: float, config: PPOConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(),
        lr=learning_rate,
        betas=config.update.betas,
        weight_decay=config.update.weight_decay,
        fused=True,
    )
