"""Shared by the tests of the PPO loop: small runs over the arithmetic world, judged by its oracle."""

import copy

import torch
from accelerate import Accelerator
from rl_world import OracleScorer, oracle_grader, tiny_policy

from data.schema import Sampling
from reasoning_rl.advantages import make_experience
from reasoning_rl.config import PPOConfig
from reasoning_rl.experience import collect, score_rollout, task_rewards
from reasoning_rl.learner import Learner
from reasoning_rl.models import critic_from_policy
from reasoning_rl.ppo import run_ppo
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.telemetry import RunLog, read_metrics


def settings(tmp_path, **over) -> PPOConfig:
    base = {
        "preset": "vanilla",
        "policy": "in-memory",
        "prm": "oracle",
        "output_dir": str(tmp_path),
        "iterations": 3,
        "rollout": {"problems_per_iteration": 8, "samples_per_problem": 2, "max_new_tokens": 24},
        "critic": {"learning_rate": 1e-3},
        "update": {"minibatch_size": 8, "learning_rate": 1e-3, "micro_batch_tokens": 400},
        "save_every": 1,
    }
    return PPOConfig.from_preset(base | over)


def learner_for(config: PPOConfig, tokenizer, seed: int = 0, policy=None) -> Learner:
    policy = policy or tiny_policy(tokenizer, seed)
    return Learner(
        config,
        Accelerator(cpu=True),
        policy=policy,
        reference=None if config.lora.rank else copy.deepcopy(policy),
        critic=critic_from_policy(policy) if config.algorithm == "ppo" else None,
    )


def rollout_of(learner: Learner, tokenizer, problems, seed: int = 0):
    r = learner.config.rollout
    generator = HFGenerator(learner.policy, tokenizer, seed=seed)
    sampling = Sampling(max_new_tokens=r.max_new_tokens, temperature=r.temperature, n=r.samples_per_problem)
    return collect(generator, tokenizer, problems, sampling, render=lambda t: f"{t}\n", splitter=r.splitter)


def experience_of(learner: Learner, tokenizer, problems):
    rollout = rollout_of(learner, tokenizer, problems)
    scores = score_rollout(OracleScorer(problems), oracle_grader, rollout)
    rewards, _ = task_rewards(rollout, scores, learner.config.reward, learner.moments)
    rewards = rewards + 0.1 * torch.randn(rewards.shape, generator=torch.Generator().manual_seed(0))
    return make_experience(learner, rollout, rewards * rollout.action_mask)


def run(config, learner, tokenizer, problems, **options) -> list[dict[str, float]]:
    run_ppo(
        config,
        learner=learner,
        tokenizer=tokenizer,
        problems=problems,
        **{
            "render": lambda text: f"{text}\n",
            "log": RunLog(config.output_dir),
            "scorer": OracleScorer(problems),
            "grader": oracle_grader,
            **options,
        },
    )
    return read_metrics(config.output_dir)
