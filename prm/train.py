"""Training a process reward model on step-labelled solutions.

    config = PRMConfig(data="steps.jsonl", model="Qwen/Qwen2.5-Math-1.5B")
    folder = train_prm(config, accelerator=Accelerator(), log=log, step_metrics=solution_metrics)

The held-out part is a share of the *problems*, never of the rows: solutions of one problem look alike.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import manual_seed
from transformers import PreTrainedModel

from data.errors import UserError
from data.protocols import MetricLog
from data.schema import StepSolution
from data.step_readers import read_steps
from prm.best import BestWeights
from prm.checkpoint import refuse_used_folder
from prm.config import PRMConfig, Supervision
from prm.examples import encode_pairs, label_solutions, outcome_solutions
from prm.fit import check_fit, fit, length_limit, lr_factor, num_updates
from prm.implicit import new_implicit
from prm.lora import add_adapters, merge
from prm.losses import VALUE_KINDS, supervision_mask
from prm.model import check_vocabulary, is_causal, is_stepwell_prm, load_prm, load_tokenizer, new_prm
from prm.objectives import make_objective
from prm.origin import check_origin, save_trained
from prm.packing import packed_attention, reads_boundaries, sliding_window
from prm.pairs import find_pairs
from prm.readout import objective_of
from prm.scorer import LocalScorer
from prm.sharding import compute_dtype

StepMetrics = Callable[
    [Sequence[Sequence[float | None]], Sequence[Sequence[float | None]], float], Mapping[str, float]
]
"""(labels, scores, threshold), one row a solution -> metrics, e.g. eval.metrics.solution_metrics."""


def train_prm(
    config: PRMConfig,
    *,
    accelerator: Any,
    log: MetricLog,
    step_metrics: StepMetrics | None = None,
    resume: bool = False,
) -> Path:
    """Train as configured; return the folder of the trained model. Raises UserError for unusable input."""
    check_origin(config)
    if config.neutral == "class" and config.objective != "three_class":
        raise UserError(f"neutral: class needs objective: three_class, got {config.objective}")
    refuse_used_folder(config.output_dir, resume=resume)
    neutral = "half" if config.neutral == "class" else config.neutral
    solutions = read_steps(config.data, config.format, neutral=neutral, split=config.split)
    if config.eval_data:
        held_out = read_steps(config.eval_data, config.format, neutral=neutral, split=config.eval_split)
    else:
        solutions, held_out = split_by_problem(solutions, config.holdout, config.fit.seed)
    check_fit(config.fit, len(solutions), accelerator.num_processes)
    tokenizer = load_tokenizer(config.tokenizer or config.model or "")
    manual_seed(config.fit.seed)
    prm = _start_model(config)
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
    return save_trained(config.output_dir, prm, tokenizer, accelerator)


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
    if objective_of(prm.config) != config.objective:
        raise UserError(
            f"the model was made for objective {objective_of(prm.config)}, the settings say "
            f"{config.objective}; make the two agree"
        )
    solutions, held_out = _prepare_labels(solutions, config), _prepare_labels(held_out, config)
    fit_config = config.fit
    if config.objective == "bradley_terry":  # a pair is two rows of its length
        fit_config = fit_config.model_copy(
            update={"micro_batch_tokens": max(1, fit_config.micro_batch_tokens // 2)}
        )
    limit = min(length_limit(prm, fit_config), config.max_length)
    examples = _make_examples(prm, tokenizer, solutions, config, limit)
    best = BestWeights(Path(config.output_dir), config.keep_best, accelerator)
    if not resume:
        refuse_used_folder(config.output_dir)  # before its record of the best weights is touched
        best.clear()

    def validate(model: Any) -> dict[str, float]:
        scorer = LocalScorer(model, tokenizer, joiner=prm.config.step_joiner, max_length=limit)
        metrics = validate_prm(scorer, held_out, config.supervise, config.threshold, step_metrics)
        best.offer(model, metrics)
        return metrics

    frozen = compute_dtype(accelerator)
    adapters = add_adapters(prm, config.lora, frozen=frozen) if config.lora.rank else None
    head_first = None
    if config.head_updates:
        total = num_updates(fit_config, len(examples))
        head_first = HeadFirst(prm, config, total, accelerator.num_processes)
    packed = _is_packed(prm, config)
    beta = prm.config.prm_beta if config.objective == "implicit" else config.beta  # what scoring will use
    with packed_attention(prm) if packed else nullcontext():
        fit(
            prm,
            examples,
            make_objective(config.objective, zeta=config.zeta, beta=beta, packed=packed),
            fit_config,
            accelerator=accelerator,
            run_dir=config.output_dir,
            log=log,
            validate=validate if held_out else None,
            before_update=head_first,
            saved=adapters,
            resume=resume,
        )
    accelerator.wait_for_everyone()
    if adapters:
        merge(prm)
    best.restore(prm)


class HeadFirst:
    """The hook of `fit` for two stages: the head alone at a rate of its own, then everything.

    A fresh head's gradients are noise to the backbone. The second stage has the schedule, warm-up included,
    to itself. Raises UserError when there is no head, or nothing would be left for the second stage.
    """

    def __init__(self, prm: Any, config: PRMConfig, total: int, num_processes: int) -> None:
        if config.objective == "implicit":
            raise UserError("head_updates: an implicit PRM has no head; set it to 0")
        if config.head_updates >= total:
            raise UserError(
                f"head_updates {config.head_updates} leaves none of the {total} updates to the whole model; "
                "lower it or train longer"
            )
        if num_processes > 1:
            raise UserError("head_updates works in one process; set it to 0 or start one process")
        self.config = config
        self.backbone = [p for p in prm.base_model.parameters() if p.requires_grad]

    def __call__(self, update: int, total: int) -> float:
        alone = self.config.head_updates
        for parameter in self.backbone:
            parameter.requires_grad_(update > alone)
        if update <= alone:
            return self.config.head_learning_rate
        fit_config = self.config.fit
        return fit_config.learning_rate * lr_factor(update - alone, total - alone, fit_config)


def _start_model(config: PRMConfig) -> Any:
    """A PRM to train further, or a new one on a language model."""
    if config.model and is_stepwell_prm(config.model):
        prm = load_prm(config.model)
        _refuse_other_shape(prm, config)
        return prm
    backbone = config.model or config.model_config_file or ""
    if config.objective == "implicit":
        if config.extra_layers:
            raise UserError("extra_layers: an implicit PRM keeps its reference's layers; set it to 0")
        return new_implicit(backbone, joiner=config.joiner, beta=config.beta)
    return new_prm(
        backbone, joiner=config.joiner, extra_layers=config.extra_layers, objective=config.objective
    )


def _refuse_other_shape(prm: Any, config: PRMConfig) -> None:
    """Raise UserError when a setting that a PRM keeps from its making is given another value."""
    kept = {"joiner": prm.config.step_joiner, "extra_layers": 0}
    if objective_of(prm.config) == "implicit":
        kept["beta"] = prm.config.prm_beta
    for name, value in kept.items():
        asked = getattr(config, name)
        if name in config.model_fields_set and asked != value:
            told = "no layers are added to it" if name == "extra_layers" else f"it was made with {value!r}"
            raise UserError(f"{name} {asked!r}: {config.model} is a PRM already, {told}; leave {name} out")


def _prepare_labels(solutions: Sequence[StepSolution], config: PRMConfig) -> list[StepSolution]:
    """The labels as the objective takes them: hardened, outcomes only, or checked for their classes."""
    if not solutions:
        return []
    if config.objective == "implicit":
        return outcome_solutions(solutions)
    if config.hard_above is not None:
        cut = config.hard_above
        return [
            replace(
                s,
                labels=tuple(None if y is None else float(y > cut) for y in s.labels),
                label_kind="mc_hard" if s.label_kind in VALUE_KINDS else s.label_kind,
            )
            for s in solutions
        ]
    for solution in solutions if config.objective == "three_class" else ():
        if odd := [y for y in solution.labels if y not in (None, 0.0, 0.5, 1.0)]:
            raise UserError(
                f"{solution.id or solution.problem[:40]!r}: label {odd[0]:g} is none of the three classes "
                "0, 0.5, 1; use objective cross_entropy for soft labels, or hard_above"
            )
    return list(solutions)


def _make_examples(
    prm: Any, tokenizer: Any, solutions: Sequence[StepSolution], config: PRMConfig, limit: int
) -> Sequence[Any]:
    joiner, overlong = prm.config.step_joiner, config.fit.overlong
    if config.objective == "bradley_terry":
        pairs = find_pairs(solutions, config.pairs)
        return encode_pairs(tokenizer, pairs, joiner=joiner, limit=limit, overlong=overlong)
    return label_solutions(
        tokenizer,
        solutions,
        joiner=joiner,
        limit=limit,
        supervise=config.supervise,
        overlong=overlong,
        cut_unread_tail=is_causal(prm),
    )


def _is_packed(prm: Any, config: PRMConfig) -> bool:
    if config.objective in ("implicit", "bradley_terry"):
        if config.packing == "on":
            raise UserError(f"packing: objective {config.objective} runs in padded batches; set auto or off")
        return False
    if config.packing == "on" and not is_causal(prm):
        raise UserError("packing: the model does not attend causally; set it to auto or off")
    window = sliding_window(prm)
    is_windowed = window is not None and window < config.max_length
    if config.packing == "on" and is_windowed:
        raise UserError(
            f"packing: the model's layers look back {window} tokens at most, max_length is "
            f"{config.max_length}; set packing to off, or max_length to {window}"
        )
    if config.packing == "auto":
        return reads_boundaries(prm) and is_causal(prm) and not is_windowed
    return config.packing == "on"


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
        mask = supervision_mask(
            solution.labels, supervise, kind=solution.label_kind, first_error=solution.first_error
        )
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


def _nats(label: float, score: float) -> float:
    """Cross-entropy of one step; the score is kept off 0 and 1 by float32's resolution."""
    score = min(max(score, 1e-7), 1 - 1e-7)
    return -(label * math.log(score) + (1 - label) * math.log1p(-score))
