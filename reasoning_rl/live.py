"""What a run shows while it runs: a bar with the time left and the few numbers that matter.

In a terminal one live line; elsewhere (a file, a pipe, CI) a plain line every few seconds.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Live:
    """A context manager around one stage of `total` iterations; call `watch` (of RunLog) or `show`.

    total: None where only the loop knows; it then says so by the metric "train/total_updates".
    shown: metric names to print, with the label they get.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        *,
        shown: Mapping[str, str] | None = None,
        console: Console | None = None,
        every_seconds: float = 15.0,
    ) -> None:
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
            self.progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
            )
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
