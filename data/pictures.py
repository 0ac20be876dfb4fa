"""Pictures in the house's look. matplotlib is an extra and is imported when a picture is drawn.

with drawing("accuracy.png") as (figure, axis):
    axis.plot(xs, ys, color=COLOURS[0], label="greedy")
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import check_folder

INK, SOFT = "#222222", "#8a8a8a"
COLOURS = ("#2563eb", "#d97706", "#059669", "#b91c1c", "#7c3aed", "#0891b2")


@contextmanager
def drawing(
    path: str | Path, *, size: tuple[float, float] = (5.2, 3.6), columns: int = 1
) -> Iterator[tuple[Any, Any]]:
    """Yield (figure, axis, or a list of them for several columns); what was drawn is then saved as a PNG.

    `size` is in inches, at 130 dots an inch. Raises UserError when matplotlib is not installed or nothing can
    be written there.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise UserError("plots need matplotlib: pip install 'stepwell[report]'") from error
    check_folder(Path(path).parent)
    with plt.rc_context({"axes.edgecolor": SOFT, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(1, columns, figsize=size, constrained_layout=True)
        try:
            yield figure, axes
            for axis in [axes] if columns == 1 else axes:
                axis.grid(alpha=0.25)
                axis.title.set_color(INK)
                count = len(axis.get_legend_handles_labels()[0])
                if axis.get_legend() is None and count:  # below the plot once it would hide lines
                    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 2}
                    axis.legend(frameon=False, fontsize=8, **(below if count > 4 else {}))
            figure.savefig(path, dpi=130)
        finally:
            plt.close(figure)
