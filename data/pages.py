"""Pages for people: pieces of HTML in the house's look, without scripts or anything from elsewhere.

write_page("report.html", "A title", [table("Numbers", [["run", "accuracy"], ["a", "0.9"]]), picture(path)])
"""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from data.files import write_atomically

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#222;--soft:#777;--line:#ddd;--tint:#fafafa}
@media(prefers-color-scheme:dark){:root{--paper:#161616;--ink:#ececec;--soft:#a0a0a0;--line:#3a3a3a;--tint:#202020}
.pictures img{background:#fff;border-radius:4px}}
body{font:15px/1.5 system-ui,sans-serif;background:var(--paper);color:var(--ink);max-width:62rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.05rem;margin:2rem 0 .4rem}
.headline{font-size:2.2rem;margin:.2rem 0}.soft{color:var(--soft)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.wide{overflow-x:auto}
.pictures{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start;margin-top:1rem}
.pictures img{width:29rem;max-width:100%}
"""


def text(value: str) -> str:
    """Return the value with everything escaped that HTML would read."""
    return html.escape(value, quote=True)


def table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a heading and a table; the first row is its head."""
    head, *body = rows
    cells = "".join(f"<th>{text(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f'<h2>{text(title)}</h2><div class="wide"><table><tr>{cells}</tr>{lines}</table></div>'


def picture(path: Path) -> str:
    """Return the PNG at `path`, held in the page itself."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{text(path.stem)}" src="data:image/png;base64,{data}">'


def pictures(paths: Sequence[Path]) -> str:
    """Return the PNGs side by side, as many as fit."""
    return '<div class="pictures">' + "".join(picture(path) for path in paths) + "</div>"


def write_page(path: str | Path, title: str, parts: Sequence[str], *, style: str = "") -> Path:
    """Write the page; `style` is CSS added to the house's. Raises UserError when it cannot be written."""
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}{style}</style><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    # A lone surrogate, which JSON allows in a problem, has no UTF-8.
    write_atomically(path, page.encode("utf-8", "replace").decode("utf-8"))
    return Path(path)
