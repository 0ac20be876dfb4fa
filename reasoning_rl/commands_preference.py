"""Verbs that learn from preferences, or state them."""

from functools import partial
from operator import attrgetter
from pathlib import Path

from data.errors import UserError
from reasoning_rl.commands import (
    FIT_SHOWN,
    _say_plainly,
    held_out_problems,
    make_accelerator,
    run_training,
)
from reasoning_rl.live import Live, table_text
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

    run_training(
        args,
        "dpo",
        DPOConfig,
        train_dpo,
        shown=DPO_SHOWN,
        held_out=lambda config: ("held-out pairs", ""),
    )


def run_dpo_iter(args: list[str]) -> None:
    """`stepwell dpo-iter`."""
    from reasoning_rl.compose_preference import train_dpo_iter
    from reasoning_rl.dpo_iter import DPOIterConfig

    run_training(
        args,
        "dpo-iter",
        DPOIterConfig,
        train_dpo_iter,
        shown=ROUNDS_SHOWN,
        total=attrgetter("rounds"),
        held_out=held_out_problems,
    )


def run_rft(args: list[str]) -> None:
    """`stepwell rft`."""
    from reasoning_rl.compose_preference import train_rft
    from reasoning_rl.rft import RFTConfig

    run_training(
        args,
        "rft",
        RFTConfig,
        train_rft,
        shown=ROUNDS_SHOWN,
        total=attrgetter("rounds"),
        held_out=held_out_problems,
    )


def run_rm(args: list[str]) -> None:
    """`stepwell rm`."""
    from reasoning_rl.compose_preference import pair_metrics
    from reasoning_rl.reward_model import RMConfig, train_reward

    run_training(
        args,
        "rm",
        RMConfig,
        partial(train_reward, pair_metrics=pair_metrics),
        shown=DPO_SHOWN,
        held_out=lambda config: ("held-out pairs", ""),
        made="trained reward model",
    )


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
    with Live("duel", None, unit="problem") as live:
        device = make_accelerator().device
        first, second = parsed.positional
        result = run_duel(first, second, config, device=device, on_progress=live.follow)
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
