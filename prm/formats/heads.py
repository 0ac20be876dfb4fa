"""Models of every published layout, loaded without anyone's remote code: a decoder, and what reads it.

The decoder is always transformers' own class. Heads that transformers does not know (a two-layer head, a
value head, an ensemble) are a few linear layers, read from the checkpoint by the names of their weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from data.errors import UserError
from prm.formats.spec import PRMFormat
from prm.formats.tokens import token_id
from prm.formats.weights import read_weights
from prm.model import classifier, load_or_refuse, trust


@dataclass(frozen=True)
class Parts:
    """A decoder and its head."""

    decoder: PreTrainedModel
    """input_ids (B, T) -> hidden states (B, T, H)."""
    head: nn.Module
    """Hidden states (N, H) f32 -> logits (N, C) f32."""
    config: Any
    """The model's config."""


class Rows(nn.Module):
    """Rows of an LM head (or mixtures of them) as a head of their own; scaling and soft-capping kept."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, config: Any) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().float())
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.scale = getattr(config, "logit_scale", None) or 1.0
        self.scale /= getattr(config, "logits_scaling", None) or 1.0
        self.cap = getattr(config, "final_logit_softcapping", None)

    def forward(self, hidden: Tensor) -> Tensor:
        logits = nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class Ensemble(nn.Module):
    """E three-layer heads side by side, one logit each: (N, H) -> (N, E)."""

    weight0: Tensor

    def __init__(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        for k, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight{k}", weight.detach().float())  # (E, in, out)
            self.register_buffer(f"bias{k}", bias.detach().float())  # (E, out)
        self.depth = len(layers)

    def forward(self, hidden: Tensor) -> Tensor:
        values = hidden.expand(self.weight0.shape[0], *hidden.shape)  # (E, N, H)
        for k in range(self.depth):
            values = torch.baddbmm(getattr(self, f"bias{k}")[:, None], values, getattr(self, f"weight{k}"))
            values = torch.relu(values) if k + 1 < self.depth else values
        return values.squeeze(-1).T


def load_parts(path: str | Path, spec: PRMFormat, tokenizer: Any, dtype: torch.dtype) -> Parts:
    """Return decoder and head of a checkpoint. Raises UserError when it is laid out otherwise."""
    config = load_or_refuse(path, lambda: AutoConfig.from_pretrained(path, **trust(weights=False)))
    if spec.head == "lm_head":
        model = load_language_model(path, dtype)
        return Parts(model.base_model, _language_head(model, spec, tokenizer), config)
    if spec.head == "classifier":
        model = load_or_refuse(
            path,
            lambda: AutoModelForTokenClassification.from_pretrained(
                path, dtype=dtype, **trust(weights=False), output_loading_info=True
            ),
        )
        model, info = model
        _refuse_missing(path, info["missing_keys"], spec)
        return Parts(model.base_model, classifier(model).float(), config)
    weights = read_weights(path)
    head, names = _HEADS[spec.head](path, weights, spec)
    decoder = _decoder(path, config, {k: v for k, v in weights.items() if k not in names}, dtype, spec)
    return Parts(decoder, head.float(), config)


def parts_of(model: Any, spec: PRMFormat, tokenizer: Any) -> Parts:
    """Return decoder and head of a model in memory. Raises UserError for a head that it cannot have."""
    if spec.head == "lm_head" and model.get_output_embeddings() is not None:
        return Parts(model.base_model, _language_head(model, spec, tokenizer), model.config)
    if spec.head == "classifier":
        return Parts(model.base_model, classifier(model).float(), model.config)
    raise UserError(
        f"format '{spec.name}' reads a {spec.head}, and {type(model).__name__} in memory has none known; "
        "save it and give its folder"
    )


def load_language_model(path: str | Path, dtype: torch.dtype) -> Any:
    """Return a causal LM, with a LoRA adapter merged into it where the folder holds one."""
    if (Path(path) / "adapter_config.json").is_file():
        try:
            from peft import AutoPeftModelForCausalLM
        except ImportError as error:
            raise UserError(f"{path} is a LoRA adapter; pip install 'stepwell[lora]' to read it") from error
        return load_or_refuse(
            path, lambda: AutoPeftModelForCausalLM.from_pretrained(path, dtype=dtype, **trust(weights=False))
        ).merge_and_unload()
    return load_or_refuse(
        path, lambda: AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **trust(weights=False))
    )


def _language_head(model: Any, spec: PRMFormat, tokenizer: Any) -> nn.Module:
    output = model.get_output_embeddings()
    bias = getattr(output, "bias", None)
    if spec.readout == "two_token":
        chosen = [token_id(tokenizer, spec.good, "good"), token_id(tokenizer, spec.bad, "bad")]
        if max(chosen) >= output.weight.shape[0]:
            raise UserError(f"token ids {chosen} exceed the LM head's {output.weight.shape[0]} rows")
        return Rows(output.weight[chosen], None if bias is None else bias[chosen], model.config)
    # The mean of all logits is one row: the mean of the head's rows.
    mean = output.weight.detach().float().mean(0, keepdim=True)
    return Rows(mean, None if bias is None else bias.float().mean(0, keepdim=True), model.config)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _value_head(path: Any, weights: Mapping[str, Tensor], spec: PRMFormat) -> tuple[nn.Module, set[str]]:
    """TRL's value head of old: v_head.summary, a linear layer to one output."""
    name = _find(path, weights, "v_head.summary.weight", spec)
    bias = name.removesuffix("weight") + "bias"
    return _linear(weights[name], weights.get(bias)), {name, bias}


