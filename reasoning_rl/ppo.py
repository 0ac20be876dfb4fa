"""PPO-max on step rewards. `run_ppo` is one flat loop; its body reads as the walk in docs/architecture.md.

    run_ppo(config, learner=..., tokenizer=..., scorer=..., grader=..., problems=..., ...)

B rollouts, T tokens. What is built elsewhere (models, scorer, grader, log) is handed in.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data.errors import Stopped
from data.prompts import get_template
from data.protocols import Grader, MetricLog, ResponseScorer, StepScorer, TextGenerator
from data.schema import Problem, Sampling
from prm.checkpoint import load_latest, refuse_used_folder, save_together
from prm.interrupt import StopSignal
from prm.labelling.completer import Completer
from reasoning_rl.advantages import make_experience, make_group_experience
from reasoning_rl.config import PPOConfig
from reasoning_rl.dynamic import sample_rollout
from reasoning_rl.experience import (
    collect,
    grade,
    progress_advantages,
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
from reasoning_rl.shares import gather, own_problems, refuse_what_needs_one_process, sum_metrics
from reasoning_rl.signals import Signals
from reasoning_rl.update import NonFinite, ppo_update, require_finite, skip_iteration

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
    after five updates in a row without a finite reward, logprob, loss or gradient, and Stopped after
    SIGTERM, once the running iteration is done and saved.
    """
    accelerator, run_dir = learner.accelerator, Path(config.output_dir)
    world, rank = accelerator.num_processes, accelerator.process_index
    if not resume:
        refuse_used_folder(run_dir)
    refuse_what_needs_one_process(config, world)
    generator = generator or HFGenerator(
        learner.policy, tokenizer, max_batch=config.rollout.max_batch, seed=config.seed * world + rank
    )
    sampler = ProblemSampler(problems, config.seed)
    sampling, num_problems = _sampling(config), config.rollout.problems_per_iteration // world
    rollouts = RolloutPipeline(
        generator,
        sampler,
        lambda: sample_rollout(
            config.rollout,
            num_problems,
            draw=lambda count: own_problems(sampler.next(count * world), rank=rank, world=world),
            collect=lambda problems: collect(
                generator, tokenizer, problems, sampling, render=render, splitter=config.rollout.splitter
            ),
            grade=lambda rollout: grade(grader, rollout),
            largest=learner.largest,
        ),
        max_ahead=config.rollout.engine.max_ahead,
        accelerator=accelerator,
    )
    torch.manual_seed(config.seed)  # the same on every process: it orders the minibatches
    signals, gauge = signals or Signals(), HackGauge(config.hack)
    own = {"generator": rollouts.parts()["generator"], **signals.own_parts()}
    parts = {**learner.parts(), "sampler": rollouts.parts()["sampler"], **signals.parts(), "gauge": gauge}
    if demonstrations is not None:
        parts["demonstrations"] = demonstrations
    completions = replace(sampling, n=config.group.vine_samples)
    vine = PrefixValues(Completer(generator, grader, render, completions, config.rollout.splitter))
    done = (load_latest(run_dir, parts, rank=rank, world=world, own=own) or 0) if resume else 0
    learner.refresh_policy()
    log.rewind(done or -1)  # the record of iteration 0 is made anew as well
    rollouts.sync(learner.policy, done)
    if validate and not done and accelerator.is_main_process:
        log(0, validate(generator))
    with StopSignal(accelerator) as stop:
        for iteration in range(done + 1, config.iterations + 1):
            learner.phases.start()
            sampled = rollouts.next(left=config.iterations - iteration)
            rollout, graded = sampled.rollout, sampled.graded
            learner.phases.lap("generate")
            if reward_model is not None:
                graded = reward_responses(reward_model, render, rollout)
            scores = score_rollout(scorer, grader, rollout, graded)
            rollout, scores = gather(rollout, scores, accelerator, num_problems=num_problems)
            scores = signals.add(rollout, scores)
            learner.phases.lap("score")
            pretraining = learner.critic is not None and iteration <= config.critic.pretrain_iterations
            learner.set_learning_rates(iteration)
            try:
                require_finite(**scores.numbers())
                rewards, totals = task_rewards(
                    rollout,
                    scores,
                    config.reward,
                    learner.moments,
                    max_new_tokens=config.rollout.max_new_tokens,
                )
                if learner.critic is None:
                    experience, metrics = make_group_experience(learner, rollout, scores, rewards, vine)
                else:
                    experience, metrics = make_experience(
                        learner,
                        rollout,
                        rewards,
                        step_advantages=progress_advantages(rollout, scores, config.reward, learner.moments),
                        pretraining=pretraining,
                    )
                learner.phases.lap("experience")
                rollouts.rest()
                metrics |= ppo_update(learner, experience, train_policy=not pretraining, ptx=demonstrations)
                metrics |= signals.learn(rollout, scores)
            except NonFinite as error:
                totals, metrics = torch.zeros(len(rollout.lengths)), skip_iteration(learner, error)
            learner.refresh_policy()
            learner.phases.lap("update")
            # While pre-training the policy is its reference: nothing to follow or to steer.
            if not pretraining and "policy/kl_per_response" in metrics:
                learner.update_reference()
                learner.kl.update(metrics["policy/kl_per_response"], config.rollouts_per_iteration)
            rollouts.sync(learner.policy, iteration)
            learner.phases.lap("sync")
            metrics |= rollout_metrics(
                rollout,
                scores,
                totals,
                config.reward,
                ngram=config.hack.ngram,
                is_verified=reward_model is None,
            )
            metrics |= sum_metrics(sampled.metrics, learner)
            metrics |= {"kl/coef": learner.kl.coef} | rollouts.metrics(iteration)
            is_stopped = _heed(gauge, metrics, learner, iteration)
            if validate and _due(iteration, config.validate_every, config.iterations):
                if accelerator.is_main_process:
                    metrics |= validate(generator)
                accelerator.wait_for_everyone()
                learner.phases.lap("validate")
            if accelerator.is_main_process:
                log(iteration, {**metrics, **learner.phases.metrics})
            stopping = stop.requested()
            if stopping or is_stopped or _due(iteration, config.save_every, config.iterations):
                save_together(
                    run_dir, iteration, parts, accelerator=accelerator, own=own, keep=config.keep_checkpoints
                )
            if is_stopped:
                return
            if stopping and iteration < config.iterations:
                raise Stopped(f"told to stop; iteration {iteration} is saved, --resume continues after it")


def _heed(gauge: HackGauge, metrics: dict[str, float], learner: Learner, iteration: int) -> bool:
    """Show the gauge the metrics and add what it says to them; act on new alarms. True: the run ends.

    An iteration without an update, for scores or logprobs that are not finite, is not shown.
    """
    settings = learner.config.hack
    if "policy/kl_per_response" not in metrics:
        return False
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
