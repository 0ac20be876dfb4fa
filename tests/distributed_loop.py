"""Whole PPO loops that must not depend on the number of processes: sampled text hangs on the prompt alone.

Three courses: PPO with a prover's progress rewards, PRIME and the hack gauge; VinePPO; and PPO of adapters
on outcomes. Four iterations each, saved and continued after the second.
"""

import copy
import random
from pathlib import Path
from typing import Any

import torch
from rl_world import oracle_grader, tiny_policy, world

from data.schema import Sample, Sampling
from prm.implicit import new_implicit
from prm.labelling.completer import Completer
from prm.sharding import cuts_parameters
from reasoning_rl.config import PPOConfig
from reasoning_rl.learner import Learner
from reasoning_rl.models import critic_from_policy
from reasoning_rl.ppo import run_ppo
from reasoning_rl.prefix_values import PrefixValues
from reasoning_rl.presets import merge
from reasoning_rl.prime import OnlineImplicitPRM
from reasoning_rl.signals import Signals

ITERATIONS = 4
SETTINGS = {
    "policy": "in-memory",
    "preset": "vanilla",
    "save_every": 2,
    "num_validation": 0,
    "rollout": {
        "problems_per_iteration": 4,
        "samples_per_problem": 2,
        "max_new_tokens": 64,
        "truncated_is": "token",
    },
    "kl": {"coef": 0.05, "place": "reward", "estimator": "k1"},
    "update": {"minibatch_size": 4, "learning_rate": 1e-3, "micro_batch_tokens": 160},
    "hack": {"action": "raise_kl", "baseline_iterations": 1, "patience": 1, "max_drift": 1.1},
}
COURSES = {
    "process": {
        "critic": {"learning_rate": 1e-3, "pretrain_iterations": 1},
        "reward": {
            "form": "progress",
            "step_weight": 0.5,
            "prover": {"model": "in-memory", "samples": 3, "best_of": 2},
            "implicit": {"weight": 0.5, "learning_rate": 1e-3, "minibatch_size": 3},
        },
    },
    "vine": {
        "algorithm": "vine",
        "reward": {"form": "none", "normalise": "off", "clip": None},
        "group": {"vine_samples": 3},
    },
    "adapters": {
        "critic": {"learning_rate": 1e-2, "lora": {"rank": 2}},
        "reward": {"form": "none"},
        "lora": {"rank": 2},
    },
}


class Parrot:
    """A TextGenerator that says the solution, now and then with other numbers: which, the prompt decides."""

    def __init__(self, tokenizer: Any, solutions: dict[str, str]) -> None:
        self.tokenizer, self.solutions, self.version = tokenizer, solutions, 0

    def generate(self, prompts: list[str], sampling: Sampling) -> list[list[Sample]]:
        return [[self._say(prompt, i) for i in range(sampling.n)] for prompt in prompts]

    def _say(self, prompt: str, index: int) -> Sample:
        text, _, prefix = prompt.partition("\n")
        chance = random.Random(f"{prompt}:{index}:{self.version}")
        said = "\n".join(self.solutions[text].split("\n")[prefix.count("\n") :])
        if chance.random() < 0.6:
            said = "".join(
                str((int(c) + 1) % 10) if c.isdigit() and chance.random() < 0.2 else c for c in said
            )
        ids = [*self.tokenizer(said, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        logprobs = tuple(-5.5 - chance.random() for _ in ids)
        prompt_ids = tuple(self.tokenizer(prompt)["input_ids"])
        return Sample(prompt_ids, tuple(ids), logprobs, text=said, finish_reason="stop")

    def state_dict(self) -> dict[str, Any]:
        return {"version": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.version = state["version"]


def courses_of(accelerator: Any) -> list[str]:
    """Adapters are not for engines that cut weights up."""
    return [course for course in COURSES if course != "adapters" or not cuts_parameters(accelerator)]


def follow(course: str, output_dir: Path, accelerator: Any, log: Any) -> dict[str, torch.Tensor]:
    """Run a course, leave what it logged in `log`, and return all weights it trained."""
    for iterations in (2, ITERATIONS):
        trained = _run(course, iterations, output_dir, accelerator, log)
    return trained


def _run(
    course: str, iterations: int, output_dir: Path, accelerator: Any, log: Any
) -> dict[str, torch.Tensor]:
    over = {"output_dir": str(output_dir), "iterations": iterations}
    config = PPOConfig.from_preset(merge(merge(SETTINGS, COURSES[course]), over))
    tokenizer, problems = world(16)
    policy = tiny_policy(tokenizer, hidden=16)
    critic = None
    if config.algorithm == "ppo":
        critic = critic_from_policy(policy)
        torch.nn.init.normal_(critic.score.weight, std=0.1)
    signals = Signals()
    if course == "process":
        signals = _signals(config, policy, tokenizer, problems, accelerator)
    learner = Learner(
        config,
        accelerator,
        policy=copy.deepcopy(policy),
        reference=None if config.lora.rank else copy.deepcopy(policy),
        critic=critic,
    )
    run_ppo(
        config,
        learner=learner,
        tokenizer=tokenizer,
        problems=problems,
        generator=parrot(tokenizer, problems),
        render=lambda text: f"{text}\n",
        scorer=None,
        grader=oracle_grader,
        log=log,
        signals=signals,
        resume=iterations > 2,
    )
    names = ("policy", "critic", "implicit")
    parts = learner.parts() | signals.parts()
    states = {name: parts[name].state_dict() for name in names if name in parts}
    return {f"{name}.{key}": v.clone() for name, state in states.items() for key, v in state.items()}


def _signals(config: PPOConfig, policy: Any, tokenizer: Any, problems: Any, accelerator: Any) -> Signals:
    sampling = Sampling(max_new_tokens=64, n=config.reward.prover.samples)
    completer = Completer(parrot(tokenizer, problems), oracle_grader, lambda text: f"{text}\n", sampling)
    implicit = OnlineImplicitPRM(
        new_implicit(policy, beta=config.reward.implicit.beta),
        config.reward.implicit,
        accelerator,
        micro_batch_tokens=160,
    )
    values = PrefixValues(completer, best_of=config.reward.prover.best_of)
    return Signals(values, implicit, accelerator)


def parrot(tokenizer: Any, problems: Any) -> Parrot:
    return Parrot(tokenizer, {p.text: p.solution for p in problems})
