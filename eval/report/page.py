"""The report itself: report.html, which holds its pictures, and the same pictures as PNGs.

write_report("report", read_runs(["outputs/seed0", "outputs/seed1"]), show=lambda samples: "...")
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from data import pages
from data.pages import table, text, write_page
from data.protocols import StepScorer
from eval.report.figures import draw_all, shown_metrics
from eval.report.read import Evaluation, Run
from eval.report.tables import comparisons, evaluation_names, groups_grid, last_values, overview
from eval.report.worst import Worst, worst_samples

_STYLE = """
details{margin:.5rem 0}summary{cursor:pointer}section{margin:0 0 1.6rem}section h2{margin-top:1rem}
"""
_LEGEND = (
    '<p class="soft">Blue is a high score of the reward model, orange a low one; its number stands by '
    "each step. First come wrong answers whose every step it likes, and correct ones with a step that it "
    "does not.</p>"
)


def write_report(
    folder: str | Path,
    runs: Sequence[Run],
    *,
    show: Callable[[Sequence[Worst]], str],
    style: str = "",
    scorer_of: Callable[[Run, Evaluation], StepScorer | None] = lambda run, evaluation: None,
    num_worst: int = 5,
) -> Path:
    """Write the page and its pictures to the folder; return the page's path.

    `show` makes HTML (with the CSS `style`) of samples with scored steps; `scorer_of` gives the reward model
    that scores an evaluation's samples. Raises UserError without matplotlib or when nothing can be written.
    """
    curves, bars = draw_all(folder, runs)
    title = " against ".join(run.name for run in runs)
    parts = [f"<h1>{text(title)}</h1>", *_summary(runs)]
    if bars:
        parts.append(table("Evaluations", overview(runs)))
    compared = comparisons(runs)
    if len(compared) > 1:
        parts.append(table("Side by side: the same problems", compared))
    if bars:
        parts.append(pages.pictures(bars))
    for name in evaluation_names(runs):
        for field in ("level", "subject"):
            grid = groups_grid(runs, name, field)
            if len(grid) > 1:
                parts.append(table(f"{name}: accuracy by {field}, % [95 %]", grid))
    last = last_values(runs, shown_metrics())
    if len(last) > 1:
        parts += [table("Training", last), pages.pictures(curves) if curves else ""]
    worst = [
        part
        for run in runs
        for evaluation in run.evaluations.values()
        for part in _worst(run, evaluation, show, scorer_of(run, evaluation), num_worst)
    ]
    if worst:
        parts += ["<h2>The worst samples</h2>", _LEGEND, *worst]
    return write_page(Path(folder) / "report.html", title, parts, style=_STYLE + style)


def _summary(runs: Sequence[Run]) -> list[str]:
    """One line a run about what it holds, and what could not be found."""
    lines = []
    for run in runs:
        stages = ", ".join(f"{name.upper()} ({rows[-1]['iteration']:,})" for name, rows in run.stages.items())
        count = len(run.evaluations)
        evaluations = f"{count} evaluation" + "s" * (count != 1)
        lines.append(f"<b>{text(run.name)}</b>: {text(stages + ', ' if stages else '')}{evaluations}")
        levels = {
            name: level for name, one in run.evaluations.items() if (level := one.settings.get("isolation"))
        }
        for level in dict.fromkeys(levels.values()):
            names = ", ".join(name for name, found in levels.items() if found == level)
            lines.append(f"Programs of {text(names)} ran at isolation level {text(str(level))}")
        unknown = [name for name, one in run.evaluations.items() if one.problems is None]
        if unknown:
            lines.append(
                f"The problems of {text(', '.join(unknown))} could not be read again: no levels, subjects "
                "or new scores"
            )
    return [f'<p class="soft">{line}.</p>' for line in lines]


def _worst(
    run: Run,
    evaluation: Evaluation,
    show: Callable[[Sequence[Worst]], str],
    scorer: StepScorer | None,
    count: int,
) -> list[str]:
    samples = worst_samples(evaluation, count=count, scorer=scorer) if count else []
    if not samples:
        return []
    scored = any(score is not None for one in samples for score in one.scores)
    how = "where scores and verdict disagree most" if scored else "the first wrong ones; no step scores"
    return [
        f"<details><summary>{text(run.name)}, {text(evaluation.name)}: {len(samples)} samples "
        f'<span class="soft">({how})</span></summary>{show(samples)}</details>'
    ]
