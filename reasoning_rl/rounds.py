"""Rounds of sampling and supervised learning: what iterative DPO and rejection sampling have in common.

A round draws problems, samples from the policy of the round before, and hands the scored responses to
`learn`, which trains on them. Nothing is updated while sampling, so a round is off-policy by one model: that
is the difference to PPO. Each round has a folder; one that is finished is never done again.

    round_01/samples.jsonl    every response with its verdict, step scores and reward
    round_01/model/           the policy after the round
    round_01/result.json      the round's metrics
    metrics.jsonl             one line a round; line 0 is the policy that came in
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel

from data.errors import UserError
from data.files import write_atomically
from data.prompts import get_template, render
from data.protocols import Grader, MetricLog, ResponseScorer, StepScorer, TextGenerator
from data.schema import Problem, Sampling
from prm.checkpoint import save_model
from prm.model import load_backbone, load_tokenizer
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.sampled import Group, group_metrics, read_groups, sample_groups, write_groups
from reasoning_rl.sampler import ProblemSampler
from reasoning_rl.telemetry import RunLog, read_metrics
from reasoning_rl.train_config import RoundsConfig

Validate = Callable[[Any], Mapping[str, float]]
"""A generator over the current policy -> valid/* metrics."""


class Learn(Protocol):
    """What a round does with its samples."""

    def __call__(
        self, round_: int, policy: PreTrainedModel, groups: Sequence[Group], folder: Path
    ) -> Mapping[str, float]:
        """Train `policy` in place, with checkpoints under `folder`; return metrics of the round."""
        ...


def run_rounds(
    config: RoundsConfig,
    learn: Learn,
    *,
    start: Callable[[int, str], str],
    problems: Sequence[Problem],
    grader: Grader | None,
    accelerator: Any,
    log: MetricLog,
    scorer: StepScorer | None = None,
    reward_model: ResponseScorer | None = None,
    validate: Validate | None = None,
    make_generator: Callable[[PreTrainedModel, Any], TextGenerator] | None = None,
    resume: bool = False,
) -> Path:
    """Do all rounds that are not done yet; return the folder of the last policy.

    make_generator: (policy, tokenizer) -> what samples from it, asked anew for every policy and put to sleep,
    where it can sleep, while one trains; none: transformers, on this process's device.
    start: (round from 1, folder of the policy that was sampled) -> folder of the weights the training starts
    from. Raises UserError when output_dir holds a run and `resume` is off.
    """
    folder = Path(config.output_dir)
    _claim(folder, resume)
    tokenizer = load_tokenizer(config.policy)
    sampler = ProblemSampler(problems, config.seed)
    is_main = accelerator.is_main_process

    def generator_over(model: PreTrainedModel) -> TextGenerator:
        if make_generator is not None:
            return make_generator(model, tokenizer)
        return HFGenerator(model.to(accelerator.device), tokenizer, max_batch=config.rollout.max_batch)

    current, done = config.policy, _finished_rounds(folder)
    accelerator.wait_for_everyone()  # all have looked before one writes
    if is_main:
        log.rewind(0 if done else -1)
        if validate and not done:
            log(0, validate(generator_over(load_backbone(current))))
        for round_ in range(1, done + 1):  # a crash may have come between a round's result and its line
            log(round_, json.loads(_round_folder(folder, round_, "result.json").read_text(encoding="utf-8")))
    for round_ in range(1, config.rounds + 1):
        drawn = sampler.next(config.rollout.problems_per_iteration)
        own = _round_folder(folder, round_)
        if round_ > done:
            path = own / "samples.jsonl"
            if is_main and not path.exists():
                generator = generator_over(load_backbone(current))
                groups = sample_groups(
                    generator,
                    drawn,
                    _sampling(config, round_),
                    render=lambda text: render(config.rollout.template, text, tokenizer),
                    splitter=config.rollout.splitter,
                    grader=grader,
                    scorer=scorer,
                    reward_model=reward_model,
                )
                write_groups(path, groups)
                if hasattr(generator, "sleep"):
                    generator.sleep()
                del generator  # the policy that it samples from need not stay in memory
            accelerator.wait_for_everyone()
            groups = read_groups(path)
            model = load_backbone(start(round_, current))
            metrics = group_metrics(groups) | dict(learn(round_, model, groups, own))
            if is_main:
                save_model(own / "model", model, tokenizer)
                metrics |= validate(generator_over(model)) if validate else {}
                write_atomically(own / "result.json", json.dumps(metrics, indent=1) + "\n")
                log(round_, metrics)
                shutil.rmtree(own / "checkpoints", ignore_errors=True)  # of the training: it is over
            accelerator.wait_for_everyone()
        current = str(own / "model")
    final = folder / "model"
    if is_main:
        save_model(final, load_backbone(current), tokenizer)
    accelerator.wait_for_everyone()
    return final


def _sampling(config: RoundsConfig, round_: int) -> Sampling:
    rollout = config.rollout
    return Sampling(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        n=rollout.samples_per_problem,
        stop=get_template(rollout.template).stop,
        seed=round_seed(config.seed, round_),
    )


def _claim(folder: Path, resume: bool) -> None:
    if (folder / "model").exists():
        raise UserError(f"{folder}: holds the model of an earlier run; choose another output_dir")
    if list(folder.glob("round_*")) and not resume:
        raise UserError(f"{folder}: holds rounds of an earlier run; add --resume or change output_dir")


def _finished_rounds(folder: Path) -> int:
    done = 0
    while _round_folder(folder, done + 1, "result.json").exists():
        done += 1
    return done


def _round_folder(folder: Path, round_: int, *below: str) -> Path:
    return folder.joinpath(f"round_{round_:02d}", *below)


def round_seed(seed: int, round_: int) -> int:
    """Return the seed of a round's sampling and training."""
    return 1000 * seed + round_


def round_log(folder: Path, accelerator: Any) -> MetricLog:
    """Return where the training of a round reports; the processes that do not write stay silent."""
    return RunLog(folder) if accelerator.is_main_process else _Silent()


def last_metrics(folder: Path, group: str) -> dict[str, float]:
    """Return the last figures of a round's training, as `group/name`."""
    kept = ("loss", "accuracy", "margin", "chosen_logprob")
    last = (read_metrics(folder) or [{}])[-1]
    return {f"{group}/{name}": last[f"train/{name}"] for name in kept if f"train/{name}" in last}


class _Silent:
    def __call__(self, iteration: int, metrics: Mapping[str, float]) -> None:
        return

    def rewind(self, iteration: int) -> None:
        return
