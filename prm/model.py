"""A process reward model is a token classifier read at the last token of each step.

It is transformers' own AutoModelForTokenClassification, so save_pretrained, from_pretrained, quantisation and
inference engines work on it unchanged; how steps are joined to a text and what its outputs mean
(prm.readout) stand in its config. This module builds one, and turns problem and steps into token ids.

    prm = new_prm("Qwen/Qwen2.5-Math-1.5B"); prm.config.step_joiner  # "\\n"
    encoded = encode_solution(tokenizer, problem, steps, joiner="\\n", max_length=2048)
"""

import copy
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging

from data.errors import UserError
from data.steps import join_steps, step_end_tokens
from prm.checkpoint import no_progress_bar
from prm.packing import packed_arguments
from prm.readout import LABEL_NAMES, NUM_LABELS, objective_of, to_scores

if TYPE_CHECKING:
    from prm.implicit import ImplicitPRM

PRM: TypeAlias = "PreTrainedModel | ImplicitPRM"

REMOTE_CODE = "STEPWELL_TRUST_REMOTE_CODE"
PICKLE = "STEPWELL_ALLOW_PICKLE"
FORMAT = "stepwell"


@dataclass(frozen=True, slots=True)
class EncodedSolution:
    """One problem with its steps as token ids."""

    input_ids: list[int]
    step_ends: list[int | None]
    """Index in `input_ids` of the token that holds each step's last character; None beyond max_length."""
    id: str = ""
    prompt_length: int = 0
    """Tokens that belong to the problem and the joiner behind it: the first step starts there."""

    def __len__(self) -> int:
        return len(self.input_ids)


def new_prm(
    backbone: PreTrainedModel | PretrainedConfig | str | Path,
    *,
    joiner: str = "\n",
    extra_layers: int = 0,
    objective: str = "cross_entropy",
) -> PreTrainedModel:
    """Return a float32 PRM on a copy of a causal LM's weights (model, folder or hub id), or a fresh one.

    A config, or the path of a config.json, gives random weights. The head starts at zero: every score is the
    same. Raises UserError when the backbone cannot be read or has no token-classification class.

    objective: a key of prm.readout.NUM_LABELS; the head has as many outputs as it needs.

    extra_layers: new layers on top of a small backbone, the identity at first. What a language model computes
    in its last layer (the value it expects next) can be attended to only in a layer above: without one, a
    small model cannot compare a written result with the one it would have written.
    """
    if isinstance(backbone, PreTrainedModel | PretrainedConfig):
        config = copy.deepcopy(backbone if isinstance(backbone, PretrainedConfig) else backbone.config)
    else:
        config = load_config(backbone)
    if extra_layers:
        _grow(config, extra_layers)
    config.num_labels = NUM_LABELS[objective]
    config.id2label = dict(LABEL_NAMES[NUM_LABELS[objective]])
    config.label2id = {name: index for index, name in config.id2label.items()}
    config.step_joiner, config.prm_format, config.prm_objective = joiner, FORMAT, objective
    try:
        if isinstance(backbone, str | Path) and not str(backbone).endswith(".json"):
            prm = load_or_refuse(backbone, lambda: _token_classifier(backbone, config=config))
        else:
            prm = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{type(config).__name__} has no token-classification class in transformers"
        ) from error
    if isinstance(backbone, PreTrainedModel):
        missing = prm.base_model.load_state_dict(backbone.base_model.state_dict(), strict=False).missing_keys
        _silence_new_layers(prm.base_model, missing)
    with torch.no_grad():
        for parameter in classifier(prm).parameters():
            parameter.zero_()
    return prm


def _grow(config: PretrainedConfig, extra_layers: int) -> None:
    config.num_hidden_layers += extra_layers
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [*kinds, *[kinds[-1]] * extra_layers]


def _silence_new_layers(base: nn.Module, names: Sequence[str]) -> None:
    """Zero what new layers add to the residual stream: attention and MLP output projections."""
    new = {name: base.get_parameter(name) for name in names}
    outputs = {name: value for name, value in new.items() if name.split(".")[-2] in ("o_proj", "down_proj")}
    if new and not outputs:
        raise UserError("extra_layers: this architecture's layers are not known; set it to 0")
    with torch.no_grad():
        for value in outputs.values():
            value.zero_()


def load_backbone(path: str | Path) -> PreTrainedModel:
    """Return a pretrained causal LM in float32. Raises UserError when it cannot be read or is a PRM."""
    from transformers import AutoModelForCausalLM

    config = load_config(path)
    # An implicit PRM is a language model; any other would load as one with a head of noise.
    if getattr(config, "prm_format", None) == FORMAT and objective_of(config) != "implicit":
        raise UserError(f"{path}: a process reward model where a language model is needed")
    return load_or_refuse(
        path, lambda: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **trust())
    )


