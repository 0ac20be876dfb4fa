"""Settings of `stepwell report`."""

from data.settings import Settings
from reasoning_rl.config import Whole


class ReportConfig(Settings):
    """A page about runs: `stepwell report RUN [RUN ...]`."""

    output_dir: str = "outputs/report"
    """report.html, which holds everything, and the pictures as PNGs go there."""
    prm: str | None = None
    """Reward model that scores the samples' steps; none: the run's own (RUN/prm/model), if it has one."""
    prm_format: str | None = None
    """PRM format: a name (`stepwell score --list`) or a .yaml file; none: recognised from the model."""
    worst: Whole = 5
    """Samples to show of each evaluation; 0 shows none."""
