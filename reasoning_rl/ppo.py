"""PPO-max on step rewards. `run_ppo` is one flat loop; its body reads as the walk in docs/architecture.md.

    run_ppo(config, policy=..., tokenizer=..., critic=..., scorer=..., grader=..., problems=..., ...)

B rollouts, T tokens. What is built elsewhere (models, scorer, grader, log) is handed in.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.errors import UserError
from data.machine import peak_rss_mb
from data.prompts import get_template
from data.protocols import Grader, MetricLog, StepScorer
from data.schema import Problem, Sampling
from prm.checkpoint import load_latest, refuse_used_folder, rng_state, save_checkpoint
from reasoning_rl.config import PPOConfig
from reasoning_rl.experience import collect, rollout_metrics, score_rollout, task_rewards
from reasoning_rl.functional import explained_variance, gae, kl_estimate, masked_moments, whiten
from reasoning_rl.models import Actor, Critic, disable_dropout
from reasoning_rl.moments import AdaptiveKL, FixedKL, RunningMoments, ValueNormalizer
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.rollout.mismatch import correct_mismatch, mismatch_metrics
from reasoning_rl.types import Experience, Rollout, micro_batches
from reasoning_rl.update import ppo_update

if TYPE_CHECKING:
    from reasoning_rl.ptx import Demonstrations


@dataclass
class ProblemSampler:
    """Draws problems without replacement, epoch after epoch, the same for the same seed. Stateful."""

    problems: Sequence[Problem]
    seed: int
    epoch: int = 0
    position: int = 0

    def next(self, count: int) -> list[Problem]:
        picked: list[Problem] = []
        while len(picked) < count:
            order = self._order()
            take = order[self.position : self.position + count - len(picked)]
            picked += [self.problems[i] for i in take]
            self.position += len(take)
            if self.position == len(order):
                self.epoch, self.position = self.epoch + 1, 0
        return picked

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(len(self.problems), generator=generator).tolist()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it continues."""
        ids = "\n".join(problem.id for problem in self.problems)
        digest = hashlib.sha256(ids.encode()).hexdigest()[:16]
        return {"num_problems": len(self.problems), "seed": self.seed, "problems": digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"cannot resume: {name} was {state[name]} and is now {value}; restore the run's settings "
                    "(config.yaml in its folder) or choose another output_dir"
                )
        self.epoch, self.position = state["epoch"], state["position"]


@dataclass
class SkipCounter:
    """Updates skipped in a row for a non-finite loss. Stateful: five in a row may span a restart."""

    in_a_row: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.in_a_row = state["in_a_row"]


