"""Verbs that learn from preferences, or state them."""

from reasoning_rl.commands import FIT_SHOWN, _say, _with_live_log, make_accelerator
from reasoning_rl.options import parse

DPO_SHOWN = {
    **FIT_SHOWN,
    "train/accuracy": "accuracy",
    "train/margin": "margin",
    "valid/accuracy": "held out",
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
