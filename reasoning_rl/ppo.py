"""PPO-max on step rewards. `run_ppo` is one flat loop; its body reads as the walk in docs/architecture.md.

    run_ppo(config, learner=..., tokenizer=..., scorer=..., grader=..., problems=..., ...)

B rollouts, T tokens. What is built elsewhere (models, scorer, grader, log) is handed in.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from data.errors import UserError
from data.machine import peak_rss_mb
from data.prompts import get_template
from data.protocols import Grader, MetricLog, ResponseScorer, StepScorer, TextGenerator
from data.schema import Problem, Sampling
from prm.checkpoint import load_latest, refuse_used_folder, rng_state, save_checkpoint
from prm.labelling.completer import Completer
from reasoning_rl.advantages import make_experience, make_group_experience
from reasoning_rl.config import PPOConfig
from reasoning_rl.dynamic import sample_rollout
from reasoning_rl.experience import (
    collect,
    grade,
    reward_responses,
    rollout_metrics,
    score_rollout,
    task_rewards,
)
from reasoning_rl.hack_gauge import HackGauge, over_processes
from reasoning_rl.learner import Learner
from reasoning_rl.prefix_values import PrefixValues
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.rollout.pipeline import RolloutPipeline
from reasoning_rl.sampler import ProblemSampler
from reasoning_rl.signals import Signals
from reasoning_rl.update import ppo_update

if TYPE_CHECKING:
    from reasoning_rl.ptx import Demonstrations


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
    generator: TextGenerator | None = None,
    validate: Callable[[Any], Mapping[str, float]] | None = None,
    demonstrations: "Demonstrations | None" = None,
    signals: Signals | None = None,
    reward_model: ResponseScorer | None = None,
    resume: bool = False,
) -> None:
    """Train `learner` in place for `config.iterations` iterations.

    generator: where responses come from, with state; none: the policy itself. One with weights of its own is
    sent the policy's after every update.
    validate: called with that generator; it must not use the training's random stream.
    demonstrations: what the ptx loss draws from. signals: scores besides the reward model's. reward_model:
    pays the outcome in the grader's place. resume: continue from the newest checkpoint.
    An alarm of the hack gauge ends the run, with a checkpoint, where `hack.action` says so. Raises UserError
    after five updates in a row without a finite loss or gradient.
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
    generator = generator or HFGenerator(
        learner.policy, tokenizer, max_batch=config.rollout.max_batch, seed=config.seed * world + rank
    )
    sampler = ProblemSampler(problems, config.seed)
    sampling = _sampling(config)
    rollouts = RolloutPipeline(
        generator,
        sampler,
        lambda: sample_rollout(
            config.rollout,
            config.rollout.problems_per_iteration // world,
            draw=lambda count: sampler.next(count * world)[rank::world],
            collect=lambda problems: collect(
                generator, tokenizer, problems, sampling, render=render, splitter=config.rollout.splitter
            ),
            grade=lambda rollout: grade(grader, rollout),
            largest=learner.largest,
        ),
        max_ahead=config.rollout.engine.max_ahead,
    )
    torch.manual_seed(config.seed * world + rank)
    parts = {**learner.parts(), **rollouts.parts()}
    if demonstrations is not None:
        parts["demonstrations"] = demonstrations
    signals, gauge = signals or Signals(), HackGauge(config.hack)
    parts |= {**signals.parts(), "gauge": gauge}
    completions = replace(sampling, n=config.group.vine_samples)
    vine = PrefixValues(Completer(generator, grader, render, completions, config.rollout.splitter))
    done = (load_latest(run_dir, parts, rank=rank) or 0) if resume else 0
    log.rewind(done or -1)  # the record of iteration 0 is made anew as well
    rollouts.sync(learner.policy, done)
    if validate and not done and accelerator.is_main_process:
        log(0, validate(generator))
    for iteration in range(done + 1, config.iterations + 1):
        clock = _Clock()
        sampled = rollouts.next(left=config.iterations - iteration)
        rollout = sampled.rollout
        clock.lap("generate")
        graded = sampled.graded
        if reward_model is not None:
            graded = reward_responses(reward_model, render, rollout)
        scores = signals.add(rollout, score_rollout(scorer, grader, rollout, graded))
        clock.lap("score")
        pretraining = learner.critic is not None and iteration <= config.critic.pretrain_iterations
        rewards, totals = task_rewards(
            rollout,
            scores,
            config.reward,
            learner.moments,
            learner.reduce,
            max_new_tokens=config.rollout.max_new_tokens,
        )
        if learner.critic is None:
            experience, metrics = make_group_experience(learner, rollout, scores, rewards, vine)
        else:
            experience, metrics = make_experience(learner, rollout, rewards, pretraining=pretraining)
        clock.lap("experience")
        rollouts.rest()
        learner.set_learning_rates(iteration)
        metrics |= ppo_update(learner, experience, train_policy=not pretraining, ptx=demonstrations)
        clock.lap("update")
        if not pretraining:  # until then the policy is its reference: nothing to follow or to steer
            learner.update_reference()
            learner.kl.update(metrics["policy/kl_per_response"], config.rollouts_per_iteration)
        rollouts.sync(learner.policy, iteration)
        accelerator.wait_for_everyone()
        clock.lap("sync")
        metrics |= signals.learn(rollout, scores)
        metrics |= rollout_metrics(rollout, scores, totals, config.reward, ngram=config.hack.ngram)
        metrics |= sampled.metrics | {"kl/coef": learner.kl.coef} | rollouts.metrics(iteration)
        is_stopped = _heed(gauge, metrics, learner, iteration)
        if validate and _due(iteration, config.validate_every, config.iterations):
            if accelerator.is_main_process:
                metrics |= validate(generator)
            accelerator.wait_for_everyone()
            clock.lap("validate")
        if accelerator.is_main_process:
            log(iteration, {**metrics, **clock.seconds, "memory/peak_rss_mb": peak_rss_mb()})
        if is_stopped or _due(iteration, config.save_every, config.iterations):
            _save(run_dir, iteration, parts, config, accelerator)
        if is_stopped:
            return


def _heed(gauge: HackGauge, metrics: dict[str, float], learner: Learner, iteration: int) -> bool:
    """Show the gauge the metrics and add what it says to them; act on new alarms. True: the run ends."""
    settings = learner.config.hack
    alarms, said = gauge.update(over_processes(metrics, learner.reduce))
    metrics |= said
    for alarm in alarms if learner.accelerator.is_main_process else ():
        warnings.warn(f"hack gauge, iteration {iteration}: {alarm.message}", stacklevel=1)
    if alarms and settings.action == "raise_kl":
        learner.kl.raise_by(settings.kl_factor, most=settings.max_kl_coef)
    return bool(alarms) and settings.action == "stop"


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
