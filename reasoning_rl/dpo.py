"""Direct preference optimisation: a policy learns from pairs of responses, with no reward model or sampling.

Pairs run through the supervised loop (prm.fit). What the frozen reference says about a pair never changes, so
it is computed once before the training and kept beside the checkpoints; no second model is in memory then.
A pair may share the start of its response (`Preference.prefix`): that is context, and the loss is on what
follows it. This is step-level DPO, when chosen and rejected are single steps.

    examples = encode_preferences(tokenizer, pairs, max_length=1024)
    examples = cache_reference(model, examples)
    fit(model, examples, PreferenceObjective(PreferenceSettings()), FitConfig(), ...)
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from data.errors import UserError
from data.protocols import MetricLog
from data.schema import Preference
from prm.batching import cut_by_tokens, drop_overlong
from prm.checkpoint import refuse_used_folder
from prm.fit import check_fit, fit, length_limit
from prm.lora import TrainableState, adapters_off, add_adapters, has_adapters, merge
from prm.model import check_vocabulary, load_backbone, load_tokenizer
from prm.origin import save_trained
from prm.sharding import compute_dtype
from reasoning_rl.models import disable_dropout
from reasoning_rl.preference_examples import (
    EncodedPreference,
    collate_preferences,
    encode_preferences,
    read_pairs,
)
from reasoning_rl.preference_loss import preference_loss
from reasoning_rl.reference_logprobs import cache_reference, response_logprobs
from reasoning_rl.train_config import DPOConfig, PreferenceSettings


class PreferenceObjective:
    """DPO and IPO for the supervised loop. B = 2N rows, T tokens; row 2k is pair k's chosen side.

    reference: the model to ask where the examples carry no cached answers; None: the policy without its
    adapters.
    """

    def __init__(self, settings: PreferenceSettings, reference: PreTrainedModel | None = None) -> None:
        self.settings = settings
        self.reference = reference

    def collate(self, examples: Sequence[EncodedPreference]) -> dict[str, Tensor]:
        """Return input_ids, attention_mask, target_mask (B, T), and reference (B,) where it is known."""
        batch = collate_preferences(examples)
        known = [example.reference for example in examples if example.reference is not None]
        if len(known) == len(examples):
            batch["reference"] = torch.tensor(known).flatten()
        return batch

    def count(self, batch: Mapping[str, Tensor]) -> float:
        return len(batch["input_ids"]) / 2

    def loss(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the pairs' losses, and sums over the pairs of what is logged; the loop divides
        by `count`. A response's logprob is the sum over its tokens, the NLL term a mean over them."""
        settings = self.settings
        logprobs = response_logprobs(model, batch)  # (B,)
        ratios = logprobs - self._reference(model, batch)  # (B,)
        lengths = batch["target_mask"].sum(1).clamp(min=1)
        if settings.average_logprobs:
            ratios = ratios / lengths
        losses = preference_loss(
            ratios[0::2],
            ratios[1::2],
            kind=settings.loss,
            beta=settings.beta,
            label_smoothing=settings.label_smoothing,
        )
        if settings.sft_coef:
            losses = losses - settings.sft_coef * (logprobs / lengths)[0::2]
        rewards = settings.beta * ratios.detach()
        margins = rewards[0::2] - rewards[1::2]
        stats = {
            "accuracy": (margins > 0).sum(),
            "margin": margins.sum(),
            "chosen_reward": rewards[0::2].sum(),
            "rejected_reward": rewards[1::2].sum(),
            "chosen_logprob": (logprobs / lengths)[0::2].sum().detach(),
        }
        return losses.sum(), stats

    def _reference(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
        if "reference" in batch:
            return batch["reference"]
        if self.reference is not None:
            with torch.no_grad():
                return response_logprobs(self.reference, batch)
        assert has_adapters(model), "examples without cached reference, and no reference model"
        with torch.no_grad(), adapters_off(model):
            return response_logprobs(model, batch)


@torch.no_grad()
def validate_preferences(
    model: PreTrainedModel,
    examples: Sequence[EncodedPreference],
    objective: PreferenceObjective,
    *,
    max_tokens: int = 8192,
) -> dict[str, float]:
    """Return valid/* of the held-out pairs: loss, accuracy (the implicit reward orders the pair right),
    margin, the two rewards, and the chosen response's log-probability a token."""
    sums: dict[str, float] = {}
    lengths = [2 * len(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda row: -lengths[row])
    for rows in cut_by_tokens(order, lengths, max_tokens):
        batch = objective.collate([examples[row] for row in rows])
        loss, stats = objective.loss(model, {k: v.to(model.device) for k, v in batch.items()})
        for name, value in {"loss": loss, **stats}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return {f"valid/{name}": total / len(examples) for name, total in sums.items()}


def train_dpo(config: DPOConfig, *, accelerator: Any, log: MetricLog, resume: bool = False) -> Path:
    """Train as configured; return the folder of the trained policy. Raises UserError for unusable input."""
    refuse_used_folder(config.output_dir, resume=resume)
    tokenizer = load_tokenizer(config.model)
    pairs, held_out = read_pairs(config, tokenizer, seed=config.fit.seed)
    check_fit(config.fit, len(pairs), accelerator.num_processes)
    model = load_backbone(config.model)
    check_vocabulary(model, tokenizer)
    reference = load_backbone(config.reference) if config.reference else None
    fit_preferences(
        model,
        tokenizer,
        pairs,
        held_out,
        config,
        reference=reference,
        accelerator=accelerator,
        log=log,
        resume=resume,
    )
    return save_trained(config.output_dir, model, tokenizer, accelerator)


def fit_preferences(
    model: PreTrainedModel,
    tokenizer: Any,
    pairs: Sequence[Preference],
    held_out: Sequence[Preference],
    config: DPOConfig,
    *,
    accelerator: Any,
    log: MetricLog,
    reference: PreTrainedModel | None = None,
    validate: Callable[[Any], Mapping[str, float]] | None = None,
    resume: bool = False,
) -> None:
    """Train `model` in place on pairs, against `reference` (None: the model as it is now).

    validate: further metrics, beside those of the held-out pairs.
    """
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, so a response cannot end; set tokenizer.eos_token")
    disable_dropout(model)  # under dropout the policy would differ from a reference that it equals
    # A pair is two rows of its length.
    budget = max(1, config.fit.micro_batch_tokens // 2)
    fit_config = config.fit.model_copy(update={"micro_batch_tokens": budget})
    limit = min(length_limit(model, fit_config), config.max_length)
    train, valid = (
        drop_overlong(
            encode_preferences(tokenizer, some, limit, cut_prompt=config.cut_prompt),
            limit,
            config.fit.overlong,
        )[0]
        for some in (pairs, held_out)
    )
    adapters = _adapt(model, config, accelerator) if config.lora.rank else None
    if config.reference_logprobs == "live" and reference is None and adapters is None:
        reference = copy.deepcopy(model)
    if reference is not None:
        reference = reference.to(accelerator.device).eval().requires_grad_(False)
    live = reference
    if config.reference_logprobs == "cached":
        asked = model.to(accelerator.device) if reference is None else reference
        path = Path(config.output_dir) / "reference.safetensors"
        both = cache_reference(
            asked, [*train, *valid], path=path, max_tokens=2 * budget, accelerator=accelerator
        )
        train, valid = both[: len(train)], both[len(train) :]
        live = reference = asked = None  # of a reference of its own, the memory is free from here on
    objective = PreferenceObjective(config.preference, live)

    def measure(trained: Any) -> dict[str, float]:
        metrics = validate_preferences(trained, valid, objective, max_tokens=2 * budget) if valid else {}
        return metrics | dict(validate(trained) if validate else {})

    fit(
        model,
        train,
        objective,
        fit_config,
        accelerator=accelerator,
        run_dir=config.output_dir,
        log=log,
        validate=measure if valid or validate else None,
        saved=adapters,
        resume=resume,
    )
    if adapters:
        merge(model)


def _adapt(model: PreTrainedModel, config: DPOConfig, accelerator: Any) -> TrainableState:
    """Adapters whose start depends on the seed alone: a resumed run asks the same model for its reference."""
    with torch.random.fork_rng():
        torch.manual_seed(config.fit.seed)
        return add_adapters(model, config.lora, frozen=compute_dtype(accelerator))
