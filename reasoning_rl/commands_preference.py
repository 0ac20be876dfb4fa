"""Verbs that learn from preferences, or state them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from reasoning_rl.commands import FIT_SHOWN, _say, _with_live_log, make_accelerator
from reasoning_rl.options import parse

DPO_SHOWN = {
    **FIT_SHOWN,
    "train/accuracy": "accuracy",
    "train/margin": "margin",
    "valid/accuracy": "held out",
}


ROUNDS_SHOWN = {
    "reward/outcome": "outcome",
    "pairs/count": "pairs",
    "chains/count": "chains",
    "valid/greedy": "greedy",
    "valid/sampled": "sampled",
}


def run_dpo(args: list[str]) -> None:
    """`stepwell dpo`."""
    from reasoning_rl.dpo import DPOConfig, train_dpo

    parsed = parse(args, DPOConfig, flags=["resume"])
    config = DPOConfig.from_dict(parsed.values, parsed.where)
    accelerator = make_accelerator()
    folder = _with_live_log(
        accelerator,
        config.output_dir,
        config,
        "dpo",
        DPO_SHOWN,
        lambda log: train_dpo(config, accelerator=accelerator, log=log, resume="resume" in parsed.flags),
    )
    _say(accelerator, f"trained policy: {folder}")


def run_dpo_iter(args: list[str]) -> None:
    """`stepwell dpo-iter`."""
    from reasoning_rl.compose_preference import train_dpo_iter
    from reasoning_rl.dpo_iter import DPOIterConfig

    _run_rounds(args, "dpo-iter", DPOIterConfig, train_dpo_iter)


def run_rft(args: list[str]) -> None:
    """`stepwell rft`."""
    from reasoning_rl.compose_preference import train_rft
    from reasoning_rl.rft import RFTConfig

    _run_rounds(args, "rft", RFTConfig, train_rft)


def _run_rounds(args: list[str], title: str, kind: type[Any], train: Callable[..., Path]) -> None:
    parsed = parse(args, kind, flags=["resume"])
    config = kind.from_dict(parsed.values, parsed.where)
    accelerator = make_accelerator()
    folder = _with_live_log(
        accelerator,
        config.output_dir,
        config,
        title,
        ROUNDS_SHOWN,
        lambda log: train(config, accelerator=accelerator, log=log, resume="resume" in parsed.flags),
        total=config.rounds,
    )
    _say(accelerator, f"trained policy: {folder}")
