"""`stepwell metrics`: what every metric means, and where those of a run stand."""

from pathlib import Path

from rich.console import Console

from data.errors import UserError
from data.files import write_atomically
from data.settings import Settings
from reasoning_rl.indicator_table import INDICATORS
from reasoning_rl.indicators import metrics_page
from reasoning_rl.live import Board, table_text
from reasoning_rl.options import parse
from reasoning_rl.telemetry import read_metrics


class MetricsConfig(Settings):
    """`stepwell metrics [RUN]`."""

    output: str | None = None
    """Write the table of all metrics as a Markdown page there."""


def run_metrics(args: list[str]) -> None:
    """`stepwell metrics [RUN]`."""
    parsed = parse(args, MetricsConfig, positional=1)
    config = MetricsConfig.from_dict(parsed.values, parsed.where)
    console = Console()
    if config.output is not None:
        write_atomically(Path(config.output), metrics_page())
        console.print(f"every metric: {config.output}", highlight=False, markup=False, soft_wrap=True)
    elif parsed.positional:
        _show_run(console, parsed.positional[0])
    else:
        rows = [
            (i.name, f"{i.meaning}" + (f" [{i.range_text()}]" if i.range_text() else "")) for i in INDICATORS
        ]
        console.print(table_text(rows), highlight=False, markup=False, soft_wrap=True)


def _show_run(console: Console, run: str) -> None:
    board = Board()
    alerts: list[str] = []
    for row in read_metrics(run):
        iteration = int(row["iteration"])
        alerts += board.add(iteration, {name: v for name, v in row.items() if v is not None})
    if not board.lines():
        raise UserError(f"{run}: no metric of a PPO run in it; give the folder that `stepwell ppo` wrote")
    for line in board.lines():
        console.print(line, soft_wrap=True)
    for alert in alerts:
        console.print(f"alert, {alert}", highlight=False, markup=False, soft_wrap=True)
