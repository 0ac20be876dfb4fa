"""The composition root of the step benchmarks: a reward model, or its scores, against labelled steps."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from eval.prm_benchmarks.items import CONTROL, Item, attach_scores, load_items, read_scores, with_scores
from eval.prm_benchmarks.panels import make_panels
from eval.prm_benchmarks.registry import check_threshold, get_prm_benchmark, measure
from eval.prm_benchmarks.report import write_report
from eval.prm_benchmarks.result import BenchmarkResult
from prm.formats import PRMFormat, find_format
from reasoning_rl.compose import load_step_scorer
from reasoning_rl.eval_config import PRMEvalConfig
from reasoning_rl.score_file import append_chunks, name_format, name_weights, read_finished

Progress = Callable[[int, int, Mapping[str, float]], None]


def evaluate_prm(
    name: str, config: PRMEvalConfig, *, device: Any = "cpu", on_progress: Progress | None = None
) -> tuple[BenchmarkResult, Path]:
    """Score a benchmark's steps, or take existing scores, and measure; everything goes to output_dir/name/.

    Returns the numbers and the path of the page. A stopped run goes on in scores.jsonl. Raises UserError
    before a model is loaded for data that is missing or broken, for a format that judges changes of scores,
    and for scores of another model, format or data in output_dir.
    """
    items = load_items(name, get_prm_benchmark(name).formats, config.data, limit=config.limit)
    folder = Path(config.output_dir) / name
    threshold = config.threshold
    if config.scores is not None:
        threshold = 0.5 if threshold is None else threshold
        check_threshold(name, items, threshold)
        items = attach_scores(items, read_scores(config.scores))
    else:
        spec = find_format(config.prm or "", config.prm_format)
        if spec.threshold_mode == "difference":
            raise UserError(
                f"format '{spec.name}' calls a step wrong by the change from the step before; step "
                "benchmarks compare scores with one threshold: take a format with threshold_mode absolute"
            )
        threshold = spec.threshold if threshold is None else threshold
        check_threshold(name, items, threshold)
        items = _score(items, config, spec, folder / "scores.jsonl", device, on_progress)
    result = measure(name, items, threshold)
    reported = [item for item in items if item.subset != CONTROL]
    settings = config.model_dump(mode="json") | {"threshold": threshold}
    if isinstance(threshold, str):
        # The pictures need one number: that of the first subset, which "gsm8k" gives to all.
        threshold = next(iter(result.metrics["subsets"].values()))["threshold"]
    panels = make_panels(reported, threshold)
    if unscored := int(panels.steps["unscored_steps"]):
        note = (
            f"{unscored} labelled steps have no score (too long for the model?): they are in no step number "
            "and never the first step called wrong"
        )
        result = replace(result, notes=(*result.notes, note))
    page = write_report(folder, result, panels, reported, settings=settings)
    return result, page


def _score(
    items: list[Item],
    config: PRMEvalConfig,
    spec: PRMFormat,
    path: Path,
    device: Any,
    on_progress: Progress | None,
) -> list[Item]:
    """The items with their scores, which are appended to the file as they come."""
    prm = config.prm or ""
    by = {"prm": prm, **name_weights(prm), **name_format(spec), "data": _digest(items)}
    beginnings = [{"id": item.solution.id} for item in items]
    rows = read_finished(path, beginnings, by, field="scores", option="--output-dir")
    if on_progress is not None:
        on_progress(len(rows), len(items), {})
    if len(rows) < len(items):
        scorer = load_step_scorer(prm, spec, device=device, max_batch_tokens=config.max_batch_tokens).scorer

    def make_rows(part: slice) -> list[dict[str, Any]]:
        solutions = [item.solution for item in items[part]]
        scored = scorer.score([one.problem for one in solutions], [one.steps for one in solutions])
        return [
            {"id": one.id, "scores": scores, "scored_by": by}
            for one, scores in zip(solutions, scored, strict=True)
        ]

    for fresh in append_chunks(path, make_rows, done=len(rows), total=len(items)):
        rows += fresh
        if on_progress is not None:
            on_progress(len(rows), len(items), {})
    return with_scores(items, [row["scores"] for row in rows])


def _digest(items: list[Item]) -> str:
    """A short hash of what is scored."""
    texts = [(item.solution.id, item.solution.problem, item.solution.steps) for item in items]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
