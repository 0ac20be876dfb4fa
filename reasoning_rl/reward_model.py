"""A pairwise reward model: one number for a whole response, learned from which of two was preferred.

It is transformers' own AutoModelForSequenceClassification with one output, read at the last token of prompt,
response and end token. Bradley-Terry on the difference of a pair's rewards; optionally next-token loss on the
chosen response, through a head that is dropped afterwards, and a pull of the rewards towards 0.

    train_reward(RMConfig(model="runs/sft/model", data="pairs.jsonl"), accelerator=accelerator, log=log)
    ResponseRewardModel.load("runs/rm/model").score_responses([prompt], [response])    # [1.3]
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from data.errors import UserError
from data.own import OwnReward
from data.plugins import installed, is_plugin
from data.protocols import MetricLog, ResponseScorer
from data.schema import Preference
from prm.batching import drop_overlong
from prm.best import BestWeights
from prm.checkpoint import refuse_used_folder
from prm.fit import check_fit, fit, length_limit
from prm.losses import bradley_terry
from prm.model import (
    EncodedSolution,
    check_vocabulary,
    classifier,
    context_length,
    is_causal,
    load_tokenizer,
    pad_right,
)
from prm.next_token import has_plain_head
from prm.origin import check_origin, save_trained, start_language_model
from prm.scorer import default_batch_tokens, score_in_batches, scoring
from reasoning_rl.models import decoder, load_reward_model
from reasoning_rl.preference_examples import (
    EncodedPreference,
    collate_preferences,
    encode_preferences,
    read_pairs,
)
from reasoning_rl.sft import prompt_ids
from reasoning_rl.train_config import RMConfig

FORMAT = "stepwell"
PairMetrics = Callable[[Sequence[float], Sequence[float]], Mapping[str, float]]
"""(rewards of the chosen, of the rejected responses) -> metrics."""


class RewardTrainee(nn.Module):
    """A reward model in training: the classifier, and an LM head where its loss is asked for."""

    def __init__(self, model: PreTrainedModel, lm_head: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.lm_head = lm_head

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return (hidden states (B, T, H), rewards (B,) f32 at each row's last token)."""
        mask = None if is_causal(self.model) else attention_mask
        hidden = self.model.base_model(input_ids=input_ids, attention_mask=mask, use_cache=False)[0]
        last = attention_mask.sum(1) - 1
        picked = hidden[torch.arange(len(last), device=last.device), last]
        return hidden, classifier(self.model)(picked).squeeze(-1).float()


