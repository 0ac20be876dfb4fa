"""What a run shows while it runs: a bar with the time left, the speed and the few numbers that matter.

In a terminal of 80 columns or more a bar above the numbers, for PPO above a board of indicators with their
courses; elsewhere (a file, a pipe, CI) a plain line every few seconds. An indicator that leaves its healthy
range gets a line in both. STEPWELL_QUIET=1 (--quiet) leaves those lines alone.
"""

import math
import os
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
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


class _Clock(ProgressColumn):
    """Time gone and time left, which run on between two records."""

    def __init__(self, live: "Live") -> None:
        super().__init__()
        self.live = live

    def render(self, task: Task) -> Text:
        now = time.monotonic()
        left = self.live.seconds_left(now)
        told = "" if left is None else f"  left {_clock_text(left)}"
        return Text(_clock_text(now - self.live.started) + told)


class _BarAndBoard(Progress):
    """A progress bar, the numbers below it and a board below them, within the terminal."""

    def __init__(self, view: "Live") -> None:
        self.view = view
        super().__init__(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[count]}"),
            _Clock(view),
            console=view.console,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        lines = self.view.number_lines(self.view.console.width - 1)
        if lines:
            yield Text("\n".join(lines), no_wrap=True)
        if self.view.board is not None:
            yield Group(*self.view.board.lines(max(0, self.view.console.height - 4 - len(lines))))


class Live:
    """A context manager around one stage of `total` iterations; call `watch` (of RunLog) or `show`.

    total: None where only the loop knows; it then says so by the metric "train/total_updates".
    shown: metric names to print, with the label they get. board: show the indicators, with alerts.
    unit: what is counted, for the speed ("3.2 problems/s", "41 s/iteration"); "" shows none.
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
        unit: str = "",
    ) -> None:
        self.board = Board() if board else None
        self.title, self.total, self.unit = title, total, unit
        self.shown = dict(shown or {})
        self.console = console or Console(stderr=True)
        self.every_seconds = every_seconds
        self.started = self.last_line = time.monotonic()
        self.first: tuple[float, int, float] | None = None
        """When the first record came, and what was done and how many tokens were made by then."""
        self.latest: tuple[float, int] = (self.started, 0)
        self.values: dict[str, float] = {}
        self.progress: _BarAndBoard | None = None

    def __enter__(self) -> Self:
        if is_quiet():
            return self
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.progress = _BarAndBoard(self)
            self.task = self.progress.add_task(self.title, total=self.total, count=self._count())
            self.progress.start()
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
        elif kind is None and not is_quiet():
            self.console.print(f"{self.title}: done in {seconds_text(time.monotonic() - self.started)}")

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
        """Show work whose extent is known only when it runs. A count of "tokens" is shown with its speed."""
        self.total = total
        self.show(done, numbers or {})

    def show(self, done: int, numbers: Mapping[str, float]) -> None:
        """Show that `done` of `total` are finished, with numbers under their labels."""
        now = time.monotonic()
        self.values |= numbers
        self.latest = (now, done)
        if self.first is None:
            self.first = (now, done, numbers.get("tokens", 0.0))  # a resumed run starts in the middle
        began, _, tokens = self.first
        if "tokens" in numbers and now > began:
            self.values["tokens/s"] = (numbers["tokens"] - tokens) / (now - began)
        if is_quiet():
            return
        if self.progress is not None:
            self.progress.update(self.task, completed=done, total=self.total, count=self._count())
        elif now - self.last_line >= self.every_seconds:
            self.last_line = now
            left = self.seconds_left(now)
            told = "" if left is None else f", {_left_text(left)} left"
            numbers_text = "  ".join(self._pieces())
            self.console.print(
                f"{self.title}: {self._count()}{told}  {numbers_text}".rstrip(),
                highlight=False,
                soft_wrap=True,
            )

    def seconds_left(self, now: float) -> float | None:
        """Return the time left at `now`, at the speed since the first record; None before there is one."""
        speed = self._speed()
        if speed is None or not self.total:
            return None
        when, done = self.latest
        return max(0.0, (self.total - done) / speed - (now - when))

    def number_lines(self, width: int) -> list[str]:
        """Return speed and numbers, no label parted from its number."""
        pieces = "  ".join(piece.replace(" ", "\u00a0") for piece in self._pieces())
        return [line.replace("\u00a0", " ") for line in textwrap.wrap(pieces, width)]

    def _speed(self) -> float | None:
        """Units a second since the first record: loading models and what was there before do not count."""
        if self.first is None:
            return None
        (began, at_first, _), (when, done) = self.first, self.latest
        return (done - at_first) / (when - began) if done > at_first and when > began else None

    def _count(self) -> str:
        done = self.latest[1]
        return f"{done}/{self.total}" if self.total else str(done)

    def _pieces(self) -> list[str]:
        speed = self._speed()
        told = []
        if self.unit and speed:
            told = [f"{speed:.3g} {self.unit}s/s" if speed >= 1 else f"{1 / speed:.3g} s/{self.unit}"]
        return told + [f"{label} {_number_text(value)}" for label, value in self.values.items()]


def is_quiet() -> bool:
    """Whether only warnings, alerts, errors and results are to be printed."""
    return os.environ.get("STEPWELL_QUIET") == "1"


def _number_text(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _left_text(seconds: float) -> str:
    """Return "10 s", "3 min 05 s" or "4 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return seconds_text(whole) if whole < 3600 else f"{minutes // 60} h {minutes % 60:02d} min"


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