def _two_layer(path: Any, weights: Mapping[str, Tensor], spec: PRMFormat) -> tuple[nn.Module, set[str]]:
    """Linear, ReLU, Linear: Qwen2.5-Math-PRM's `score`, as a Sequential numbers its layers."""
    first = _find(path, weights, "score.0.weight", spec)
    stem = first.removesuffix("0.weight")
    names = [f"{stem}{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")]
    _find(path, weights, names[2], spec)
    layers = nn.Sequential(
        _linear(weights[names[0]], weights.get(names[1])),
        nn.ReLU(),
        _linear(weights[names[2]], weights.get(names[3])),
    )
    return layers, set(names)


def _score_head(path: Any, weights: Mapping[str, Tensor], spec: PRMFormat) -> tuple[nn.Module, set[str]]:
    """ReasonEval's score_head. Its configs spell size and bias in two ways; the weights need neither."""
    name = _find(path, weights, "score_head.weight", spec)
    bias = name.removesuffix("weight") + "bias"
    return _linear(weights[name], weights.get(bias)), {name, bias}


def _ensemble(path: Any, weights: Mapping[str, Tensor], spec: PRMFormat) -> tuple[nn.Module, set[str]]:
    """ActPRM's E three-layer heads; beside them stands a frozen copy, reg_model, that only training used."""
    # The frozen copy's names end alike but for "reg_model".
    first = _find(path, weights, ".model.nn1.weight", spec)
    stem = first.removesuffix("nn1.weight")
    layers = []
    for part in ("nn1", "nn2", "nn_out"):
        _find(path, weights, f"{stem}{part}.weight", spec)
        _find(path, weights, f"{stem}{part}.bias", spec)
        layers.append((weights[f"{stem}{part}.weight"], weights[f"{stem}{part}.bias"]))
    root = stem.removesuffix("model.")
    return Ensemble(layers), {name for name in weights if name.startswith(root)}


def _vocab_value(path: Any, weights: Mapping[str, Tensor], spec: PRMFormat) -> tuple[nn.Module, set[str]]:
    """ReST-MCTS's linear layer on all vocabulary logits: with the LM head one layer on hidden states."""
    name = _find(path, weights, "LN.weight", spec)
    bias = name.removesuffix("weight") + "bias"
    output = _find(path, weights, "lm_head.weight", spec)
    row = weights[name].float() @ weights[output].float()  # (1, V) (V, H)
    return _linear(row, weights.get(bias)), {name, bias, output}


_HEADS = {
    "value_head": _value_head,
    "two_layer": _two_layer,
    "score_head": _score_head,
    "ensemble": _ensemble,
    "vocab_value": _vocab_value,
}


def _find(path: Any, weights: Mapping[str, Tensor], suffix: str, spec: PRMFormat) -> str:
    """The one weight whose name ends so. Raises UserError when there is none."""
    found = [name for name in weights if name == suffix or name.endswith("." + suffix.removeprefix("."))]
    if not found:
        raise UserError(
            f"{path}: no weight '{suffix}', which format '{spec.name}' reads; name another --format"
        )
    return min(found, key=len)


def _decoder(
    path: Any,
    config: Any,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    spec: PRMFormat,
) -> PreTrainedModel:
    """transformers' decoder with the checkpoint's weights, however its wrapper prefixed their names."""
    prefixes = ("pretrained_model.", "base_model.", "model.")
    stripped = {}
    for name, value in weights.items():
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        if not name.startswith(("lm_head.", "v_head.")) and not name.endswith("rotary_emb.inv_freq"):
            stripped[name] = value
    with torch.device("meta"):
        kind = type(AutoModel.from_config(config))
    decoder, info = load_or_refuse(
        path,
        lambda: kind.from_pretrained(
            None, config=config, state_dict=stripped, dtype=dtype, output_loading_info=True
        ),
    )
    _refuse_missing(path, info["missing_keys"], spec)
    return decoder


def _refuse_missing(path: Any, names: Any, spec: PRMFormat) -> None:
    if names:
        shown = ", ".join(sorted(names)[:2])
        raise UserError(
            f"{path}: {len(names)} weights are missing ({shown}) that format '{spec.name}' reads; "
            "name another --format, or download the checkpoint again"
        )
