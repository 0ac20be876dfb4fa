"""Verbs that learn from preferences, or state them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.errors import UserError
from reasoning_rl.commands import FIT_SHOWN, _say, _say_plainly, _with_live_log, make_accelerator
from reasoning_rl.live import Live, table_text
from reasoning_rl.options import parse
from reasoning_rl.telemetry import read_metrics

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


def run_rm(args: list[str]) -> None:
    """`stepwell rm`."""
    from reasoning_rl.compose_preference import pair_metrics
    from reasoning_rl.reward_model import RMConfig, train_reward

    parsed = parse(args, RMConfig, flags=["resume"])
    config = RMConfig.from_dict(parsed.values, parsed.where)
    accelerator = make_accelerator()
    folder = _with_live_log(
        accelerator,
        config.output_dir,
        config,
        "rm",
        DPO_SHOWN,
        lambda log: train_reward(
            config,
            accelerator=accelerator,
            log=log,
            pair_metrics=pair_metrics,
            resume="resume" in parsed.flags,
        ),
    )
    if accelerator.is_main_process:
        last = [row for row in read_metrics(config.output_dir) if "valid/accuracy" in row][-1:]
        rows = [
            (k.removeprefix("valid/"), f"{v:.4g}") for row in last for k, v in row.items() if "valid/" in k
        ]
        _say(accelerator, table_text([("held-out pairs", ""), *rows]))
    _say(accelerator, f"trained reward model: {folder}")


def run_duel_command(args: list[str]) -> None:
    """`stepwell duel A B`."""
    from reasoning_rl.compose_duel import run_duel
    from reasoning_rl.duel import DuelConfig

    parsed = parse(args, DuelConfig, positional=2, flags=["allow_unsandboxed"])
    if "allow_unsandboxed" in parsed.flags:
        parsed.values["allow_unsandboxed"] = True
    config = DuelConfig.from_dict(parsed.values, parsed.where)
    if len(parsed.positional) < 2:
        raise UserError("which policies? stepwell duel MODEL MODEL; the verdicts are the first one's")
    with Live("duel", 1) as live:
        device = make_accelerator().device
        result = run_duel(*parsed.positional, config, device=device, on_progress=live.follow)
    rows = [("first against second", f"{result['judged']} judged, {result['unjudged']} not")]
    for name in ("win", "tie", "lose", "win_rate"):
        found = result[name]
        text = "undefined: none"
        if found["value"] is not None:
            text = f"{found['value']:.3f}  [{found['low']:.3f}, {found['high']:.3f}]  of {found['of']}"
        rows.append((name.replace("_", " "), text + (" decided" if name == "win_rate" else "")))
    rows.append(("wins against losses", f"p {result['p']:.3g}"))
    _say_plainly(table_text(rows))
    _say_plainly(f"every pair with its verdict: {Path(config.output_dir) / 'duel.jsonl'}")
