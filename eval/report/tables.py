"""The numbers of a report as tables: accuracies with 95% intervals, by level and subject, and between runs.

A problem's value is the share of its judged samples that are correct; problems are what is averaged and
resampled. Intervals are Wilson's where every problem is right or wrong, else the bootstrap over problems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from eval.benchmarks import NO_ANSWER
from eval.metrics import bootstrap_interval, wilson_interval
from eval.report.read import Evaluation, Run
from eval.result import Row

Grid = list[list[str]]
"""Cells as text, the head first."""


@dataclass(frozen=True, slots=True)
class Bar:
    """The accuracy of one group of problems."""

    label: str
    value: float
    low: float
    high: float
    num_problems: int

    @property
    def shown(self) -> str:
        if self.low != self.low:
            return f"{100 * self.value:.1f}"  # of one problem there is no interval
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def accuracy(label: str, rows: Mapping[str, Sequence[Row]]) -> Bar | None:
    """Return the accuracy of these problems; None when no sample of any is judged."""
    values = list(values_by_problem(rows).values())
    if not values:
        return None
    if all(value in (0.0, 1.0) for value in values):
        interval = wilson_interval(int(sum(values)), len(values))
    else:
        interval = bootstrap_interval(values)
    return Bar(label, fmean(values), *interval, len(values))


def values_by_problem(rows: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Problem id -> share of correct among its judged samples; without a judged one it is left out."""
    values = {}
    for name, group in rows.items():
        judged = [row["verdict"] == "correct" for row in group if row["verdict"] != "unjudged"]
        if judged:
            values[name] = sum(judged) / len(judged)
    return values


def breakdown(evaluation: Evaluation, field: Literal["level", "subject"]) -> list[Bar]:
    """Return the accuracy of each level or subject; empty unless problems are known and differ in it."""
    if evaluation.problems is None:
        return []
    groups: dict[int | str, dict[str, list[Row]]] = {}
    for name, rows in evaluation.rows.items():
        problem = evaluation.problems.get(name)
        key = None if problem is None else getattr(problem, field)
        if key not in (None, ""):
            groups.setdefault(key, {})[name] = rows
    if len(groups) < 2:
        return []
    bars = [accuracy(str(key), groups[key]) for key in sorted(groups)]
    return [bar for bar in bars if bar is not None]


def overview(runs: Sequence[Run]) -> Grid:
    """Return one line for each evaluation of each run."""
    grid = [
        ["evaluation", "run", "accuracy, % [95 %]", "problems", "samples", "no answer", "cut off", "tokens"]
    ]
    for name in evaluation_names(runs):
        for run in runs:
            if name not in run.evaluations:
                continue
            groups = run.evaluations[name].rows
            flat = [row for group in groups.values() for row in group]
            bar = accuracy(name, groups)
            cut = [row["finish_reason"] for row in flat if row.get("finish_reason")]
            tokens = sum(row.get("num_tokens") or row.get("tokens") or 0 for row in flat)
            none = sum(row.get("reason") == NO_ANSWER for row in flat)
            grid.append(
                [name, run.name, bar.shown if bar else "none judged", f"{len(groups):,}", f"{len(flat):,}"]
                + [f"{none / len(flat):.1%}", f"{cut.count('length') / len(cut):.1%}" if cut else "-"]
                + [f"{tokens:,}" if tokens else "-"]
            )
    return grid


def groups_grid(runs: Sequence[Run], name: str, field: Literal["level", "subject"]) -> Grid:
    """Return an evaluation's accuracy by level or subject, one column a run; only a head without groups."""
    columns = {run.name: breakdown(run.evaluations[name], field) for run in runs if name in run.evaluations}
    bars = {run: {bar.label: bar for bar in column} for run, column in columns.items()}
    labels = list(dict.fromkeys(bar.label for column in columns.values() for bar in column))
    grid = [[field, "problems", *columns]]
    for label in labels:
        counts = [f"{bars[run][label].num_problems:,}" if label in bars[run] else "-" for run in columns]
        count = counts[0] if len(set(counts)) == 1 else " / ".join(counts)
        grid.append(
            [label, count, *(bars[run][label].shown if label in bars[run] else "-" for run in columns)]
        )
    return grid


def comparisons(runs: Sequence[Run]) -> Grid:
    """Return what each run changed against the first one that has the same evaluation, problem by problem."""
    grid = [["evaluation", "run", "against", "problems", "difference, points [95 %]", "better", "worse"]]
    for name in evaluation_names(runs):
        having = [run for run in runs if name in run.evaluations]
        for run in having[1:]:
            first, other = (values_by_problem(one.evaluations[name].rows) for one in (having[0], run))
            common = [key for key in first if key in other]
            if not common:
                grid.append([name, run.name, having[0].name, "0", "other problems", "-", "-"])
                continue
            gaps = [other[key] - first[key] for key in common]
            low, high = bootstrap_interval(gaps)
            interval = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if len(gaps) > 1 else ""
            grid.append(
                [name, run.name, having[0].name, f"{len(common):,}"]
                + [f"{100 * fmean(gaps):+.1f}{interval}"]
                + [str(sum(gap > 0 for gap in gaps)), str(sum(gap < 0 for gap in gaps))]
            )
    return grid


def last_values(runs: Sequence[Run], metrics: Mapping[str, Sequence[str]]) -> Grid:
    """Return the last value of each metric of each stage, one column a run, where any run has it."""
    grid = [["last value of", *(run.name for run in runs)]]
    for stage, names in metrics.items():
        for name in names:
            last = [
                [row[name] for row in run.stages.get(stage, []) if row.get(name) is not None] for run in runs
            ]
            if any(last):
                grid.append([f"{stage.upper()} {name}", *(f"{one[-1]:.4g}" if one else "-" for one in last)])
    return grid


def evaluation_names(runs: Sequence[Run]) -> list[str]:
    """Return the names of all evaluations, in the order of the runs."""
    return list(dict.fromkeys(name for run in runs for name in run.evaluations))
