"""What a run shows while it runs: a bar with the time left and the few numbers that matter.

In a terminal one live line, for PPO above a board of indicators with their courses; elsewhere (a file, a
pipe, CI) a plain line every few seconds. An indicator that leaves its healthy range gets a line in both.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from reasoning_rl.indicator_table import INDICATORS
from reasoning_rl.indicators import BY_NAME, Watch

BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 16


class Board:
    """The indicators of a run: course, latest value, healthy range; a mark where it is left."""

    def __init__(self) -> None:
        self.courses: dict[str, list[float]] = {}
        self.watch = Watch()

    def add(self, iteration: int, metrics: Mapping[str, float]) -> list[str]:
        """Take one iteration's numbers in; return an alert for each indicator that left its range."""
        for name in BY_NAME:
            value = metrics.get(name)
            if value is not None and math.isfinite(value):
                self.courses.setdefault(name, []).append(value)
        return self.watch.check(iteration, metrics)

    def lines(self, limit: int | None = None) -> list[Text]:
        """Return the board, at most `limit` lines of at most 79 columns, what is out of range first."""
        shown = [i for i in INDICATORS if i.name in self.courses and not i.minor]
        shown.sort(key=lambda i: not self.watch.is_outside(i.name))
        lines = []
        for indicator in shown[:limit]:
            course, outside = self.courses[indicator.name], self.watch.is_outside(indicator.name)
            text = f"{'!' if outside else ' '}{indicator.name:<31} {sparkline(course):<{SPARK_WIDTH}}"
            text += f" {course[-1]:>8.3g}  {indicator.range_text()}"
            lines.append(Text(text[:79].rstrip(), style="bold red" if outside else ""))
        return lines


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Return a course as at most `width` bars between its lowest and highest value.

    Of a longer course each bar is the mean of its share. A constant is a line at half height.
    """
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(k * len(values) / count) for k in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        return BARS[3] * count
    return "".join(BARS[round((m - low) / (high - low) * (len(BARS) - 1))] for m in means)


class _BarAndBoard(Progress):
    """A progress bar with a board below it."""

    board: Board | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.board is not None:
            yield Group(*self.board.lines(max(0, self.console.height - 4)))


class Live:
    """A context manager around one stage of `total` iterations; call `watch` (of RunLog) or `show`.

    total: None where only the loop knows; it then says so by the metric "train/total_updates".
    shown: metric names to print, with the label they get. board: show the indicators, with alerts.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        *,
        shown: Mapping[str, str] | None = None,
        console: Console | None = None,
        every_seconds: float = 15.0,
        board: bool = False,
    ) -> None:
        self.board = Board() if board else None
        self.title, self.total = title, total
        self.shown = dict(shown or {})
        self.console = console or Console(stderr=True)
        self.every_seconds = every_seconds
        self.started = self.last_line = time.monotonic()
        self.first: int | None = None
        self.values: dict[str, float] = {}
        self.progress: Progress | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.progress = _BarAndBoard(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
            )
            self.progress.board = self.board
            self.progress.start()
            self.task = self.progress.add_task(self.title, total=self.total, numbers="")
        else:
            self.console.print(f"{self.title}: started" + (f", {self.total} to do" if self.total else ""))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.progress is not None:
            self.progress.stop()
        elif kind is None:
            self.console.print(f"{self.title}: done in {time.monotonic() - self.started:.0f} s")

    def watch(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Show iteration `iteration` of `total` with its metrics."""
        if "train/total_updates" in metrics:
            self.total = int(metrics["train/total_updates"])
        if self.board is not None:
            for alert in self.board.add(iteration, metrics):
                console = self.progress.console if self.progress is not None else self.console
                console.print(Text(f"{self.title}: alert, {alert}", style="red"), soft_wrap=True)
        self.show(iteration, {label: metrics[name] for name, label in self.shown.items() if name in metrics})

    def follow(self, done: int, total: int, numbers: Mapping[str, float] | None = None) -> None:
        """Show work whose extent is known only when it runs."""
        self.total = total
        self.show(done, numbers or {})

    def show(self, done: int, numbers: Mapping[str, float]) -> None:
        """Show that `done` of `total` are finished, with numbers under their labels."""
        self.values |= numbers
        if self.first is None:
            self.first = done  # a resumed run starts in the middle
        if self.progress is not None:
            self.progress.update(self.task, completed=done, total=self.total, numbers=self._numbers())
            return
        now = time.monotonic()
        if now - self.last_line >= self.every_seconds:
            self.last_line = now
            of = f"{done}/{self.total}" if self.total else str(done)
            self.console.print(
                f"{self.title}: {of}{self._left(now, done)}  {self._numbers()}", highlight=False
            )

    def _left(self, now: float, done: int) -> str:
        fresh = done - (self.first or 0)
        if fresh <= 0 or not self.total:
            return ""
        seconds = (now - self.started) / fresh * (self.total - done)
        return f", {seconds:.0f} s left"

    def _numbers(self) -> str:
        return "  ".join(f"{label} {value:.3g}" for label, value in self.values.items())


def seconds_text(seconds: float) -> str:
    """Return "3 min 05 s" or "12.3 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if seconds >= 59.95 else f"{seconds:.1f} s"


def table_text(rows: Iterable[tuple[str, str]]) -> str:
    """Return two aligned columns."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def grid_text(rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
