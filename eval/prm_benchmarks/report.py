"""One run of a step-score benchmark as files: result.json, report.html (self-contained) and its pictures.

write_report("outputs/eval/processbench", result, make_panels(items, 0.5), items)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import pages
from data.files import write_atomically
from data.pages import table, text, write_page
from eval.prm_benchmarks.items import Item
from eval.prm_benchmarks.panels import Panels
from eval.prm_benchmarks.plots import draw_panels
from eval.prm_benchmarks.result import BenchmarkResult, finite

NUM_EXAMPLES = 5

_STYLE = """
.step{white-space:pre-wrap;border-left:4px solid;padding:.1rem .6rem;margin:.25rem 0;background:var(--tint)}
"""


def write_report(
    folder: str | Path,
    result: BenchmarkResult,
    panels: Panels,
    items: Sequence[Item],
    *,
    settings: dict[str, Any],
) -> Path:
    """Write result.json, report.html and the PNGs to the folder; return the path of the page.

    Raises UserError when matplotlib is not installed or the folder cannot be written.
    """
    folder = Path(folder)
    everything = result.to_dict() | {"panels": panels.to_dict(), "settings": finite(settings)}
    write_atomically(folder / "result.json", json.dumps(everything, indent=1, allow_nan=False) + "\n")
    drawn = draw_panels(folder, panels)
    name, value = result.headline
    parts = [
        f"<h1>{text(result.benchmark)}</h1>",
        f'<p class="headline">{"-" if value != value else f"{100 * value:.1f}"}'
        f' <span class="soft">{text(name)}</span></p>',
        *(f"<p>{text(note[:1].upper() + note[1:])}.</p>" for note in result.notes),
        *(table(one.title, one.shown()) for one in (*result.tables, *panels.tables())),
        "<h2>Pictures</h2>",
        pages.pictures(drawn),
        *_examples(items, panels.threshold),
        "<h2>Settings</h2>",
        f"<pre>{text(json.dumps(finite(settings), indent=1))}</pre>",
    ]
    return write_page(folder / "report.html", result.benchmark, parts, style=_STYLE)


def _examples(items: Sequence[Item], threshold: float) -> list[str]:
    """The surest mistakes: right steps scored lowest and wrong ones scored highest, one a solution."""
    gaps = []
    for number, item in enumerate(items):
        worst = [
            abs((label >= 0.5) - score)
            for label, score in zip(item.solution.labels, item.scores, strict=True)
            if label is not None and score is not None and (label >= 0.5) != (score >= threshold)
        ]
        if worst:
            gaps.append((max(worst), number))
    gaps.sort(key=lambda pair: (-pair[0], pair[1]))
    parts = [f"<h2>The {min(NUM_EXAMPLES, len(gaps))} surest mistakes</h2>"] if gaps else []
    for _, number in gaps[:NUM_EXAMPLES]:
        solution, scores = items[number].solution, items[number].scores
        parts.append(
            f'<details><summary>{text(solution.id)} <span class="soft">'
            f"{text(solution.problem[:160])}</span></summary>"
        )
        for step, label, score in zip(solution.steps, solution.labels, scores, strict=True):
            said = "no score" if score is None else f"score {score:.3f}"
            truth = "unlabelled" if label is None else f"label {label:g}"
            colour = "#bbb" if score is None else "#059669" if score >= threshold else "#b91c1c"
            parts.append(
                f'<div class="step" style="border-color:{colour}">{text(step)}'
                f'<br><span class="soft">{said}, {truth}</span></div>'
            )
        parts.append("</details>")
    return parts
