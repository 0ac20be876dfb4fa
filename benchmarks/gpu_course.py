"""The course of benchmarks/gpu.py: SFT from scratch, a PRM and PPO-max in the arithmetic world, by the clock.

Everything is made here. Each stage has its share of the time; PPO takes what is left before the last
evaluation. It runs as `stepwell quickstart` does, in bf16 and on harder problems.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from gpu_timing import Enough, Place, now

from data.arithmetic import demonstrate, label_solution, make_problems
from data.schema import Problem, Sampling, StepSolution
from data.world_tokenizer import word_tokenizer
from eval.benchmarks import grade_arithmetic
from eval.metrics import solution_metrics, wilson_interval
from prm.fit import FitConfig, fit
from prm.model import new_prm
from prm.scorer import LocalScorer
from prm.sharding import compute_dtype
from prm.train import PRMConfig, fit_prm
from reasoning_rl.config import PPOConfig
from reasoning_rl.learner import Learner
from reasoning_rl.models import critic_from_prm
from reasoning_rl.ppo import run_ppo
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.sft import NextToken, encode_pairs
from reasoning_rl.world import WorldConfig, labelled_corruptions, new_policy, prompt

SFT_SHARE, PRM_SHARE = 0.25, 0.12
"""Of the course's seconds, at most."""


@dataclass(frozen=True)
class Course:
    """How large everything is."""

    world: WorldConfig
    difficulty: str = "hard"
    max_new_tokens: int = 80  # eight steps, the answer and the end take 67
    demonstrations: int = 40_000
    sft_updates: int = 1200
    batch_size: int = 128
    solutions: int = 8000
    prm_epochs: int = 3
    problems: int = 128
    samples: int = 4
    iterations: int = 10_000
    num_test: int = 1000
    num_train: int = 20_000


COURSES = {
    "full": Course(WorldConfig(hidden_size=256, num_layers=4)),
    "tiny": Course(
        WorldConfig(hidden_size=16, num_layers=1),
        max_new_tokens=12,
        demonstrations=32,
        sft_updates=3,
        batch_size=16,
        solutions=16,
        prm_epochs=1,
        problems=4,
        samples=2,
        iterations=3,
        num_test=16,
        num_train=16,
    ),
}


class Clock:
    """A MetricLog that keeps the rows, with the seconds since the start, and raises Enough at its end."""

    def __init__(self, device: torch.device, end: float, last: int | None = None) -> None:
        self.device, self.end, self.last = device, end, last
        self.started = now(device)
        self.rows: list[dict[str, float]] = []

    def __call__(self, iteration: int, metrics: Mapping[str, float]) -> None:
        at = now(self.device)
        self.rows.append({"iteration": iteration, "seconds": round(at - self.started, 2), **metrics})
        # The last iteration would write a checkpoint, which nobody needs.
        if at > self.end or iteration == self.last:
            raise Enough

    def rewind(self, iteration: int) -> None:
        pass


def run_course(found: dict[str, Any], course: Course, place: Place, deadline: float, *, seed: int) -> None:
    """Run all stages, each into `found` as soon as it is known; the keys stand in gpu.py."""
    started, device = time.perf_counter(), place.device
    budget = deadline - started
    found |= {"difficulty": course.difficulty, "seconds": {}, "accuracy": {}}
    tokenizer = word_tokenizer()
    test = make_problems(course.num_test, 10 * seed, difficulty=course.difficulty)
    with tempfile.TemporaryDirectory() as folder:
        policy = new_policy(tokenizer, course.world, seed)
        found["parameters"] = policy.num_parameters()
        log = _sft(policy, tokenizer, course, place, folder, started + SFT_SHARE * budget, seed)
        found["sft_loss"] = log.rows[-1].get("train/loss")
        found["seconds"]["sft"] = _lap(started, device)

        began = now(device)
        found["accuracy"]["before"] = measure_accuracy(policy, tokenizer, test, course)
        found["seconds"]["evaluate"] = _lap(began, device)
        _say(f"SFT: loss {_shown(found['sft_loss'])}", found, "before")

        began = now(device)
        prm, found["prm_step_auc"] = _prm(
            policy, tokenizer, course, place, folder, began + PRM_SHARE * budget, seed
        )
        found["seconds"]["prm"] = _lap(began, device)
        print(f"course: PRM, step AUC {_shown(found['prm_step_auc'])}", flush=True)

        began = now(device)
        # What evaluating took before, and half as much again: longer answers take longer.
        end = deadline - 1.5 * found["seconds"]["evaluate"] - 1
        log = _ppo(policy, prm, tokenizer, course, place, folder, end, seed)
        found["seconds"]["ppo"] = _lap(began, device)
        _note_ppo(found, log, course)
        found["accuracy"]["after"] = measure_accuracy(policy, tokenizer, test, course)


