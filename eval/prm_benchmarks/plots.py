"""Pictures of a benchmark run. matplotlib is an extra and is imported when a picture is drawn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.files import check_folder
from data.pictures import COLOURS, SOFT, drawing
from eval.prm_benchmarks.panels import Panels


def draw_panels(folder: str | Path, panels: Panels) -> list[Path]:
    """Write reliability.png, thresholds.png, localisation.png and best_of_n.png, those that have data.

    Returns their paths. Raises UserError when matplotlib is not installed or the folder cannot be made.
    """
    pictures: dict[str, Callable[[Any], None] | None] = {
        "reliability": (lambda axis: _reliability(axis, panels)) if panels.reliability else None,
        "thresholds": (lambda axis: _thresholds(axis, panels)) if panels.sweep else None,
        "localisation": lambda axis: _localisation(axis, panels),
        "best_of_n": (lambda axis: _best_of_n(axis, panels)) if panels.best_of_n else None,
    }
    paths = []
    check_folder(folder)
    for name, draw in pictures.items():
        path = Path(folder) / f"{name}.png"
        path.unlink(missing_ok=True)  # a picture of an earlier run would pass for one of this
        if draw is None:
            continue
        with drawing(path) as (_, axis):
            draw(axis)
        paths.append(path)
    return paths


def _reliability(axis: Any, panels: Panels) -> None:
    bins = panels.reliability
    most = max(one.num_steps for one in bins)
    for one in bins:
        axis.bar(
            one.low,
            one.share_right,
            width=one.high - one.low,
            align="edge",
            color=COLOURS[0],
            # Few steps, faint bar: how much each bin weighs in the calibration error.
            alpha=0.15 + 0.6 * one.num_steps / most,
            edgecolor="white",
        )
    axis.plot([0, 1], [0, 1], color=SOFT, lw=1, ls="--", label="calibrated")
    axis.plot(
        [one.mean_score for one in bins],
        [one.share_right for one in bins],
        color=COLOURS[1],
        marker="o",
        markersize=3,
        lw=1.4,
        label="steps",
    )
    axis.set(
        title=f"Reliability, ECE {panels.steps['ece']:.3f}",
        xlabel="score",
        ylabel="share of right steps",
        xlim=(0, 1),
        ylim=(0, 1),
    )


def _thresholds(axis: Any, panels: Panels) -> None:
    lines = {
        "first_error_f1": "first-error F1",
        "error_accuracy": "accuracy, with error",
        "correct_accuracy": "accuracy, correct",
        "prm_score": "step F1s, mean",
    }
    xs = [point.threshold for point in panels.sweep]
    for (name, label), colour in zip(lines.items(), COLOURS, strict=False):
        axis.plot(xs, [getattr(point, name) for point in panels.sweep], color=colour, lw=1.4, label=label)
    axis.axvline(panels.threshold, color=SOFT, lw=1, ls="--", label="threshold used")
    axis.set(title="Every threshold", xlabel="threshold", ylabel="share", ylim=(0, 1))


def _localisation(axis: Any, panels: Panels) -> None:
    names = ("exact", "early", "late", "missed", "false_alarm")
    colours = (COLOURS[2], COLOURS[1], COLOURS[1], COLOURS[3], SOFT)
    values = [panels.localisation[name] for name in names]
    axis.bar([name.replace("_", " ") for name in names], values, color=colours)
    for k, value in enumerate(values):
        if value == value:
            axis.annotate(f"{100 * value:.0f}", (k, value), ha="center", va="bottom", fontsize=8)
    axis.set(title="The first step called wrong", ylabel="share of solutions", ylim=(0, 1.05))


def _best_of_n(axis: Any, panels: Panels) -> None:
    for (how, curve), colour in zip(panels.best_of_n.items(), COLOURS, strict=False):
        axis.plot(
            list(curve), list(curve.values()), color=colour, marker="o", markersize=3, lw=1.4, label=how
        )
    axis.set(title=f"Best of N, {panels.num_pools} problems", xlabel="N", ylabel="accuracy", ylim=(0, 1))
    axis.set_xscale("log", base=2)
    ns = list(next(iter(panels.best_of_n.values())))
    axis.set_xticks(ns, [str(n) for n in ns])
