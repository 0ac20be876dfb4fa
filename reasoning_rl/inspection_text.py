"""What `stepwell data inspect` prints, as text."""

import textwrap
from collections.abc import Mapping

from data.inspect import Inspection
from data.schema import StepSolution
from reasoning_rl.live import grid_text, table_text

_WIDTH = 100
_MAX_STEPS = 8


def inspection_text(report: Inspection) -> str:
    """Return the report: counts, balance, overlaps with benchmarks, examples."""
    rows = [
        *(("format", f"{name} ({meaning})") for name, meaning in report.formats.items()),
        ("rows", f"{report.num_rows:,}"),
        ("records", f"{report.num_records:,} on {report.num_problems:,} different problems"),
        ("repeated records", f"{report.repeated_records:,}"),
        ("label source", _shares(report.label_kinds)),
        ("step labels", _shares(report.labels)),
        ("first error", _shares(report.first_errors)),
        ("final answer", _shares(report.answers)),
        ("steps a record", _spread(report.steps_per_record)),
        ("characters a step", _spread(report.characters_per_step)),
    ]
    rows += [(f"left out: {why}", f"{count:,}") for why, count in report.left_out.items()]
    return "\n\n".join(
        [f"{report.source}\n{table_text(rows)}", _overlap_text(report), *map(_example, report.examples)]
    )


def _overlap_text(report: Inspection) -> str:
    lines = []
    if report.overlaps:
        head = ["compared with", "benchmark", "its problems", "also here", "records here"]
        cells = [
            [o.file, o.benchmark, f"{o.num_problems:,}", f"{o.shared_problems:,}", f"{o.shared_records:,}"]
            for o in report.overlaps
        ]
        lines.append(grid_text([head, *cells]))
        lines += [
            f"  shares problems with {o.benchmark} ({o.file}), for example in {', '.join(o.examples)}"
            for o in report.overlaps
            if o.shared_problems
        ]
    missing = ", ".join(report.not_at_hand)
    if missing:
        lines.append(f"  not at hand, so not compared: {missing} (name their files with --against FILE ...)")
    return "problems shared with benchmarks, by normalised text\n" + "\n".join(lines)


def _example(solution: StepSolution) -> str:
    lines = [f"example {solution.id}", f"  problem: {_short(solution.problem, 9)}"]
    pairs = list(zip(solution.labels, solution.steps, strict=True))
    # The end of a long solution says more than its middle: labels often stand there.
    shown = pairs if len(pairs) <= _MAX_STEPS else [*pairs[: _MAX_STEPS - 2], *pairs[-2:]]
    for k, (label, step) in enumerate(shown):
        if len(shown) < len(pairs) and k == _MAX_STEPS - 2:
            lines.append(f"         ... {len(pairs) - len(shown)} more steps ...")
        lines.append(f"  {'-' if label is None else f'{label:g}':>5}  {_short(step, 7)}")
    return "\n".join(lines)


def _short(text: str, indent: int) -> str:
    return textwrap.shorten(text, _WIDTH - indent, placeholder=" ...") or text.strip()[: _WIDTH - indent]


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name} {count:,} ({count / total:.1%})" for name, count in counts.items())


def _spread(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
