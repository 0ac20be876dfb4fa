"""Builds what the rounds of DPO and rejection sampling need, and runs them."""

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data.arithmetic import judge_steps
from data.errors import UserError
from data.protocols import MetricLog, ResponseScorer, StepScorer
from data.schema import Problem
from eval.benchmarks import get_benchmark
from eval.metrics import ece, wilson_interval
from prm.fit import check_fit
from prm.losses import bradley_terry
from prm.model import load_tokenizer
from reasoning_rl.compose import _validation, check_isolation, load_step_scorer
from reasoning_rl.compose_problems import make_run_grader, read_pool, sources_of
from reasoning_rl.dpo_iter import DPOIterConfig, LearnPreferences
from reasoning_rl.rft import LearnRight, RFTConfig
from reasoning_rl.rollout.make import PolicyEngine
from reasoning_rl.rounds import Learn, RoundsConfig, run_rounds
from reasoning_rl.shares import refuse_engine_of_one_process


class ArithmeticOracle:
    """A StepScorer that knows the built-in world: 1 while every step so far is right, then 0."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = {problem.text: problem for problem in problems}

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        out: list[list[float | None]] = []
        for text, steps in zip(problems, solutions, strict=True):
            right, row = True, list[float | None]()
            for verdict in judge_steps(self.problems[text], steps):
                right = right and verdict == "right"
                row.append(float(right))
            out.append(row)
        return out


def train_dpo_iter(config: DPOIterConfig, *, accelerator: Any, log: MetricLog, resume: bool = False) -> Path:
    """Run iterative DPO as configured; return the folder of the trained policy."""
    learn = LearnPreferences(config, load_tokenizer(config.policy), accelerator)
    reward_model: ResponseScorer | None = None
    if config.reward_model is not None:
        from reasoning_rl.reward_model import load_response_scorer

        reward_model = load_response_scorer(config.reward_model, device=accelerator.device)
    return _run(
        config, learn, lambda _, current: current, accelerator, log, reward_model=reward_model, resume=resume
    )


def train_rft(config: RFTConfig, *, accelerator: Any, log: MetricLog, resume: bool = False) -> Path:
    """Run rejection sampling as configured; return the folder of the trained policy."""
    learn = LearnRight(config, load_tokenizer(config.policy), accelerator)

    def start(_: int, current: str) -> str:
        return config.policy if config.start == "first" else current

    return _run(config, learn, start, accelerator, log, resume=resume)


def pair_metrics(chosen: Sequence[float], rejected: Sequence[float]) -> dict[str, float]:
    """Return how a reward model orders pairs: accuracy with its 95 % interval (a tie counts as wrong), mean
    margin, Bradley-Terry loss in nats, and the calibration error of sigmoid(margin) as the chance of being
    right."""
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    right = [float(margin > 0) for margin in margins]
    low, high = wilson_interval(int(sum(right)), len(right))
    confidence = [1 / (1 + math.exp(-min(abs(margin), 500.0))) for margin in margins]
    return {
        "accuracy": sum(right) / len(right),
        "accuracy_low": low,
        "accuracy_high": high,
        "margin": sum(margins) / len(margins),
        "loss": float(bradley_terry(torch.tensor(margins).double(), torch.zeros(1))[0]) / len(margins),
        "ece": ece(right, confidence),
    }


def _run(
    config: RFTConfig | DPOIterConfig,
    learn: Learn,
    start: Callable[[int, str], str],
    accelerator: Any,
    log: MetricLog,
    *,
    reward_model: ResponseScorer | None = None,
    resume: bool,
) -> Path:
    sources = sources_of(config)
    if any(get_benchmark(name).judges == "program" for name, _ in sources):
        check_isolation(allow_unsandboxed=config.allow_unsandboxed)
    refuse_engine_of_one_process(config.rollout.engine, accelerator.num_processes)
    check_fit(config.fit, config.fit.batch_size, accelerator.num_processes)
    say = warnings.warn if accelerator.is_main_process else str
    problems, held_out = read_pool(config, sources, say=say)
    if len(problems) < config.rollout.problems_per_iteration:
        raise UserError(
            f"{config.problems}: {len(problems)} training problems, fewer than "
            f"rollout.problems_per_iteration {config.rollout.problems_per_iteration}; lower it"
        )
    grader = make_run_grader(config, sources)
    scorer = _scorer(config, problems, accelerator.device)
    with contextlib.ExitStack() as stack:
        engine = None
        if config.rollout.engine.backend != "hf":
            engine = PolicyEngine(
                config.rollout.engine, path=config.policy, device=accelerator.device, seed=config.seed
            )
            stack.callback(engine.close)
        return run_rounds(
            config,
            learn,
            start=start,
            problems=problems,
            grader=grader,
            accelerator=accelerator,
            log=log,
            scorer=scorer,
            reward_model=reward_model,
            validate=_validation(config, held_out, grader, load_tokenizer(config.policy), reward_model),
            make_generator=engine,
            resume=resume,
        )


def _scorer(config: RoundsConfig, problems: Sequence[Problem], device: Any) -> StepScorer | None:
    if config.prm == "oracle":
        return ArithmeticOracle(problems)
    if config.prm is None:
        return None
    return load_step_scorer(config.prm, config.prm_format, device=device).scorer