class Learner:
    """The trained state of a run: actor, critic, reference, their optimisers and all running statistics."""

    def __init__(
        self,
        config: PPOConfig,
        accelerator: Accelerator,
        *,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        critic: PreTrainedModel,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.world = accelerator.num_processes
        device = accelerator.device
        for model in (policy, reference, critic):
            # Dropout would make the first ratio differ from 1 and the values inconsistent.
            disable_dropout(model)
        self.policy, self.critic_model = policy.to(device), critic.to(device)
        self.reference = Actor(reference.to(device)).eval().requires_grad_(False)
        actor_optimizer = _adamw(policy, config.update.learning_rate, config)
        critic_optimizer = _adamw(critic, config.critic.learning_rate, config)
        self.actor, self.critic, self.actor_optimizer, self.critic_optimizer = accelerator.prepare(
            Actor(policy), Critic(critic), actor_optimizer, critic_optimizer
        )
        self.moments = RunningMoments()
        self.value_norm = ValueNormalizer()
        kl = config.kl
        self.kl = AdaptiveKL(kl.coef, target=kl.target, horizon=kl.horizon) if kl.target else FixedKL(kl.coef)
        self.skips = SkipCounter()

    def parts(self) -> dict[str, Any]:
        """Everything with state, for checkpoints. A frozen reference too: its folder may be gone."""
        return {
            "policy": self.policy,
            "critic": self.critic_model,
            "reference": self.reference,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "moments": self.moments,
            "value_norm": self.value_norm,
            "kl": self.kl,
            "skips": self.skips,
        }

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum over processes, wherever the tensor lives (collectives of GPUs take only theirs)."""
        return self.accelerator.reduce(tensor.to(self.accelerator.device), "sum").to(tensor.device)

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
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    @torch.no_grad()
    def update_reference(self) -> None:
        """reference <- (1 - eta) reference + eta actor (arXiv 2404.10719, section 5)."""
        eta = self.config.reference_ema
        if eta > 0:
            for old, new in zip(self.reference.model.parameters(), self.policy.parameters(), strict=True):
                old.lerp_(new.to(old.dtype), eta)


def run_ppo(
    config: PPOConfig,
    *,
    learner: Learner,
    tokenizer: Any,
    problems: Sequence[Problem],
    render: Callable[[str], str],
    scorer: StepScorer | None,
    grader: Grader,
    log: MetricLog,
    validate: Callable[[HFGenerator], Mapping[str, float]] | None = None,
    demonstrations: "Demonstrations | None" = None,
    resume: bool = False,
) -> None:
    """Train `learner` in place for `config.iterations` iterations.

    validate: called with a generator over the current policy; it must not use the training's random stream.
    demonstrations: what the ptx loss draws from. resume: continue from the newest checkpoint.
    Raises UserError after five updates in a row without a finite loss or gradient.
    """
    accelerator, run_dir = learner.accelerator, Path(config.output_dir)
    world, rank = accelerator.num_processes, accelerator.process_index
    if not resume:
        refuse_used_folder(run_dir)
    if config.rollout.problems_per_iteration % world or config.update.minibatch_size % world:
        raise UserError(
            f"rollout.problems_per_iteration {config.rollout.problems_per_iteration} and minibatch_size "
            f"{config.update.minibatch_size} must be divisible by the {world} processes"
        )
    generator = HFGenerator(
        learner.policy, tokenizer, max_batch=config.rollout.max_batch, seed=config.seed * world + rank
    )
    sampler = ProblemSampler(problems, config.seed)
    sampling = _sampling(config)
    torch.manual_seed(config.seed * world + rank)
    parts = {**learner.parts(), "generator": generator, "sampler": sampler}
    if demonstrations is not None:
        parts["demonstrations"] = demonstrations
    done = (load_latest(run_dir, parts, rank=rank) or 0) if resume else 0
    log.rewind(done or -1)  # the record of iteration 0 is made anew as well
    if validate and not done and accelerator.is_main_process:
        log(0, validate(generator))
    for iteration in range(done + 1, config.iterations + 1):
        clock = _Clock()
        drawn = sampler.next(config.rollout.problems_per_iteration)[rank::world]
        rollout = collect(
            generator, tokenizer, drawn, sampling, render=render, splitter=config.rollout.splitter
        )
        clock.lap("generate")
        scores = score_rollout(scorer, grader, rollout)
        clock.lap("score")
        pretraining = iteration <= config.critic.pretrain_iterations
        rewards, totals = task_rewards(rollout, scores, config.reward, learner.moments, learner.reduce)
        experience, metrics = make_experience(learner, rollout, rewards, pretraining=pretraining)
        clock.lap("experience")
        learner.set_learning_rates(iteration)
        metrics |= ppo_update(learner, experience, train_policy=not pretraining, ptx=demonstrations)
        clock.lap("update")
        if not pretraining:  # until then the policy is its reference: nothing to follow or to steer
            learner.update_reference()
            learner.kl.update(metrics["policy/kl_per_response"], config.rollouts_per_iteration)
        generator.version = iteration
        metrics |= rollout_metrics(rollout, scores, totals)
        metrics["kl/coef"] = learner.kl.coef
        if validate and _due(iteration, config.validate_every, config.iterations):
            if accelerator.is_main_process:
                metrics |= validate(generator)
            accelerator.wait_for_everyone()
            clock.lap("validate")
        if accelerator.is_main_process:
            log(iteration, {**metrics, **clock.seconds, "memory/peak_rss_mb": peak_rss_mb()})
        if _due(iteration, config.save_every, config.iterations):
            _save(run_dir, iteration, parts, config, accelerator)


def make_experience(
    learner: Learner, rollout: Rollout, rewards: Tensor, *, pretraining: bool = False
) -> tuple[Experience, dict[str, float]]:
    """Return advantages and returns of a rollout under the current models, and the monitors of this step.

    rewards (B, T): the task's, before the KL penalty. While the critic is pre-trained its targets are
    Monte-Carlo returns (lambda 1): under a frozen policy nothing else needs estimating.
    """
    config = learner.config.update
    old_logprobs, ref_logprobs, entropies, values, final_values = forward_rollout(learner, rollout)
    mask = rollout.action_mask
    kl = kl_estimate(old_logprobs, ref_logprobs, learner.config.kl.estimator) * mask
    rewards = (rewards - learner.kl.coef * kl) * mask
    real_values, bootstrap = values, final_values
    if learner.config.critic.value_norm:
        real_values = learner.value_norm.denormalise(values) * mask
        bootstrap = learner.value_norm.denormalise(final_values)
    bootstrap = bootstrap * ~rollout.complete  # an answer that ended has no future; a cut one has
    advantages, returns = gae(
        rewards, real_values, mask, gamma=config.gamma, lam=config.lam, bootstrap_values=bootstrap
    )
    critic_lam = 1.0 if pretraining else config.critic_lam
    if critic_lam is not None:
        _, returns = gae(
            rewards, real_values, mask, gamma=config.gamma, lam=critic_lam, bootstrap_values=bootstrap
        )
    variance = explained_variance(real_values, returns, mask, reduce=learner.reduce)
    mean_return = masked_mean(learner, returns, mask)
    if learner.config.critic.value_norm:
        learner.value_norm.update(returns[mask], reduce=learner.reduce)
        returns = learner.value_norm.normalise(returns) * mask
    if config.advantage_norm:
        advantages = whiten(advantages, mask, reduce=learner.reduce)
    if config.advantage_clip is not None:
        advantages = advantages.clamp(-config.advantage_clip, config.advantage_clip)
    metrics = _policy_monitors(learner, rollout, old_logprobs, kl, entropies)
    metrics |= {
        "critic/explained_variance": float(variance),
        "critic/value": masked_mean(learner, real_values, mask),
        "critic/return": mean_return,
    }
    weights, cut = correct_mismatch(
        old_logprobs, rollout.behaviour_logprobs, mask, learner.config.rollout, reduce=learner.reduce
    )
    metrics |= cut
    experience = Experience(
        input_ids=rollout.input_ids,
        lengths=rollout.lengths,
        action_mask=mask,
        old_logprobs=old_logprobs,
        old_values=values,
        advantages=advantages * mask,
        returns=returns,
        weights=weights,
    )
    return experience, metrics


def _policy_monitors(
    learner: Learner, rollout: Rollout, old_logprobs: Tensor, kl: Tensor, entropies: Tensor
) -> dict[str, float]:
    """Monitors of the policy, and of the sampler's distance from it, over all processes."""
    mask = rollout.action_mask
    sums = torch.stack([kl.sum(), torch.tensor(float(len(rollout.lengths)))]).double()
    kl_sum, num_responses = learner.reduce(sums).tolist()
    return {
        "policy/kl_per_response": kl_sum / num_responses,
        "policy/entropy": masked_mean(learner, entropies, mask),
        "policy/perplexity": math.exp(-masked_mean(learner, old_logprobs, mask)),
        **mismatch_metrics(old_logprobs, rollout.behaviour_logprobs, mask, reduce=learner.reduce),
    }


def masked_mean(learner: Learner, values: Tensor, mask: Tensor) -> float:
    """Mean over the masked tokens of all processes; 0 where there are none."""
    mean, _, _ = masked_moments(values, mask, reduce=learner.reduce)
    return float(mean)


@torch.no_grad()
def forward_rollout(learner: Learner, rollout: Rollout) -> tuple[Tensor, ...]:
    """Return (old_logprobs, ref_logprobs, entropies, values) (B, T) and final values (B,), on the CPU.

    Row groups of similar length, within the token budget: nothing is computed on padding that can be avoided.
    """
    config, device = learner.config, learner.accelerator.device
    shape = rollout.input_ids.shape
    planes = [torch.zeros(shape) for _ in range(4)]
    final_values = torch.zeros(shape[0])
    for rows in micro_batches(rollout.lengths, config.update.micro_batch_tokens):
        width = int(rollout.lengths[rows].max())
        input_ids = rollout.input_ids[rows, :width].to(device)
        mask = rollout.action_mask[rows, :width].to(device)
        temperature = config.rollout.temperature
        logprobs, entropies = learner.actor(input_ids, mask, temperature=temperature, with_entropy=True)
        ref_logprobs, _ = learner.reference(input_ids, mask, temperature=temperature)
        values, final = learner.critic(input_ids, mask, rollout.lengths[rows].to(device))
        for plane, part in zip(planes, (logprobs, ref_logprobs, entropies, values), strict=True):
            plane[rows, :width] = part.cpu()
        final_values[rows] = final.cpu()
    return (*planes, final_values)


def _adamw(model: nn.Module, learning_rate: float, config: PPOConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        model.parameters(),
        lr=learning_rate,
        betas=config.update.betas,
        weight_decay=config.update.weight_decay,
        fused=True,
    )


def _sampling(config: PPOConfig) -> Sampling:
    r = config.rollout
    return Sampling(
        max_new_tokens=r.max_new_tokens,
        temperature=r.temperature,
        top_p=r.top_p,
        top_k=r.top_k,
        n=r.samples_per_problem,
        stop=get_template(r.template).stop,
    )


def _due(iteration: int, every: int, last: int) -> bool:
    return iteration == last or (every > 0 and iteration % every == 0)


def _save(
    run_dir: Path, iteration: int, parts: Mapping[str, Any], config: PPOConfig, accelerator: Accelerator
) -> None:
    from accelerate.utils import gather_object

    states = gather_object([rng_state()])
    if accelerator.is_main_process:
        save_checkpoint(run_dir, iteration, parts, keep=config.keep_checkpoints, rng_states=states)
    accelerator.wait_for_everyone()


class _Clock:
    """Seconds of each phase of an iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[f"time/{phase}_seconds"] = now - self.last
        self.last = now
