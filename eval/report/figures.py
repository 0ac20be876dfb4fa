"""The pictures of a report: one for each panel that any run has data for, a colour a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.files import check_folder
from data.pictures import COLOURS, drawing
from eval.report.read import STAGES, Run
from eval.report.tables import Bar, accuracy, breakdown, evaluation_names

LINES = ("-", "--", ":")


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of one stage's metrics."""

    name: str
    stage: str
    title: str
    metrics: dict[str, str]
    """Metric -> label; the first is drawn solid, the next dashed, the third dotted."""
    unit: str = ""
    is_share: bool = False


PANELS = (
    Panel(
        "sft_loss", "sft", "SFT: loss", {"train/loss": "training", "valid/loss": "held out"}, "nats a token"
    ),
    Panel(
        "prm_loss", "prm", "PRM: loss", {"train/loss": "training", "valid/loss": "held out"}, "nats a step"
    ),
    Panel(
        "prm_quality",
        "prm",
        "PRM: held-out steps",
        {
            "valid/step_auc": "AUC",
            "valid/step_accuracy": "accuracy",
            "valid/first_error_f1": "first-error F1",
        },
        is_share=True,
    ),
    Panel(
        "ppo_accuracy",
        "ppo",
        "PPO: held-out accuracy",
        {"valid/greedy": "greedy", "valid/sampled": "sampled"},
        is_share=True,
    ),
    Panel(
        "ppo_reward",
        "ppo",
        "PPO: what is paid, what is true",
        {"reward/outcome": "verified outcome", "reward/step_score": "PRM score"},
        is_share=True,
    ),
    Panel("ppo_kl", "ppo", "PPO: KL to the reference", {"policy/kl_per_response": "KL"}, "nats a response"),
    Panel("ppo_steps", "ppo", "PPO: steps of a response", {"hack/num_steps": "steps"}, "steps"),
)


def shown_metrics() -> dict[str, list[str]]:
    """Return the metrics of all panels by stage."""
    return {
        stage: [name for panel in PANELS if panel.stage == stage for name in panel.metrics]
        for stage in STAGES
    }


def draw_all(folder: str | Path, runs: Sequence[Run]) -> tuple[list[Path], list[Path]]:
    """Write the PNGs; return the paths of (curves, evaluations). Those of an earlier report are removed."""
    folder = Path(folder)
    check_folder(folder)
    for old in [*(folder / f"{panel.name}.png" for panel in PANELS), *folder.glob("level_*.png")]:
        old.unlink(missing_ok=True)
    (folder / "accuracy.png").unlink(missing_ok=True)
    curves = [path for panel in PANELS if (path := _draw_panel(folder, panel, runs))]
    names = evaluation_names(runs)
    bars = [_draw_accuracies(folder / "accuracy.png", runs, names)] if names else []
    for name in names:
        if path := _draw_levels(folder / f"level_{name.replace('/', '_')}.png", runs, name):
            bars.append(path)
    return curves, bars


def _draw_panel(folder: Path, panel: Panel, runs: Sequence[Run]) -> Path | None:
    lines = []
    for k, run in enumerate(runs):
        rows = run.stages.get(panel.stage, [])
        for style, (metric, label) in zip(LINES, panel.metrics.items(), strict=False):
            points = [(row["iteration"], row[metric]) for row in rows if row.get(metric) is not None]
            if len(points) > 1:  # a single value stands in the table
                shown = f"{run.name}, {label}" if len(runs) > 1 else label
                # One run: a colour a metric tells more than dashes do.
                colour = COLOURS[(k if len(runs) > 1 else LINES.index(style)) % len(COLOURS)]
                lines.append((points, colour, style if len(runs) > 1 else "-", shown))
    if not lines:
        return None
    path = folder / f"{panel.name}.png"
    with drawing(path) as (_, axis):
        for points, colour, style, label in lines:
            marker = "o" if len(points) <= 20 else None
            axis.plot(
                *zip(*points, strict=True),
                color=colour,
                ls=style,
                lw=1.4,
                marker=marker,
                markersize=3,
                label=label,
            )
        axis.set(title=panel.title, xlabel="iteration" if panel.stage == "ppo" else "update")
        axis.set_ylabel(panel.unit)
        axis.set_ylim(0, 1.02 if panel.is_share else None)
    return path


def _draw_accuracies(path: Path, runs: Sequence[Run], names: Sequence[str]) -> Path:
    """Every evaluation's accuracy with its interval, one row each, the runs side by side."""
    height = 0.9 + 0.28 * len(names) * len(runs)
    with drawing(path, size=(5.2, max(2.2, height))) as (_, axis):
        for k, run in enumerate(runs):
            found = [
                (i, accuracy(n, run.evaluations[n].rows)) for i, n in enumerate(names) if n in run.evaluations
            ]
            bars = [(i, bar) for i, bar in found if bar is not None]
            if bars:
                places = [-i - (k - (len(runs) - 1) / 2) * 0.7 / len(runs) for i, _ in bars]
                errors = _errors([bar for _, bar in bars])
                values = [bar.value for _, bar in bars]
                colour = COLOURS[k % len(COLOURS)]
                axis.errorbar(
                    values,
                    places,
                    xerr=errors,
                    fmt="o",
                    ms=4,
                    lw=1.4,
                    color=colour,
                    label=_legend(run.name, runs),
                )
        axis.set_yticks([-i for i in range(len(names))], names, fontsize=8)
        axis.set(title="Accuracy with its 95 % interval", xlim=(-0.02, 1.02))
        axis.set_ylim(-len(names) + 0.4, 0.6)
    return path


def _draw_levels(path: Path, runs: Sequence[Run], name: str) -> Path | None:
    columns = [
        (run.name, breakdown(run.evaluations[name], "level")) for run in runs if name in run.evaluations
    ]
    columns = [(run, bars) for run, bars in columns if bars]
    if not columns:
        return None
    labels = sorted({bar.label for _, bars in columns for bar in bars}, key=int)
    width = 0.8 / len(columns)
    with drawing(path) as (_, axis):
        for k, (run, bars) in enumerate(columns):
            places = [labels.index(bar.label) + (k - (len(columns) - 1) / 2) * width for bar in bars]
            errors = _errors(bars)
            colour = COLOURS[[one.name for one in runs].index(run) % len(COLOURS)]
            axis.bar(
                places,
                [bar.value for bar in bars],
                width * 0.92,
                color=colour,
                alpha=0.75,
                label=_legend(run, runs),
            )
            axis.errorbar(places, [bar.value for bar in bars], yerr=errors, fmt="none", ecolor="#555", lw=1)
        axis.set_xticks(range(len(labels)), labels)
        axis.set(title=f"{name}: accuracy by level", xlabel="level", ylim=(0, 1.02))
        if len(columns) > 1:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": min(4, len(columns))}
            axis.legend(frameon=False, fontsize=8, **below)
    return path


def _legend(name: str, runs: Sequence[Run]) -> str | None:
    """One run alone needs no legend."""
    return name if len(runs) > 1 else None


def _errors(bars: Sequence[Bar]) -> list[list[float]]:
    """How far the intervals reach below and above; rounding may leave an end a hair on the wrong side."""
    below = [max(0.0, bar.value - bar.low) for bar in bars]
    return [below, [max(0.0, bar.high - bar.value) for bar in bars]]