def load_prm(path: str | Path) -> PRM:
    """Return a saved PRM in float32. Raises UserError when it cannot be read or is none of this format."""
    config = load_config(path)
    objective = objective_of(config)
    if getattr(config, "prm_format", None) == FORMAT and objective == "implicit":
        from prm.implicit import load_implicit

        return load_implicit(path)
    if config.num_labels != NUM_LABELS[objective] or getattr(config, "prm_format", None) != FORMAT:
        raise UserError(
            f"{path}: no process reward model of this project (config.prm_format is "
            f"{getattr(config, 'prm_format', None)!r}); give a folder that `stepwell prm` trained"
        )
    return load_or_refuse(path, lambda: _token_classifier(path))


def is_stepwell_prm(path: str | Path) -> bool:
    """Return whether a folder or hub id holds a PRM of this format rather than a language model."""
    return getattr(load_config(path), "prm_format", None) == FORMAT


def load_config(path: str | Path) -> PretrainedConfig:
    """Return a model config from a config.json or its folder. Raises UserError when it cannot be read."""
    return load_or_refuse(path, lambda: AutoConfig.from_pretrained(path, **trust(weights=False)))


def trust(*, weights: bool = True) -> dict[str, Any]:
    """Return how far from_pretrained may trust a folder: no code of its authors, no pickled weights.

    STEPWELL_TRUST_REMOTE_CODE=1 and STEPWELL_ALLOW_PICKLE=1 let either in. A pickle is read without running
    what it holds all the same (torch's weights_only).
    """
    options: dict[str, Any] = {"trust_remote_code": os.environ.get(REMOTE_CODE) == "1"}
    if weights and os.environ.get(PICKLE) != "1":
        options["use_safetensors"] = True
    return options


def load_tokenizer(path: str | Path) -> Any:
    """Return a fast tokenizer from a folder or hub id. Raises UserError when there is none."""
    declared = load_or_refuse(path, lambda: get_tokenizer_config(str(path))).get("tokenizer_class")
    # AutoTokenizer distrusts this declaration beside some model types (qwen2 for one) and then applies that
    # model's own splitting rules to our vocabulary; the saved tokenizer.json is what the model learned from.
    is_generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    reader = PreTrainedTokenizerFast if is_generic else AutoTokenizer
    tokenizer = load_or_refuse(path, lambda: reader.from_pretrained(path, **trust(weights=False)))
    if not tokenizer.is_fast:
        raise UserError(f"{path}: the tokenizer has no fast version, which step offsets need")
    return tokenizer


def classifier(model: PRM) -> Any:
    """Return the token-classification head of any transformers model."""
    head = getattr(model, "score", None) or getattr(model, "classifier", None)
    if head is None:
        raise UserError(f"{type(model).__name__} has no token-classification head")
    return head


def encode_solutions(
    tokenizer: Any,
    problems: Sequence[str],
    solutions: Sequence[Sequence[str]],
    *,
    joiner: str,
    max_length: int | None = None,
    ids: Sequence[str] | None = None,
) -> list[EncodedSolution]:
    """Return the token ids of problem, joiner, step, joiner, step ..., and where each step ends.

    The text is tokenised as one piece, with the tokenizer's own BOS and without any EOS. Tokens beyond
    `max_length` are cut, and the steps that end there get None; no other step moves.
    """
    if not problems:
        return []
    joined = [join_steps(problem, steps, joiner) for problem, steps in zip(problems, solutions, strict=True)]
    encoded = tokenizer(
        [text for text, _ in joined], return_offsets_mapping=True, return_special_tokens_mask=True
    )
    names = ids or [""] * len(joined)
    out = []
    for (text, spans), name, tokens, offsets, special in zip(
        joined,
        names,
        encoded["input_ids"],
        encoded["offset_mapping"],
        encoded["special_tokens_mask"],
        strict=True,
    ):
        # Tokens that a template puts after the text (EOS, SEP) would sit behind the last step for no reason.
        while special and special[-1] and offsets[-1] == (0, 0):
            tokens, offsets, special = tokens[:-1], offsets[:-1], special[:-1]
        ends = step_end_tokens(spans, char_ends(offsets, len(text)))
        keep = len(tokens) if max_length is None else min(len(tokens), max_length)
        ends = [end if end is not None and end < keep else None for end in ends]
        # A token that merges the joiner with the first step's text is the step's own.
        first = spans[0][0] if spans else len(text)
        prompt_length = sum(1 for _ in itertools.takewhile(lambda span: span[1] <= first, offsets))  # noqa: B023
        out.append(EncodedSolution(tokens[:keep], ends, name, min(prompt_length, keep)))
    return out


def encode_solution(
    tokenizer: Any, problem: str, steps: Sequence[str], *, joiner: str, max_length: int | None = None
) -> EncodedSolution:
    """Return `encode_solutions` of a single solution."""
    return encode_solutions(tokenizer, [problem], [steps], joiner=joiner, max_length=max_length)[0]


