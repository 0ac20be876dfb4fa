"""`stepwell score`: a file of solutions in, the same solutions with a score for every step out.

A run that was stopped goes on where it was: rows are appended in the input's order, a chunk at a time, and
what stands there already is compared with the input before it is kept. Where nothing is sampled, the file
comes out the same byte for byte.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data.aggregation import Aggregation, aggregate
from data.errors import UserError
from data.protocols import StepScorer
from data.schema import StepSolution
from data.settings import Settings
from data.solutions import read_solutions
from data.steps import Splitter
from prm.formats import FORMATS, PRMFormat, get_format, load
from prm.formats.recognise import recognise
from prm.model import load_config
from reasoning_rl.rollout.hf import HFGenerator

CHUNK = 256
"""Solutions scored between two writes: enough that those of like length find each other."""


class ScoreConfig(Settings):
    """Settings of `stepwell score`."""

    prm: str
    """The reward model: folder or hub id."""
    format: str | None = None
    """PRM format: a name (`stepwell score --list`) or a .yaml file; none: recognised from the model."""
    input: str
    """Solutions: rows {problem, steps}, {problem, response} or of any step-label format."""
    output: str
    """Where the scored rows go (.jsonl); the same command continues a file that is not complete."""
    input_format: str = "auto"
    """Format of the input's rows; auto: told from the first."""
    splitter: Splitter | None = None
    """How a `response` is cut into steps; none: as the PRM's format has them."""
    aggregation: Aggregation | None = None
    """How step scores become one; none: the format's own way."""
    softmin_temperature: float | None = Field(default=None, gt=0)
    """Temperature of softmin; none: the format's."""
    threshold: float | None = None
    """A step whose score is below is called wrong; none: the format's."""
    reference: str | None = None
    """The other model of a log-ratio format; none: the one its authors used."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; auto: float32 on a CPU, bfloat16 on a GPU."""
    max_length: int | None = Field(default=None, gt=0)
    """Most tokens of a solution; steps beyond score null. None: what format and model allow."""
    max_batch_tokens: int | None = Field(default=None, gt=0)
    """Padded tokens of one forward; none: 1024 on a CPU, 32768 on a GPU."""
    limit: int | None = Field(default=None, gt=0)
    """Score only the first solutions."""


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
    solutions = read_solutions(config.input, config.input_format, splitter=config.splitter or spec.splitter)[
        : config.limit
    ]
    by = _scored_by(config, spec, how)
    path = Path(config.output)
    rows = _finished(path, solutions, by)
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
        )
    resumed = len(rows)
    on_progress(resumed, len(solutions))
    for start in range(resumed, len(solutions), CHUNK):
        chunk = solutions[start : start + CHUNK]
        fresh = score_rows(loaded.scorer, spec, chunk, by)
        _append(path, fresh)
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
    scorer: StepScorer, spec: PRMFormat, solutions: Sequence[StepSolution], by: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return one row for each solution: what it was, its step scores, and the score of the whole."""
    scored = scorer.score([s.problem for s in solutions], [s.steps for s in solutions])
    rows = []
    for solution, scores in zip(solutions, scored, strict=True):
        row: dict[str, Any] = {"id": solution.id} if solution.id else {}
        row |= {"problem": solution.problem, "steps": list(solution.steps)}
        if any(label is not None for label in solution.labels):
            row["labels"] = list(solution.labels)
        for name in ("first_error", "answer_correct"):
            if getattr(solution, name) is not None:
                row[name] = getattr(solution, name)
        row["step_scores"] = scores
        row["score"] = aggregate(scores, by["aggregation"], temperature=by["softmin_temperature"])
        rows.append(row | {"scored_by": by})
    return rows


def _spec(config: ScoreConfig) -> PRMFormat:
    """The format, with the threshold and softmin temperature that the settings lay over its own."""
    if config.format is None:
        spec = recognise(config.prm, load_config(config.prm))
    else:
        spec = get_format(config.format)
    over = {"threshold": config.threshold, "softmin_temperature": config.softmin_temperature}
    return spec.model_copy(update={name: value for name, value in over.items() if value is not None})


def _scored_by(config: ScoreConfig, spec: PRMFormat, how: Aggregation) -> dict[str, Any]:
    """What the scores depend on besides the solutions; written into every row."""
    return {
        "prm": config.prm,
        "format": spec.name,
        "format_digest": _digest(spec),
        "reference": config.reference,
        "aggregation": how,
        "softmin_temperature": spec.softmin_temperature,
        "threshold": spec.threshold,
        "threshold_mode": spec.threshold_mode,
        "is_probability": spec.is_probability,
        "max_length": config.max_length,
        "dtype": config.dtype,
    }


def _digest(spec: PRMFormat) -> str | None:
    """Of a format that is not the registered one of its name, a short hash; None otherwise."""
    own = {"threshold", "threshold_mode", "softmin_temperature", "aggregation"}
    known = FORMATS.get(spec.name)
    if known is not None and known.model_dump(exclude=own) == spec.model_dump(exclude=own):
        return None
    return hashlib.sha256(spec.model_dump_json(exclude=own).encode()).hexdigest()[:12]


def _finished(path: Path, solutions: Sequence[StepSolution], by: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of whole chunks that an earlier run left; what stands behind them is cut off.

    Raises UserError when they are not the first of these solutions, or were scored otherwise.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    whole = lines[:-1]
    remedy = "give another --output, or remove the file"
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(whole, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: is no file of scores ({error}); {remedy}") from error
        if not isinstance(row, dict) or "step_scores" not in row:
            raise UserError(f"{path}:{number}: is no file of scores; {remedy}")
        if number > len(solutions) or not _is_same(row, solutions[number - 1]):
            raise UserError(f"{path}:{number}: holds another solution than the input at that place; {remedy}")
        if row.get("scored_by") != by:
            other = [name for name, value in by.items() if row.get("scored_by", {}).get(name) != value]
            raise UserError(f"{path}:{number}: was scored with another {', '.join(other)}; {remedy}")
        rows.append(row)
    # A part of a chunk is scored again: with other neighbours its last digits would be others.
    kept = rows if len(rows) == len(solutions) else rows[: len(rows) // CHUNK * CHUNK]
    os.truncate(path, sum(len(line) + 1 for line in whole[: len(kept)]))
    return kept


def _is_same(row: dict[str, Any], solution: StepSolution) -> bool:
    return row.get("problem") == solution.problem and row.get("steps") == list(solution.steps)


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
