"""The composition root of `stepwell report`: runs, the reward models that score their samples, step maps."""

from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from data.protocols import StepScorer
from eval.report.page import write_report
from eval.report.read import Evaluation, Run, read_runs
from eval.report.worst import Worst
from reasoning_rl.compose import load_step_scorer
from reasoning_rl.report_config import ReportConfig
from reasoning_rl.step_map import ScoredSolution
from reasoning_rl.step_map_html import STEP_STYLE, sections

_BY = {"aggregation": "min", "threshold": 0.5, "threshold_mode": "absolute", "is_probability": True}


def report_runs(folders: Sequence[str], config: ReportConfig, *, device: Any = "cpu") -> Path:
    """Write the report of these run folders; return the page's path.

    A reward model is loaded only where there are samples to score. Raises UserError for a folder without
    anything to report.
    """
    runs = read_runs(folders)

    @cache
    def load(path: str) -> StepScorer | None:
        loaded = load_step_scorer(path, config.prm_format, device=device)
        # Verdict and score can only disagree on one scale.
        return loaded.scorer if loaded.format.is_probability else None

    def scorer_of(run: Run, evaluation: Evaluation) -> StepScorer | None:
        path = config.prm or (str(run.prm) if run.prm is not None else None)
        if path is None or not config.worst or evaluation.is_search or evaluation.problems is None:
            return None
        return load(path)

    numbers = count()

    def show(samples: Sequence[Worst]) -> str:
        return sections([_solution(one) for one in samples], anchor=f"w{next(numbers)}-")

    return write_report(
        config.output_dir, runs, show=show, style=STEP_STYLE, scorer_of=scorer_of, num_worst=config.worst
    )


def _solution(one: Worst) -> ScoredSolution:
    return ScoredSolution(
        problem=one.problem,
        steps=one.steps,
        scores=one.scores,
        score=one.score,
        labels=[None] * len(one.steps),
        first_error=None,
        answer_correct=one.is_correct,
        id=one.id,
        by=_BY,
    )