class RewardObjective:
    """Bradley-Terry with its two extra terms, per pair. Row 2k of a batch is pair k's chosen side."""

    def __init__(self, *, lm_coef: float = 0.0, centre_coef: float = 0.0) -> None:
        self.lm_coef = lm_coef
        self.centre_coef = centre_coef

    def collate(self, examples: Sequence[EncodedPreference]) -> dict[str, Tensor]:
        return collate_preferences(examples)

    def count(self, batch: Mapping[str, Tensor]) -> float:
        return len(batch["input_ids"]) / 2

    def loss(self, model: RewardTrainee, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over the pairs of -log sigmoid(r_c - r_r) + centre (r_c + r_r)^2 + lm NLL(chosen) / tokens."""
        hidden, rewards = model(batch["input_ids"], batch["attention_mask"])
        chosen, rejected = rewards[0::2], rewards[1::2]
        loss, num_right = bradley_terry(chosen, rejected)
        stats = {
            "accuracy": num_right,
            "margin": (chosen - rejected).detach().sum(),
            "reward": (chosen + rejected).detach().sum() / 2,
        }
        if self.centre_coef:
            loss = loss + self.centre_coef * (chosen + rejected).square().sum()
        if self.lm_coef:
            assert model.lm_head is not None
            targets = batch["target_mask"][0::2]
            logits = model.lm_head(hidden[0::2, :-1][targets[:, 1:]]).float()  # (N, V)
            nll = cross_entropy(logits, batch["input_ids"][0::2][targets], reduction="none")
            per_token = 1 / targets.sum(1).clamp(min=1)
            lm_loss = (nll * per_token[targets.nonzero()[:, 0]]).sum()
            stats["lm_loss"] = lm_loss.detach()
            loss = loss + self.lm_coef * lm_loss
        return loss, stats


def new_reward_model(backbone: PreTrainedModel, tokenizer: Any, *, with_lm_head: bool) -> RewardTrainee:
    """Return a reward model on a copy of a causal LM's weights; its head is zero, so every reward is 0.

    Raises UserError for an architecture without a sequence classifier, or with more behind its last layer
    than a linear head where the LM loss needs that.
    """
    if with_lm_head and not has_plain_head(backbone):
        raise UserError(f"lm_coef: {type(backbone).__name__} changes its logits; set lm_coef to 0")
    config = copy.deepcopy(backbone.config)
    config.num_labels, config.reward_format = 1, FORMAT
    # Plain transformers reads the last token that is no padding: with EOS as padding, the one before the end.
    pad = tokenizer.pad_token_id
    config.pad_token_id = None if pad == tokenizer.eos_token_id else pad
    try:
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise UserError(f"{type(config).__name__} has no sequence classifier in transformers") from error
    decoder(model).load_state_dict(decoder(backbone).state_dict())
    with torch.no_grad():
        for parameter in classifier(model).parameters():
            parameter.zero_()
    if not with_lm_head:
        return RewardTrainee(model)
    lm_head = copy.deepcopy(backbone.get_output_embeddings())
    if backbone.get_output_embeddings().weight is backbone.get_input_embeddings().weight:
        lm_head.weight = model.get_input_embeddings().weight
    return RewardTrainee(model, lm_head)


def train_reward(
    config: RMConfig,
    *,
    accelerator: Any,
    log: MetricLog,
    pair_metrics: PairMetrics | None = None,
    resume: bool = False,
) -> Path:
    """Train as configured; return the folder of the trained model. Raises UserError for unusable input."""
    check_origin(config)
    refuse_used_folder(config.output_dir, resume=resume)
    tokenizer = load_tokenizer(config.tokenizer or config.model or "")
    pairs, held_out = read_pairs(config, tokenizer, seed=config.fit.seed)
    check_fit(config.fit, len(pairs), accelerator.num_processes)
    backbone = start_language_model(config, config.fit.seed)
    check_vocabulary(backbone, tokenizer)
    model = fit_reward(
        backbone,
        tokenizer,
        pairs,
        held_out,
        config,
        accelerator=accelerator,
        log=log,
        pair_metrics=pair_metrics,
        resume=resume,
    )
    return save_trained(config.output_dir, model, tokenizer, accelerator)


def fit_reward(
    backbone: PreTrainedModel,
    tokenizer: Any,
    pairs: Sequence[Preference],
    held_out: Sequence[Preference],
    config: RMConfig,
    *,
    accelerator: Any,
    log: MetricLog,
    pair_metrics: PairMetrics | None = None,
    resume: bool = False,
) -> PreTrainedModel:
    """Return a reward model trained on a copy of a causal LM, its rewards' moments in its config."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, so a response cannot end; set tokenizer.eos_token")
    trainee = new_reward_model(backbone, tokenizer, with_lm_head=config.lm_coef > 0)
    budget = max(1, config.fit.micro_batch_tokens // 2)  # a pair is two rows of its length
    fit_config = config.fit.model_copy(update={"micro_batch_tokens": budget})
    limit = min(length_limit(trainee, fit_config), config.max_length)
    trainee.config.reward_max_length, trainee.config.reward_cut_prompt = limit, config.cut_prompt
    examples = drop_overlong(
        encode_preferences(tokenizer, pairs, limit, cut_prompt=config.cut_prompt), limit, config.fit.overlong
    )[0]
    best = BestWeights(Path(config.output_dir), config.keep_best, accelerator, load=load_reward_model)
    if not resume:
        best.clear()

    def validate(trained: Any) -> dict[str, float]:
        scorer = ResponseRewardModel(trained.model, tokenizer)  # where weights are cut up, not `trainee`
        prompts = [pair.prompt + pair.prefix for pair in held_out]
        sides = [
            scorer.score_responses(prompts, [getattr(p, s) for p in held_out]) for s in ("chosen", "rejected")
        ]
        scored = [(c, r) for c, r in zip(*sides, strict=True) if c is not None and r is not None]
        metrics = {"valid/unscored": float(len(held_out) - len(scored))}
        if scored and pair_metrics:
            named = pair_metrics([c for c, _ in scored], [r for _, r in scored])
            metrics |= {f"valid/{name}": value for name, value in named.items()}
        best.offer(trained.model, metrics)
        return metrics

    fit(
        trainee,
        examples,
        RewardObjective(lm_coef=config.lm_coef, centre_coef=config.centre_coef),
        fit_config,
        accelerator=accelerator,
        run_dir=config.output_dir,
        log=log,
        validate=validate if held_out else None,
        resume=resume,
    )
    accelerator.wait_for_everyone()
    best.restore(trainee.model)
    _store_moments(
        trainee.model,
        ResponseRewardModel(trainee.model, tokenizer),
        examples,
        config.normalise == "standardise",
    )
    return trainee.model


def load_response_scorer(path: str, *, device: Any = "cpu") -> ResponseScorer:
    """Return a reward model of a folder or hub id, or the user's function "module:function" (data.own)."""
    if is_plugin(path) or path in installed("reward"):
        return OwnReward(path)
    return ResponseRewardModel.load(path, device=device)


def _store_moments(
    model: PreTrainedModel, scorer: "ResponseRewardModel", examples: Sequence[EncodedPreference], use: bool
) -> None:
    rewards = torch.tensor(
        scorer.score_ids([ids for e in examples for ids in (e.chosen_ids, e.rejected_ids)]),
        dtype=torch.float64,
    )
    model.config.reward_mean = float(rewards.mean())
    model.config.reward_std = float(rewards.std().clamp(min=1e-6)) if len(rewards) > 1 else 1.0
    model.config.reward_normalised = use


class ResponseRewardModel:
    """A ResponseScorer over a reward model in this process, in deviations where the model was saved so."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, path: str | Path, *, device: Any = "cpu") -> Self:
        """Read a folder or hub id. Raises UserError when it is no reward model that `stepwell rm` trained."""
        model = load_reward_model(path)
        if getattr(model.config, "reward_format", None) != FORMAT:
            raise UserError(
                f"{path}: no reward model of this project; give a folder that `stepwell rm` trained"
            )
        return cls(model.to(device), load_tokenizer(path))

    def score_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """Return the reward of every response, None where it does not fit the model's context."""
        config = self.model.config
        limit = getattr(config, "reward_max_length", None) or context_length(self.model)
        encoded, fits = [], []
        texts = self.tokenizer(list(responses), add_special_tokens=False)["input_ids"] if responses else []
        for prompt, text in zip(prompt_ids(self.tokenizer, prompts), texts, strict=True):
            response = [*text, self.tokenizer.eos_token_id]
            if limit is not None and getattr(config, "reward_cut_prompt", False):
                prompt = prompt[max(0, len(prompt) + len(response) - limit) :]
            fits.append(limit is None or len(prompt) + len(response) <= limit)
            if fits[-1]:
                encoded.append([*prompt, *response])
        rewards = iter(self.score_ids(encoded))
        mean, std = 0.0, 1.0
        if getattr(config, "reward_normalised", False):
            mean, std = config.reward_mean, config.reward_std
        return [(next(rewards) - mean) / std if fit_ else None for fit_ in fits]

    def score_ids(self, rows: Sequence[list[int]]) -> list[float]:
        """Return the raw reward at the last of each row's tokens."""
        encoded = [EncodedSolution(ids, [len(ids) - 1]) for ids in rows]
        trainee, device = RewardTrainee(self.model), self.model.device

        def read(batch: Sequence[EncodedSolution], rows: Tensor, columns: Tensor) -> Tensor:  # noqa: ARG001
            input_ids, attention_mask = pad_right(batch)
            return trainee(input_ids.to(device), attention_mask.to(device))[1]

        with scoring(self.model):
            scores = score_in_batches(encoded, read, default_batch_tokens(device))
        return [row[0] for row in scores if row[0] is not None]
