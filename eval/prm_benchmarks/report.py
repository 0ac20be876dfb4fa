"""One run of a step-score benchmark as files: result.json, report.html (self-contained) and its pictures.

write_report("outputs/eval/processbench", result, make_panels(items, 0.5), items)
"""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

from data.files import write_atomically
from eval.prm_benchmarks.items import Item
from eval.prm_benchmarks.panels import Panels
from eval.prm_benchmarks.plots import draw_panels
from eval.prm_benchmarks.result import BenchmarkResult, Table, finite

NUM_EXAMPLES = 5

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.05rem;margin:2rem 0 .4rem}
.headline{font-size:2.2rem;margin:.2rem 0}.soft{color:#777}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}
.wide{overflow-x:auto}.pictures{display:flex;flex-wrap:wrap;gap:1rem}.pictures img{width:29rem;max-width:100%}
.step{white-space:pre-wrap;border-left:4px solid;padding:.1rem .6rem;margin:.25rem 0;background:#fafafa}
"""


def write_report(
    folder: str | Path, result: BenchmarkResult, panels: Panels, items: Sequence[Item], *, settings: dict
) -> Path:
    """Write result.json, report.html and the PNGs to the folder; return the path of the page.

    Raises UserError when matplotlib is not installed or the folder cannot be written.
    """
    folder = Path(folder)
    everything = result.to_dict() | {"panels": panels.to_dict(), "settings": finite(settings)}
    write_atomically(folder / "result.json", json.dumps(everything, indent=1, allow_nan=False) + "\n")
    pictures = draw_panels(folder, panels)
    name, value = result.headline
    parts = [
        f"<h1>{_text(result.benchmark)}</h1>",
        f'<p class="headline">{"-" if value != value else f"{100 * value:.1f}"}'
        f' <span class="soft">{_text(name)}</span></p>',
        *(f"<p>{_text(note[:1].upper() + note[1:])}.</p>" for note in result.notes),
        *(_table(table) for table in (*result.tables, *panels.tables())),
        '<h2>Pictures</h2><div class="pictures">',
        *(_picture(path) for path in pictures),
        "</div>",
        *_examples(items, panels.threshold),
        "<h2>Settings</h2>",
        f"<pre>{_text(json.dumps(finite(settings), indent=1))}</pre>",
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(result.benchmark)}</title>'
        f"<style>{_STYLE}</style><body>" + "\n".join(parts) + "</body></html>\n"
    )
    # A lone surrogate, which JSON allows in a problem, has no UTF-8.
    write_atomically(folder / "report.html", page.encode("utf-8", "replace").decode("utf-8"))
    return folder / "report.html"


def _table(table: Table) -> str:
    head, *rows = table.shown()
    cells = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<h2>{_text(table.title)}</h2><div class="wide"><table><tr>{cells}</tr>{body}</table></div>'


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{_text(path.stem)}" src="data:image/png;base64,{data}">'


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
            f'<details><summary>{_text(solution.id)} <span class="soft">'
            f"{_text(solution.problem[:160])}</span></summary>"
        )
        for text, label, score in zip(solution.steps, solution.labels, scores, strict=True):
            said = "no score" if score is None else f"score {score:.3f}"
            truth = "unlabelled" if label is None else f"label {label:g}"
            colour = "#bbb" if score is None else "#059669" if score >= threshold else "#b91c1c"
            parts.append(
                f'<div class="step" style="border-color:{colour}">{_text(text)}'
                f'<br><span class="soft">{said}, {truth}</span></div>'
            )
        parts.append("</details>")
    return parts


def _text(value: str) -> str:
    return html.escape(value, quote=True)
