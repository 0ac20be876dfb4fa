"""Alerts from the table of metrics (`indicator_table.py`), and the page made from it.

docs/metrics.md comes from `stepwell metrics --output docs/metrics.md`, the live view's alerts from `Watch`. A
bound is advice, not a law: the run goes on. What may stop it is the hack gauge.

    watch = Watch()
    for text in watch.check(iteration, metrics): ...     # one line for each indicator that left its range
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from reasoning_rl.indicator_table import INDICATORS, Indicator

BY_NAME = {indicator.name: indicator for indicator in INDICATORS}

PATIENCE = 2
"""Iterations in a row outside before an alert: one batch is noise."""


@dataclass
class Watch:
    """Remembers first values and what is out of range; starts anew with a resumed run."""

    first: dict[str, float] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)

    def check(self, iteration: int, metrics: Mapping[str, float]) -> list[str]:
        """Return one line for each indicator that has just left its range for good (`PATIENCE`)."""
        alerts = []
        for name, indicator in BY_NAME.items():
            value = metrics.get(name)
            if value is None or not math.isfinite(value):
                continue
            first = self.first.setdefault(name, value)
            if indicator.is_healthy(value, first) or iteration <= indicator.after:
                self.outside[name] = 0
                continue
            self.outside[name] = self.outside.get(name, 0) + 1
            patience = 1 if name.startswith("alarm/") else PATIENCE  # the gauge has its own
            if self.outside[name] == patience:
                alerts.append(alert_text(indicator, iteration, value, first))
        return alerts

    def is_outside(self, name: str) -> bool:
        """Whether an indicator was out of range at its last value."""
        return self.outside.get(name, 0) > 0


def alert_text(indicator: Indicator, iteration: int, value: float, first: float) -> str:
    """Return "iteration 7: hack/num_steps 9.1 (healthy 0.67 to 1.5 x first, 4.2): remedy"."""
    if indicator.name.startswith("alarm/"):
        return f"iteration {iteration}: {indicator.meaning}; {indicator.remedy}"
    start = f", {first:.3g}" if indicator.relative else ""
    return (
        f"iteration {iteration}: {indicator.name} {value:.3g} (healthy {indicator.range_text()}{start}): "
        f"{indicator.remedy}"
    )


def metrics_page() -> str:
    """Return docs/metrics.md."""
    lines = [_PREFACE]
    groups: dict[str, list[Indicator]] = {}
    for indicator in INDICATORS:
        groups.setdefault(indicator.name.split("/")[0], []).append(indicator)
    for group, members in groups.items():
        lines += [
            "",
            f"## {group}",
            "",
            "| name | unit | meaning | healthy | outside |",
            "|---|---|---|---|---|",
        ]
        for i in members:
            cells = (f"`{i.name}`", i.unit, i.meaning, i.range_text(), i.remedy)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_PREFACE = f"""# Metrics

Made from `reasoning_rl/indicator_table.py` by `stepwell metrics --output docs/metrics.md`; a test compares
them. `stepwell metrics RUN` draws those of a run, finished or not, in the terminal.

A PPO run writes one line an iteration to `metrics.jsonl`; seconds and memory, under `time/` and `memory/`, go
to `timing.jsonl`: of each phase (generate, score, reference, experience, update, sync, validate)
`time/PHASE_seconds`, `memory/PHASE_rss_mb`, the main process's peak resident memory in MiB during it (on
Linux; elsewhere up to its end), and on GPUs `memory/PHASE_gpu_mb`, torch's peak allocation;
`memory/peak_rss_mb` is the peak since the start.

A number that an iteration does not define is absent from `metrics.jsonl`: no correlation where every answer
is right, no critic's numbers without a critic. "x first" is a factor of the run's first value. The live view
alerts after {PATIENCE} iterations in a row outside the healthy range. Bounds are advice. The indicators are
those of MOSS (arXiv:2307.04964) and of the papers named in [algorithms.md](algorithms.md); where a paper
gives no number the bound is this project's own, loose enough for healthy quickstart runs."""
