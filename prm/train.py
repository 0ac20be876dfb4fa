"""Training a process reward model on step-labelled solutions.

    config = PRMConfig(data="steps.jsonl", model="Qwen/Qwen2.5-Math-1.5B")
    folder = train_prm(config, accelerator=Accelerator(), log=log, step_metrics=solution_metrics)

The held-out part is a share of the *problems*, never of the rows: solutions of one problem look alike.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from data.errors import UserError
from data.files import write_atomically
from data.protocols import MetricLog
from data.schema import StepSolution
from data.settings import Settings
from data.step_readers import NeutralPolicy, read_steps
from prm.checkpoint import refuse_used_folder, save_model
from prm.fit import FitConfig, check_fit, fit, length_limit
from prm.losses import Supervision, step_cross_entropy, supervision_mask
from prm.model import (
    EncodedSolution,
    check_vocabulary,
    encode_solutions,
    is_causal,
    is_stepwell_prm,
    load_prm,
    load_tokenizer,
    new_prm,
    pad_right,
    step_logits,
)
from prm.scorer import LocalScorer

StepMetrics = Callable[
    [Sequence[Sequence[float | None]], Sequence[Sequence[float | None]], float], Mapping[str, float]
]
"""(labels, scores, threshold), one row a solution -> metrics, e.g. eval.metrics.solution_metrics."""

logger = logging.getLogger(__name__)


class PRMConfig(Settings):
    """Training of a process reward model."""

    data: str
    """Step-labelled solutions: file, folder or hub id."""
    format: str = "auto"
    """Format of the data; auto: told from its fields."""
    neutral: NeutralPolicy = "positive"
    """What a neutral rating of PRM800K counts as."""
    eval_data: str | None = None
    """Held-out solutions in the same format; null: off, a share of the training problems is held out."""
    split: str = "train"
    """Split of a hub id or folder given as data."""
    eval_split: str = "test"
    """Split of a hub id or folder given as eval_data."""
    holdout: float = Field(0.05, ge=0, lt=1)
    """Share of the problems held out for validation when eval_data is null."""
    model: str | None = None
    """Folder or hub id of a causal LM to start from, or of a PRM to train further; null: off."""
    model_config_file: str | None = None
    """Path of a transformers config.json to start from random weights; null: off, use model."""
    extra_layers: int = Field(0, ge=0)
    """New layers on top of the model's own. Helps models of a few layers; 0 for anything larger."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; null: the model's own."""
    joiner: str = "\n"
    """Text between steps; saved in the model's config."""
    supervise: Supervision = "first_error"
    """first_error: up to the first wrong step, what human labels agree on; all: every labelled step."""
    max_length: int = Field(2048, ge=2)
    """Most tokens of problem and steps. fit.overlong says what happens to steps beyond."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """Score below which a step counts as wrong in validation."""
    keep_best: str | None = None
    """Validation metric, larger is better (e.g. valid/step_auc), whose best weights are kept; null: off, the
    last weights are."""
    output_dir: str = "runs/prm"
    """Checkpoints go to checkpoints/ in it, the trained model to model/."""
    fit: FitConfig = FitConfig()


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """Token ids with a label at the last token of each supervised step."""

    input_ids: list[int]
    places: list[int]
    """Index of each supervised step's last token."""
    labels: list[float]
    id: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)


