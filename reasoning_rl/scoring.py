"""`stepwell score`: a file of solutions in, the same solutions with a score for every step out.

A run that was stopped goes on where it was: rows are appended in the input's order, a chunk at a time, and
what stands there already is compared with the input before it is kept. Where nothing is sampled, the file
comes out the same byte for byte.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.aggregation import Aggregation, aggregate
from data.errors import UserError
from data.protocols import StepScorer
from data.schema import StepSolution
from data.solutions import read_solutions
from data.steps import Splitter
from prm.formats import PRMFormat, find_format, load
from prm.model import FORMAT as STEPWELL
from prm.model import load_config
from reasoning_rl.eval_config import ScoreConfig
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.score_file import append_chunks, name_format, name_weights, read_finished

_SPLITTERS: dict[str, Splitter] = {"\n": "newline", "\n\n": "blank_line"}
"""What one of our own models has between its steps -> how a response is cut for it."""


@dataclass(frozen=True)
class ScoreSummary:
    """What a run of `stepwell score` came to."""

    solutions: int
    steps: int
    unscored: int
    """Steps without a score: they did not fit, or no critique judged them."""
    wrong: int
    """Steps that the threshold calls wrong."""
    resumed: int
    """Solutions that an earlier run had scored."""
    spec: PRMFormat
    how: Aggregation

    def rows(self) -> list[tuple[str, str]]:
        """Return what to show, name and value."""
        kind = "probabilities" if self.spec.is_probability else "raw scores"
        shown = [
            ("format", f"{self.spec.name} ({kind}; solutions by {self.how})"),
            ("solutions", f"{self.solutions}" + (f", {self.resumed} of them before" if self.resumed else "")),
            ("steps", f"{self.steps}, {self.wrong} below {self.spec.threshold:g}"),
        ]
        return shown + ([("steps without a score", f"{self.unscored}")] if self.unscored else [])


def score_solutions(
    config: ScoreConfig,
    *,
    device: Any = "cpu",
    run_code: Callable[[str], str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScoreSummary:
    """Score as configured, append to the output, and return what came out.

    Raises UserError for anything the settings name that cannot be used, before a model is loaded where
    possible, and for an output that another run with other settings wrote.
    """
    if not config.output.endswith(".jsonl"):
        raise UserError(f"{config.output}: scores are written as JSON lines; give --output a name in .jsonl")
    spec = _spec(config)
    how = config.aggregation or spec.aggregation
    if how == "prod" and not spec.is_probability:
        raise UserError(f"aggregation prod multiplies probabilities; format '{spec.name}' gives raw scores")
    path = Path(config.output)
    _refuse_own_input(path, Path(config.input))
    solutions = read_solutions(config.input, config.input_format, splitter=_splitter(config, spec))
    solutions = solutions[: config.limit]
    by = _scored_by(config, spec, how)
    rows = read_finished(
        path, [_beginning(one) for one in solutions], by, field="step_scores", option="--output"
    )
    if len(rows) < len(solutions):
        loaded = load(
            config.prm,
            spec,
            device=device,
            dtype=config.dtype,
            max_batch_tokens=config.max_batch_tokens,
            max_length=config.max_length,
            reference=config.reference,
            make_generator=lambda model, tokenizer: HFGenerator(model, tokenizer),
            run_code=run_code,
            backend=config.prm_backend,
        )
    resumed = len(rows)
    on_progress(resumed, len(solutions))

    def make_rows(part: slice) -> list[dict[str, Any]]:
        return score_rows(loaded.scorer, solutions[part], by)

    for fresh in append_chunks(path, make_rows, done=resumed, total=len(solutions)):
        rows += fresh
        on_progress(len(rows), len(solutions))
    scores = [row["step_scores"] for row in rows]
    return ScoreSummary(
        solutions=len(rows),
        steps=sum(map(len, scores)),
        unscored=sum(score is None for row in scores for score in row),
        wrong=sum(is_right is False for row in scores for is_right in spec.are_right(row)),
        resumed=resumed,
        spec=spec,
        how=how,
    )


def score_rows(
    scorer: StepScorer, solutions: Sequence[StepSolution], by: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return one row for each solution: what it was, its step scores, and the score of the whole."""
    scored = scorer.score([s.problem for s in solutions], [s.steps for s in solutions])
    rows = []
    for solution, scores in zip(solutions, scored, strict=True):
        whole = aggregate(scores, by["aggregation"], temperature=by["softmin_temperature"])
        rows.append(_beginning(solution) | {"step_scores": scores, "score": whole, "scored_by": by})
    return rows


def _beginning(solution: StepSolution) -> dict[str, Any]:
    """What a row says of its solution."""
    row: dict[str, Any] = {"id": solution.id} if solution.id else {}
    row |= {"problem": solution.problem, "steps": list(solution.steps)}
    if any(label is not None for label in solution.labels):
        row["labels"] = list(solution.labels)
    for name in ("first_error", "answer_correct"):
        if getattr(solution, name) is not None:
            row[name] = getattr(solution, name)
    return row


def _refuse_own_input(output: Path, source: Path) -> None:
    """Raise UserError for an output that is the input, or would be read as part of its folder."""
    if not source.exists():
        return
    is_inside = output.resolve().is_relative_to(source.resolve())
    if is_inside or (output.exists() and output.samefile(source)):
        raise UserError(f"{output}: is read as input as well; give --output a place outside of {source}")


def _splitter(config: ScoreConfig, spec: PRMFormat) -> Splitter | None:
    """How responses are cut; None where one of our own models joins steps as no splitter cuts them."""
    if config.splitter is not None or spec.name != STEPWELL:
        return config.splitter or spec.splitter
    return _SPLITTERS.get(getattr(load_config(config.prm), "step_joiner", "\n"))


def _spec(config: ScoreConfig) -> PRMFormat:
    """The format, with the threshold and softmin temperature that the settings lay over its own."""
    spec = find_format(config.prm, config.format)
    over = {"threshold": config.threshold, "softmin_temperature": config.softmin_temperature}
    return spec.model_copy(update={name: value for name, value in over.items() if value is not None})


def _scored_by(config: ScoreConfig, spec: PRMFormat, how: Aggregation) -> dict[str, Any]:
    """What the scores depend on besides the solutions; written into every row."""
    return {
        "prm": config.prm,
        **name_weights(config.prm),
        **name_format(spec),
        "reference": config.reference,
        "aggregation": how,
        "softmin_temperature": spec.softmin_temperature,
        "threshold": spec.threshold,
        "threshold_mode": spec.threshold_mode,
        "is_probability": spec.is_probability,
        "max_length": config.max_length,
        "dtype": config.dtype,
        # Files from before there was a choice continue: they were scored locally.
        **({} if config.prm_backend == "local" else {"prm_backend": config.prm_backend}),
    }
