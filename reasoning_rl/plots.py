"""Pictures of a run, from its JSON lines. matplotlib is an extra: without it there is one clear line."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.pictures import COLOURS, drawing


def learning_curves(
    path: str | Path,
    sft: Sequence[Mapping[str, float]],
    prm: Sequence[Mapping[str, float]],
    ppo: Sequence[Mapping[str, float]],
) -> Path:
    """Write one PNG with four panels: SFT loss, PRM loss, PPO accuracy on held-out problems, PPO monitors."""
    with drawing(path, size=(15, 3.4), columns=4) as (_, axes):
        _line(axes[0], sft, "train/loss", COLOURS[0], "loss (nats a token)")
        axes[0].set(title="1  SFT", xlabel="update", ylim=(0, None))
        _line(axes[1], prm, "train/loss", COLOURS[1], "training (nats a step)")
        axes[1].set(title="2  process reward model", xlabel="update", ylim=(0, None))
        _line(axes[2], ppo, "valid/greedy", COLOURS[2], "greedy", marker="o")
        _line(axes[2], ppo, "valid/sampled", COLOURS[0], "sampled, T = 1", marker="o")
        axes[2].set(title="3  PPO-max: held-out accuracy", xlabel="iteration", ylim=(0, 1))
        _line(axes[3], ppo, "reward/step_score", COLOURS[1], "PRM score")
        _line(axes[3], ppo, "reward/outcome", COLOURS[0], "verified outcome")
        axes[3].set(title="4  PPO-max: what is paid, what is true", xlabel="iteration", ylim=(0, 1))
        kl = axes[3].twinx()
        _line(kl, ppo, "policy/kl_per_response", COLOURS[3], "KL to reference")
        kl.set_ylabel("nats a response", color=COLOURS[3], fontsize=8)
        kl.set_ylim(0, None)
        kl.spines["right"].set_visible(True)
        axes[3].plot([], [], color=COLOURS[3], label="KL to reference (right axis)", lw=1.4)
    return Path(path)


def _line(
    axis: Any,
    rows: Sequence[Mapping[str, float]],
    name: str,
    colour: str,
    label: str,
    marker: str | None = None,
) -> None:
    points = [(row["iteration"], row[name]) for row in rows if row.get(name) is not None]
    if points:
        axis.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=3, lw=1.4)
