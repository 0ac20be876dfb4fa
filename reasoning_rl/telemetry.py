"""Where a run's numbers go: JSON lines that everything else only reads.

`metrics.jsonl` holds what two equal runs share bit for bit; `timing.jsonl` holds seconds and memory (names
under `time/` and `memory/`), which never repeat.
"""

import json
import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

from data.errors import UserError
from data.files import read_jsonl, write_atomically
from prm.tracking import Trackers

MACHINE_GROUPS = ("time/", "memory/")


class RunLog:
    """A MetricLog writing to a run's folder. `watch` is called with every record, e.g. to redraw a table;
    trackers are started by `rewind` and get every record as well."""

    def __init__(
        self,
        run_dir: str | Path,
        *,
        watch: Callable[[int, Mapping[str, float]], None] | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.run_dir}: cannot be the run's folder ({error.strerror}); choose another output_dir"
            ) from error
        self.watch = watch
        self.trackers = trackers

    def __call__(self, iteration: int, metrics: Mapping[str, float]) -> None:
        timing = {k: v for k, v in metrics.items() if k.startswith(MACHINE_GROUPS)}
        for name, values in (
            ("metrics.jsonl", {k: v for k, v in metrics.items() if k not in timing}),
            ("timing.jsonl", timing),
        ):
            row = {"iteration": iteration, **{k: _plain(v) for k, v in sorted(values.items())}}
            _append(self.run_dir / name, json.dumps(row) + "\n")
        if self.trackers is not None:
            self.trackers(iteration, metrics)
        if self.watch is not None:
            self.watch(iteration, metrics)

    def rewind(self, iteration: int) -> None:
        """Drop the records after `iteration`, and a last line that a crash left torn."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            path = self.run_dir / name
            if path.exists():
                kept = []
                for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                    if line.endswith("\n") and json.loads(line)["iteration"] <= iteration:
                        kept.append(line)
                write_atomically(path, "".join(kept))
        if self.trackers is not None:
            self.trackers.start(after=iteration)


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write ({error.strerror}); free space, then --resume from the last checkpoint"
        ) from error


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """Return the records of a run, in order."""
    return [row for _, row in read_jsonl(Path(run_dir) / "metrics.jsonl")]


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    from importlib.metadata import version

    names = ("stepwell", "torch", "transformers", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _plain(value: float) -> float | int | str | None:
    """JSON has no NaN: a non-finite number is written as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