def _sft(
    policy: Any, tokenizer: Any, course: Course, place: Place, folder: str, end: float, seed: int
) -> Clock:
    rng = Random(f"demonstrations {seed}")
    problems = make_problems(
        course.demonstrations, 10 * seed + 1, split="train", difficulty=course.difficulty
    )
    texts = [(prompt(p.text), demonstrate(p, rng, course.world.habits)) for p in problems]
    pairs, log = encode_pairs(tokenizer, texts), Clock(place.device, end)
    config = FitConfig(
        epochs=-(-course.sft_updates * course.batch_size // len(pairs)),
        max_updates=course.sft_updates,
        batch_size=course.batch_size,
        micro_batch_tokens=32_768,
        learning_rate=2e-3,
        betas=(0.9, 0.98),
        save_every=None,
        seed=seed,
    )
    with contextlib.suppress(Enough):
        fit(
            policy,
            pairs,
            NextToken(),
            config,
            accelerator=place.accelerator(),
            run_dir=f"{folder}/sft",
            log=log,
        )
    return log


def _prm(
    policy: Any, tokenizer: Any, course: Course, place: Place, folder: str, end: float, seed: int
) -> tuple[Any, float | None]:
    """A PRM that learned the policy's own samples and planted mistakes, and its step AUC on fresh samples."""
    train = _labelled(policy, tokenizer, course, course.solutions, 10 * seed + 2, "train")
    train += labelled_corruptions(course.solutions // 2, 10 * seed + 4)
    held_out = _labelled(policy, tokenizer, course, course.num_test // 2, 10 * seed + 3, "validation")
    torch.manual_seed(seed)
    prm = new_prm(policy, extra_layers=1)
    config = PRMConfig(
        data="made here",
        output_dir=f"{folder}/prm",
        supervise="all",
        max_length=256,
        fit=FitConfig(
            epochs=course.prm_epochs,
            batch_size=course.batch_size,
            micro_batch_tokens=32_768,
            learning_rate=1e-3,
            betas=(0.9, 0.98),
            save_every=None,
            seed=seed,
        ),
    )
    accelerator = place.accelerator()
    with contextlib.suppress(Enough):
        fit_prm(prm, tokenizer, train, [], config, accelerator=accelerator, log=Clock(place.device, end))
    scores = LocalScorer(prm, tokenizer).score([s.problem for s in held_out], [s.steps for s in held_out])
    auc = solution_metrics([s.labels for s in held_out], scores, 0.5)["step_auc"]
    return prm, auc if math.isfinite(auc) else None


def _labelled(
    policy: Any, tokenizer: Any, course: Course, count: int, seed: int, split: str
) -> list[StepSolution]:
    """One sample a problem, its steps labelled by the exact oracle; samples without a step say nothing."""
    problems = make_problems(count, seed, split=split, difficulty=course.difficulty)
    texts = _answers(policy, tokenizer, problems, course, temperature=1.0)
    labelled = [label_solution(p, text) for p, text in zip(problems, texts, strict=True)]
    return [solution for solution in labelled if solution.steps]


def _ppo(
    policy: Any, prm: Any, tokenizer: Any, course: Course, place: Place, folder: str, end: float, seed: int
) -> Clock:
    """PPO-max with the quickstart's settings, the rates lower: they do not fall, as nobody knows the end."""
    config = PPOConfig.from_preset(
        {
            "preset": "ppo_max",
            "policy": "made here",
            "prm": "made here",
            "output_dir": f"{folder}/ppo",
            "seed": seed,
            "iterations": course.iterations,
            "save_every": 0,
            "rollout": {
                "problems_per_iteration": course.problems,
                "samples_per_problem": course.samples,
                "max_new_tokens": course.max_new_tokens,
                "max_batch": course.problems * course.samples,
                "temperature": 1.0,
                "top_p": 1.0,
            },
            "reward": {"form": "delta", "step_weight": 1.0, "outcome_weight": 1.0, "clip": 5.0},
            "kl": {"coef": 0.03},
            "critic": {"learning_rate": 5e-4, "pretrain_iterations": 2, "value_clip_range": 0.5},
            "update": {
                "minibatch_size": course.problems * course.samples // 4,
                "micro_batch_tokens": 32_768,
                "learning_rate": 2e-4,
                "lam": 0.95,
            },
        }
    )
    accelerator = place.accelerator()
    learner = Learner(
        config, accelerator, policy=policy, reference=deepcopy(policy), critic=critic_from_prm(prm)
    )
    prm.to(compute_dtype(accelerator))
    problems = make_problems(course.num_train, 10 * seed + 5, split="train", difficulty=course.difficulty)
    log = Clock(place.device, end, last=course.iterations)
    with contextlib.suppress(Enough):
        run_ppo(
            config,
            learner=learner,
            tokenizer=tokenizer,
            problems=problems,
            render=prompt,
            scorer=LocalScorer(prm, tokenizer),
            grader=grade_arithmetic,
            log=log,
        )
    return log


CURVE = {
    "outcome": "reward/outcome",
    "step_score": "reward/step_score",
    "kl": "policy/kl_per_response",
    "mismatch": "rollout/mismatch_mean",
}


def _note_ppo(found: dict[str, Any], log: Clock, course: Course) -> None:
    found["iterations"] = len(log.rows)
    found["rollouts"] = len(log.rows) * course.problems * course.samples
    found["curve"] = [
        {key: row[key] for key in ("iteration", "seconds")}
        | {key: row[name] for key, name in CURVE.items() if name in row}
        for row in log.rows
    ]
    peaks = [value for row in log.rows for name, value in row.items() if name.endswith("_gpu_mb")]
    found["peak_gpu_mib"] = max(peaks, default=None)


def measure_accuracy(
    policy: Any, tokenizer: Any, problems: list[Problem], course: Course
) -> dict[str, dict[str, float]]:
    """Verified accuracy, greedy and at temperature 1, with Wilson's 95 % interval."""
    out = {}
    for how, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        texts = _answers(policy, tokenizer, problems, course, temperature=temperature)
        verdicts = [grade_arithmetic(p, text).status for p, text in zip(problems, texts, strict=True)]
        right = verdicts.count("correct")
        low, high = wilson_interval(right, len(problems))
        out[how] = {"value": right / len(problems), "low": low, "high": high, "num_problems": len(problems)}
    return out


def _answers(
    policy: Any, tokenizer: Any, problems: list[Problem], course: Course, *, temperature: float
) -> list[str]:
    generator = HFGenerator(policy, tokenizer, max_batch=1024)
    sampling = Sampling(max_new_tokens=course.max_new_tokens, temperature=temperature, seed=0)
    return [drawn[0].text for drawn in generator.generate([prompt(p.text) for p in problems], sampling)]


def _lap(began: float, device: torch.device) -> float:
    return round(now(device) - began, 2)


def _say(text: str, found: dict[str, Any], when: str) -> None:
    shown = ", ".join(f"{how} {a['value']:.3f}" for how, a in found["accuracy"][when].items())
    print(f"course: {text}; {found['difficulty']} problems right: {shown}", flush=True)


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
