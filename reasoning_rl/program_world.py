"""The world of programs in training terms: demonstrations, and settings under which a small policy learns.

The policy is that of the quickstart (reasoning_rl.world.new_policy). benchmarks/code_rl.py runs it all.
"""

from random import Random
from typing import Any

from data.programs import ProgramHabits, label_program, make_programs, write_program
from data.protocols import TextGenerator
from data.schema import Sampling, StepSolution
from reasoning_rl.world import prompt

MAX_NEW_TOKENS = 64
HABITS = ProgramHabits(swapped=0.7, clamped=0.7, boundary=0.7)
"""The wrong line is the likelier one, so a greedy answer is wrong more often than a sampled one."""
SFT_FIT: dict[str, Any] = {"learning_rate": 3e-3, "betas": (0.9, 0.98), "log_every": 20, "save_every": 200}
PRM_FIT: dict[str, Any] = {
    "epochs": 6,
    "learning_rate": 1e-3,
    "betas": (0.9, 0.98),
    "log_every": 20,
    "save_every": 200,
}

PROGRAM_PPO: dict[str, Any] = {
    "preset": "ppo_max",
    "problems": "programs",
    "iterations": 40,
    "validate_every": 8,
    "save_every": 10,
    "rollout": {
        "problems_per_iteration": 64,
        "samples_per_problem": 4,
        "max_new_tokens": MAX_NEW_TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
        "splitter": "code_block",
    },
    "reward": {"form": "none", "step_weight": 0.0, "clip": 5.0},
    "kl": {"coef": 0.03},
    "critic": {"init": "policy", "learning_rate": 1e-3, "pretrain_iterations": 2, "value_clip_range": 0.5},
    "update": {
        "minibatch_size": 64,
        "micro_batch_tokens": 8192,
        "learning_rate": 5e-4,
        "schedule": "linear",
        "lam": 0.95,
    },
}
"""PPO-max paid by the tests alone; `policy` and `output_dir` are the caller's."""


LABEL: dict[str, Any] = {
    "method": "monte_carlo",
    "labels": "soft",
    "k": 4,
    "samples_per_problem": 2,
    "splitter": "code_block",
    "max_new_tokens": MAX_NEW_TOKENS,
}
"""Step labels from tests: the share of K continuations of a prefix that pass."""
PROGRAM_DPO: dict[str, Any] = {
    "problems": "programs",
    "score": "outcome",
    "rollout": {"samples_per_problem": 4, "max_new_tokens": MAX_NEW_TOKENS, "splitter": "code_block"},
    "preference": {"beta": 0.1},
    "fit": {"learning_rate": 1e-4, "batch_size": 32, "save_every": None},
}
"""Pairs of a right and a wrong program; beta 0.1 as in arXiv 2404.10719, appendix A.2."""


def program_demonstrations(
    count: int, seed: int, habits: ProgramHabits = HABITS, *, difficulty: str = "standard"
) -> list[tuple[str, str]]:
    """Return (prompt, response) pairs with mistakes at the given rates."""
    rng = Random(f"program demonstrations {seed}")
    problems = make_programs(count, seed, split="train", difficulty=difficulty)
    return [(prompt(p.text), write_program(p, rng, habits)) for p in problems]


def labelled_program_samples(generator: TextGenerator, count: int, seed: int) -> list[StepSolution]:
    """Sample a program for each of `count` validation problems and label its statements by the oracle."""
    problems = make_programs(count, seed, split="validation")
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=1.0)
    drawn = generator.generate([prompt(p.text) for p in problems], sampling)
    return [label_program(p, samples[0].text) for p, samples in zip(problems, drawn, strict=True)]