def is_causal(model: nn.Module) -> bool:
    """Return whether every attention layer looks back only: right padding then never reaches a real token.

    Models without such layers (recurrent ones) count as not causal here and get an attention mask.
    """
    flags = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    return bool(flags) and all(flags)


def context_length(model: PRM) -> int | None:
    """Return the most positions a model knows, None when its config names no limit."""
    return positions_of(model.config)


def positions_of(config: PretrainedConfig) -> int | None:
    """Return the most positions that a config names, None when it names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def pad_right(batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return input_ids (B, T) i64, padded with 0, and attention_mask (B, T) bool, of encoded solutions."""
    width = max(len(solution) for solution in batch)
    input_ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention_mask = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, solution in enumerate(batch):
        input_ids[row, : len(solution)] = torch.tensor(solution.input_ids)
        attention_mask[row, : len(solution)] = True
    return input_ids, attention_mask


def step_logits(
    prm: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    lengths: Tensor | None = None,
) -> Tensor:
    """Return float32 logits (N, C) at the N places (rows, columns) of right-padded input_ids (B, T).

    The head runs at these places only. A causal decoder gets no attention mask: right padding stands behind
    everything that is read, and unmasked attention takes the faster kernel. lengths (R,): the one row of
    input_ids is R packed solutions of these lengths; call it under prm.packing.packed_attention.
    """
    if lengths is not None:
        options = packed_arguments(lengths, input_ids.device)
    else:
        options = {"use_cache": False} if is_causal(prm) else {"attention_mask": attention_mask}
    hidden = prm.base_model(input_ids=input_ids, **options)[0]  # (B, T, H)
    picked = hidden[rows, columns]  # (N, H)
    dropout = getattr(prm, "dropout", None)
    if isinstance(dropout, nn.Module):
        picked = dropout(picked)
    head = classifier(prm)
    # Below adapters the backbone may be in bf16, and what learns is in f32.
    return head(picked.to(next(head.parameters()).dtype)).float()


def step_scores(
    prm: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    rows: Tensor,
    columns: Tensor,
    prompt_lengths: Tensor,
) -> Tensor:
    """Return scores (N,) in [0, 1] at N places, as the model's objective reads its outputs (prm.readout).

    prompt_lengths (B,): tokens of each problem, which a log-ratio leaves out.
    """
    if objective_of(prm.config) == "implicit":
        log_ratios = prm.log_ratios(input_ids, attention_mask, prompt_lengths)
        return (prm.config.prm_beta * log_ratios[rows, columns]).sigmoid()
    return to_scores(step_logits(prm, input_ids, attention_mask, rows, columns))


def check_vocabulary(model: PRM, tokenizer: Any) -> None:
    """Raise UserError when the tokenizer makes ids that the model has no embedding for."""
    embeddings: Any = model.get_input_embeddings()
    check_rows(embeddings.weight.shape[0], tokenizer)


def check_rows(rows: int, tokenizer: Any) -> None:
    """`check_vocabulary` of an embedding with so many rows."""
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows; "
            "set vocab_size in the model config, or use the tokenizer that belongs to the model"
        )


def _token_classifier(path: str | Path, **options: Any) -> PreTrainedModel:
    """from_pretrained without its table of missing weights: a new head is what is asked for."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoModelForTokenClassification.from_pretrained(
            path, dtype=torch.float32, **trust(), **options
        )
    finally:
        logging.set_verbosity(level)


def char_ends(offsets: Sequence[tuple[int, int]], length: int) -> list[int]:
    """Characters complete after each token: all before the next token starts.

    So a character spread over several tokens ends at the last of them, and white space that the tokenizer
    drops belongs to the token before it.
    """
    return list(itertools.accumulate([start for start, _ in offsets[1:]] + [length], max))


def load_or_refuse(path: str | Path, read: Any) -> Any:
    """Return `read()`. Raises UserError, with the remedy, for what keeps a model from being read."""
    if not Path(path).exists() and (isinstance(path, Path) or _is_surely_local(path)):
        raise UserError(
            f"{path}: no such file or folder (working folder: {Path.cwd()}); "
            "give the folder of a model, or a hub id owner/name"
        )
    try:
        with no_progress_bar():
            return read()
    except Exception as error:
        # A broken tokenizer.json raises a plain Exception, weights of other sizes a RuntimeError.
        known = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError)
        if not isinstance(error, known) and type(error) is not Exception:
            raise
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{path}: cannot be loaded: it needs code of its authors (trust_remote_code), not run "
                f"by default; set {REMOTE_CODE}=1 if you trust them, or take a model that transformers knows"
            ) from error
        if isinstance(error, OSError) and "safetensors" in str(error):
            raise UserError(
                f"{path}: holds no safetensors weights; convert them (save_pretrained writes such), or set "
                f"{PICKLE}=1 to read pickled ones without running what they hold"
            ) from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be loaded ({first}); give a local folder or a hub id") from error


def _is_surely_local(path: str) -> bool:
    """A hub id is `name` or `owner/name`; anything else is a path, and asking the hub for it takes long."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(".json")
