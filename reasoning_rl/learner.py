"""What a PPO run trains and carries along: models, optimisers, running statistics; checkpoints hold all."""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from prm.activations import checkpoint_layers
from prm.compiled import compile_layers
from prm.lora import LoraSettings, TrainableState, add_adapters
from prm.sharding import Trained, compute_dtype, cuts_parameters, prepare, require_whole_weights
from reasoning_rl.config import PPOConfig
from reasoning_rl.models import Actor, AdaptersOff, Critic, disable_dropout
from reasoning_rl.moments import AdaptiveKL, FixedKL, RunningMoments, ValueNormalizer
from reasoning_rl.offload import HOST, on_device
from reasoning_rl.phases import Phases


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
        reference: PreTrainedModel | None,
        critic: PreTrainedModel | None,
        samples_here: bool = True,
    ) -> None:
        """reference: none where the policy has adapters (config.lora), which are then off for it.
        samples_here: off where an engine outside samples; a whole copy then stays in host memory."""
        assert (reference is None) == bool(config.lora.rank)
        self.config = config
        self.accelerator = accelerator
        self.world = accelerator.num_processes
        device = accelerator.device
        for model in (policy, reference, critic):
            # Dropout would make the first ratio differ from 1 and the values inconsistent.
            if model is not None:
                disable_dropout(model)
        for model in (policy, critic) if config.update.gradient_checkpointing else ():
            if model is not None:
                checkpoint_layers(model)
                model.train()
        if config.update.compile_layers:
            require_whole_weights(accelerator, "compiled layers")
        # In host memory: what is packed in four bits never takes its full size on the device.
        self._adapters = self._adapt(policy, config.lora)
        # Where weights are cut up, nothing can be sampled from or exported: a whole copy follows the actor.
        self._follows = cuts_parameters(accelerator)
        trained = copy.deepcopy(policy).to(device) if self._follows else policy
        self.policy = policy.to(device) if samples_here or not self._follows else policy
        options = {
            "accelerator": accelerator,
            "max_grad_norm": config.update.max_grad_norm or math.inf,
        }
        optimizer = _adamw(trained, config.update.learning_rate, config)
        self.actor = prepare(Actor(trained), optimizer, owner=self._adapters or trained, **options)
        if reference is None:
            self.reference: Any = AdaptersOff(self.actor.module)
        else:
            if config.offload == "frozen":
                require_whole_weights(accelerator, "frozen models that are offloaded")
            place = HOST if config.offload == "frozen" else device
            frozen = Actor(reference.to(place)).eval().requires_grad_(False)  # type: ignore[arg-type]  # wrapped
            if config.reference_ema == 0:  # an average moves by less than bf16 can tell
                frozen.to(compute_dtype(accelerator))
            self.reference = prepare(frozen, None, owner=frozen, accelerator=accelerator)
        self.critic_model = critic
        self.critic: Trained | None = None
        if critic is not None:
            self._critic_adapters = self._adapt(critic, config.critic.lora)
            self.critic_model = critic.to(device)
            optimizer = _adamw(critic, config.critic.learning_rate, config)
            self.critic = prepare(Critic(critic), optimizer, owner=self._critic_adapters or critic, **options)
        for model in (trained, reference, critic) if config.update.compile_layers else ():
            if model is not None:
                compile_layers(model)
        self.moments = RunningMoments()
        self.value_norm = ValueNormalizer()
        kl = config.kl
        self.kl = AdaptiveKL(kl.coef, target=kl.target, horizon=kl.horizon) if kl.target else FixedKL(kl.coef)
        self.skips = SkipCounter()
        self.phases = Phases(device)

    def parts(self) -> dict[str, Any]:
        """Everything with state, for checkpoints. A frozen reference too: its folder may be gone. Of what has
        adapters these alone, and what they belong to."""
        parts = {
            "policy": self.actor.weights,
            "actor_optimizer": self.actor.moments,
            "moments": self.moments,
            "kl": self.kl,
            "skips": self.skips,
        }
        parts |= (
            {"policy_base": self._adapters.base} if self._adapters else {"reference": self.reference.weights}
        )
        if self.critic is None:
            return parts
        parts |= {"critic": self.critic.weights, "critic_optimizer": self.critic.moments}
        if self._critic_adapters:
            parts["critic_base"] = self._critic_adapters.base
        return parts | {"value_norm": self.value_norm}

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
            with self.reference_here():
                self.reference.follow(self.actor, self.config.reference_ema)

    def reference_here(self) -> AbstractContextManager[None]:
        """Inside, the reference is on the device, wherever it waits."""
        if self.config.offload == "none" or self.config.lora.rank:
            return nullcontext()
        return on_device([self.reference.module], self.accelerator.device)

    def _adapt(self, model: PreTrainedModel, lora: LoraSettings) -> TrainableState | None:
        """Put adapters on a model where the settings ask for them; their start depends on the seed alone."""
        if not lora.rank:
            return None
        require_whole_weights(self.accelerator, "adapters")
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            return add_adapters(model, lora, frozen=compute_dtype(self.accelerator))

    @torch.no_grad()
    def refresh_policy(self) -> None:
        """Bring the whole copy of the policy up to date, where there is one. Call it on every process."""
        if self._follows:
            values = self.actor.whole_parameters()
            for whole, (_, value) in zip(self.policy.parameters(), values, strict=True):
                whole.copy_(value)


def _adamw(model: nn.Module, learning_rate: float, config: PPOConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learning_rate,
        betas=config.update.betas,
        weight_decay=config.update.weight_decay,
        fused=True,
    )
