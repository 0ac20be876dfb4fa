"""What a benchmark of step scores found: one headline, tables for people, numbers for machines."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column names; floats are shares (shown in per cent), NaN is shown as a dash."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def shown(self) -> list[list[str]]:
        """Return the cells as text, header first."""
        return [list(self.columns), *([_shown(cell) for cell in row] for row in self.rows)]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """The numbers of one run."""

    benchmark: str
    headline: tuple[str, float]
    """The number the benchmark is known by, with its name; a share."""
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know to compare the numbers: halves, thresholds chosen on the same data, gaps."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The same and more, nested, for result.json."""

    def to_dict(self) -> dict[str, Any]:
        """Return what result.json holds; NaN is None."""
        return {
            "benchmark": self.benchmark,
            "headline": {"name": self.headline[0], "value": finite(self.headline[1])},
            "metrics": finite(self.metrics),
            "tables": [{"title": t.title, "columns": t.columns, "rows": finite(t.rows)} for t in self.tables],
            "notes": self.notes,
        }


def finite(value: Any) -> Any:
    """Return nested values with NaN and infinities as None, for JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(one) for one in value]
    return value


def mean(values: Sequence[float]) -> float:
    """Return the plain mean; NaN for none."""
    return math.fsum(values) / len(values) if values else math.nan


def _shown(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    return (
        f"{100 * cell:.1f}"
        if isinstance(cell, float)
        else f"{cell:,}"
        if isinstance(cell, int)
        else str(cell)
    )
