"""The step map as one page without scripts, fonts or anything from elsewhere: it opens from a mail."""

from collections.abc import Sequence
from html import escape

from reasoning_rl.step_map import ScoredSolution, colour, headline, label_texts, mark, number

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --soft: #666; --line: #d8d8d8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161616; --ink: #ececec; --soft: #a0a0a0; --line: #3a3a3a; }
}
body { font: 15px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink);
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 2.2rem 0 .4rem; }
p.note, .soft { color: var(--soft); }
.overview { border-collapse: collapse; } .overview td { padding: .1rem .5rem .1rem 0; white-space: nowrap; }
.overview a { color: inherit; } .strip { white-space: normal !important; }
.cell { display: inline-block; min-width: 1.5rem; padding: 0 .15rem; margin: 0 1px 1px 0; text-align: center;
        font-size: .75rem; border-radius: 2px; text-decoration: none; }
"""

STEP_STYLE = """
.problem { border-left: 3px solid var(--line); padding-left: .8rem; font-style: italic;
           white-space: pre-wrap; }
.step { display: grid; grid-template-columns: 2.2rem 4.6rem 1.4rem 4.2rem 1fr; gap: .5rem; padding: .35rem 0;
        border-top: 1px solid var(--line); align-items: start; }
.step .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.score { text-align: right; padding: 0 .4rem; border-radius: 3px; font-variant-numeric: tabular-nums; }
.n { color: var(--soft); text-align: right; }
@media (max-width: 40rem) {
  .step { grid-template-columns: 2rem 4.4rem 1.2rem 1fr; } .step .text { grid-column: 1 / -1; }
}
"""


def page(solutions: Sequence[ScoredSolution], title: str) -> str:
    """Return the page of these solutions: an overview of one row each, then each step by step."""
    models = sorted({str(s.by.get("prm", "")) for s in solutions} - {""})
    source = f"Scored by {escape(', '.join(models))}. " if models else ""
    rows = "".join(_overview_row(k, solution) for k, solution in enumerate(solutions))
    bodies = sections(solutions)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{STEP_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>"
        f'<p class="note">{source}Blue is a high score, orange a low one; its number stands by each step, '
        f"{mark(True)} reaches the threshold, {mark(False)} does not.</p>"
        f'<table class="overview">{rows}</table>{bodies}</body></html>\n'
    )


def sections(solutions: Sequence[ScoredSolution], anchor: str = "s") -> str:
    """Return the solutions step by step, to stand in any page that has STEP_STYLE.

    Their ids are the anchor and a number: two lots in one page need two anchors.
    """
    return "".join(_solution(f"{anchor}{k}", solution) for k, solution in enumerate(solutions))


def _overview_row(k: int, solution: ScoredSolution) -> str:
    cells = "".join(
        f'<a class="cell" href="#s{k}.{j}" style="{_paint(shade)}" '
        f'title="step {j + 1}: {number(score)}">{mark(verdict)}</a>'
        for j, (score, shade, verdict) in enumerate(
            zip(solution.scores, solution.shades, solution.verdicts, strict=True)
        )
    )
    return (
        f'<tr><td><a href="#s{k}">{escape(solution.id)}</a></td><td>{number(solution.score)}</td>'
        f'<td class="strip">{cells}</td></tr>'
    )


def _solution(anchor: str, solution: ScoredSolution) -> str:
    labels = label_texts(solution)
    steps = "".join(
        f'<div class="step" id="{anchor}.{j}"><span class="n">{j + 1}</span>'
        f'<span class="score" style="{_paint(shade)}">{number(score)}</span><span>{mark(verdict)}</span>'
        f'<span class="soft">{escape(labels[j] or "")}</span><span class="text">{escape(step)}</span></div>'
        for j, (step, score, shade, verdict) in enumerate(
            zip(solution.steps, solution.scores, solution.shades, solution.verdicts, strict=True)
        )
    )
    return (
        f'<section id="{anchor}"><h2>{escape(headline(solution))}</h2>'
        f'<p class="problem">{escape(solution.problem)}</p>{steps}</section>'
    )


def _paint(shade: float | None) -> str:
    if shade is None:
        return "border: 1px dashed"
    red, green, blue = colour(shade)
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    return f"background: rgb({red},{green},{blue}); color: {'#000' if bright > 110 else '#fff'}"