class StepClassification:
    """Cross-entropy of the supervised steps. B rows, T tokens, N supervised steps."""

    def collate(self, examples: Sequence[LabelledSolution]) -> dict[str, Tensor]:
        """Return input_ids, attention_mask (B, T) and rows, columns, labels (N,)."""
        input_ids, attention_mask = pad_right([EncodedSolution(e.input_ids, []) for e in examples])
        rows = [row for row, example in enumerate(examples) for _ in example.places]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "rows": torch.tensor(rows),
            "columns": torch.tensor([place for example in examples for place in example.places]),
            "labels": torch.tensor([label for example in examples for label in example.labels]),
        }

    def count(self, batch: Mapping[str, Tensor]) -> float:
        return float(len(batch["labels"]))

    def loss(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = step_logits(
            model, batch["input_ids"], batch["attention_mask"], batch["rows"], batch["columns"]
        )
        loss, stats = step_cross_entropy(logits, batch["labels"])
        return loss, {"accuracy": stats.correct, "mean_label": stats.positive, "mean_score": stats.score}


def train_prm(
    config: PRMConfig,
    *,
    accelerator: Any,
    log: MetricLog,
    step_metrics: StepMetrics | None = None,
    resume: bool = False,
) -> Path:
    """Train as configured; return the folder of the trained model. Raises UserError for unusable input."""
    if (config.model is None) == (config.model_config_file is None):
        raise UserError("give exactly one of model and model_config_file")
    if config.model is None and config.tokenizer is None:
        raise UserError("model_config_file needs a tokenizer: set tokenizer to a folder or hub id")
    if not resume:
        refuse_used_folder(config.output_dir)
    solutions = read_steps(config.data, config.format, neutral=config.neutral, split=config.split)
    if config.eval_data:
        held_out = read_steps(
            config.eval_data, config.format, neutral=config.neutral, split=config.eval_split
        )
    else:
        solutions, held_out = split_by_problem(solutions, config.holdout, config.fit.seed)
    check_fit(config.fit, len(solutions), accelerator.num_processes)
    tokenizer = load_tokenizer(config.tokenizer or config.model or "")
    torch.manual_seed(config.fit.seed)
    if config.model and is_stepwell_prm(config.model):
        prm = load_prm(config.model)
    else:
        prm = new_prm(
            config.model or config.model_config_file or "",
            joiner=config.joiner,
            extra_layers=config.extra_layers,
        )
    fit_prm(
        prm,
        tokenizer,
        solutions,
        held_out,
        config,
        accelerator=accelerator,
        log=log,
        step_metrics=step_metrics,
        resume=resume,
    )
    folder = Path(config.output_dir) / "model"
    if accelerator.is_main_process:
        save_model(folder, prm, tokenizer)
    return folder


def fit_prm(
    prm: PreTrainedModel,
    tokenizer: Any,
    solutions: Sequence[StepSolution],
    held_out: Sequence[StepSolution],
    config: PRMConfig,
    *,
    accelerator: Any,
    log: MetricLog,
    step_metrics: StepMetrics | None = None,
    resume: bool = False,
) -> None:
    """Train a PRM in place on solutions in memory; of `config` the data and model fields play no part.

    With keep_best the model ends with the weights of its best validation, else with the last ones.
    """
    check_vocabulary(prm, tokenizer)
    joiner = prm.config.step_joiner
    limit = min(length_limit(prm, config.fit), config.max_length)
    examples = label_solutions(
        tokenizer,
        solutions,
        joiner=joiner,
        limit=limit,
        supervise=config.supervise,
        overlong=config.fit.overlong,
        cut_unread_tail=is_causal(prm),
    )
    best = _Best(Path(config.output_dir), config.keep_best, accelerator.is_main_process)
    if not resume:
        refuse_used_folder(config.output_dir)  # before its record of the best weights is touched
        best.clear()

    def validate(model: Any) -> dict[str, float]:
        scorer = LocalScorer(model, tokenizer, joiner=joiner, max_length=limit)
        metrics = validate_prm(scorer, held_out, config.supervise, config.threshold, step_metrics)
        best.offer(model, metrics)
        return metrics

    fit(
        prm,
        examples,
        StepClassification(),
        config.fit,
        accelerator=accelerator,
        run_dir=config.output_dir,
        log=log,
        validate=validate if held_out else None,
        resume=resume,
    )
    accelerator.wait_for_everyone()
    best.restore(prm)


def label_solutions(
    tokenizer: Any,
    solutions: Sequence[StepSolution],
    *,
    joiner: str,
    limit: int | None = None,
    supervise: Supervision = "all",
    overlong: Literal["error", "skip"] = "error",
    cut_unread_tail: bool = True,
) -> list[LabelledSolution]:
    """Return the token ids and supervised places of every solution that has any.

    A supervised step that ends beyond `limit` tokens is a UserError naming it; "skip" leaves it and all after
    it out, keeps the steps before, and counts what was left out in a warning. `cut_unread_tail` drops tokens
    after the last supervised step, which a causal model would compute for nothing.
    """
    names = [solution.id or f"solution {index}" for index, solution in enumerate(solutions)]
    encoded = encode_solutions(
        tokenizer, [s.problem for s in solutions], [s.steps for s in solutions], joiner=joiner, ids=names
    )
    examples = []
    num_skipped = 0
    for solution, tokens in zip(solutions, encoded, strict=True):
        places, labels = [], []
        mask = supervision_mask(solution.labels, supervise)
        for step, (end, label, counts) in enumerate(
            zip(tokens.step_ends, solution.labels, mask, strict=True)
        ):
            if not counts:
                continue
            assert end is not None and label is not None  # encoded without a limit
            if limit is not None and end >= limit:
                if overlong == "error":
                    raise UserError(
                        f"{tokens.id}: step {step} ends at token {end + 1}, the limit is {limit}; raise "
                        "max_length (within the model's context) or fit.micro_batch_tokens, or set "
                        "fit.overlong: skip"
                    )
                num_skipped += 1
                continue
            places.append(end)
            labels.append(float(label))
        if places:
            kept = tokens.input_ids[: places[-1] + 1] if cut_unread_tail else tokens.input_ids[:limit]
            examples.append(LabelledSolution(kept, places, labels, tokens.id))
    if num_skipped:
        logger.warning("%d labelled steps end beyond %d tokens and are left out", num_skipped, limit)
    if not examples:
        raise UserError("none of the solutions has a labelled step that fits; check labels and max_length")
    return examples


def validate_prm(
    scorer: LocalScorer,
    held_out: Sequence[StepSolution],
    supervise: Supervision,
    threshold: float,
    step_metrics: StepMetrics | None,
) -> dict[str, float]:
    """Return valid/* metrics over the supervised steps: loss in nats, unscored steps, and step_metrics."""
    scores = scorer.score([s.problem for s in held_out], [s.steps for s in held_out])
    labels: list[list[float | None]] = []
    for solution in held_out:
        mask = supervision_mask(solution.labels, supervise)
        labels.append(
            [label if counts else None for label, counts in zip(solution.labels, mask, strict=True)]
        )
    rated = [
        (label, score)
        for label_row, score_row in zip(labels, scores, strict=True)
        for label, score in zip(label_row, score_row, strict=True)
        if label is not None
    ]
    nats = [_nats(label, score) for label, score in rated if score is not None]
    metrics = {"valid/unscored_steps": float(len(rated) - len(nats))}
    if nats:
        metrics["valid/loss"] = math.fsum(nats) / len(nats)
        if step_metrics:
            named = step_metrics(labels, scores, threshold)
            metrics |= {f"valid/{name}": float(value) for name, value in named.items()}
    return metrics


def split_by_problem(
    solutions: Sequence[StepSolution], share: float, seed: int
) -> tuple[list[StepSolution], list[StepSolution]]:
    """Return (training, held-out) solutions; all solutions of a problem text fall on the same side."""

    def rank(problem: str) -> str:
        return hashlib.sha256(f"{seed}:{problem}".encode()).hexdigest()

    problems = sorted({solution.problem.strip() for solution in solutions}, key=rank)
    chosen = set(problems[: round(share * len(problems))])
    train = [solution for solution in solutions if solution.problem.strip() not in chosen]
    return train, [solution for solution in solutions if solution.problem.strip() in chosen]


class _Best:
    """The weights of the best validation so far, in output_dir/best; off without a metric's name."""

    def __init__(self, run_dir: Path, metric: str | None, is_main: bool) -> None:
        self.folder = run_dir / "best"
        self.record = run_dir / "best.json"
        self.metric = metric
        self.is_main = is_main

    def clear(self) -> None:
        if self.metric and self.is_main:
            self.record.unlink(missing_ok=True)

    def offer(self, model: PreTrainedModel, metrics: Mapping[str, float]) -> None:
        if self.metric is None or not self.is_main:
            return
        if self.metric not in metrics:
            raise UserError(f"keep_best: no metric '{self.metric}'; known: {', '.join(sorted(metrics))}")
        value = metrics[self.metric]
        if value > self._value():
            save_model(self.folder, model)
            write_atomically(self.record, json.dumps({"metric": self.metric, "value": value}))

    def _value(self) -> float:
        """The best value so far. A resumed run repeats its validations, so a later one may stand here."""
        if not self.record.exists():
            return -math.inf
        record = json.loads(self.record.read_text(encoding="utf-8"))
        return record["value"] if record["metric"] == self.metric else -math.inf

    def restore(self, model: PreTrainedModel) -> None:
        if self.metric and self._value() > -math.inf:
            model.load_state_dict(load_prm(self.folder).state_dict())


def _nats(label: float, score: float) -> float:
    """Cross-entropy of one step; the score is kept off 0 and 1 by float32's resolution."""
    score = min(max(score, 1e-7), 1 - 1e-7)
    return -(label * math.log(score) + (1 - label) * math.log1p(-score))
