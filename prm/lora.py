"""Low-rank adapters on a PRM's backbone while it trains; the saved model is a plain one again.

Checkpoints hold the adapters and the head only. `merge` adds the learned product to the weights, so nothing
that reads the model later needs peft (the extra `lora`).
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from data.errors import UserError
from data.settings import Settings


class LoraSettings(Settings):
    """Low-rank adapters on every linear layer below the head."""

    rank: int = Field(0, ge=0)
    """Rank of the adapters; 0: off, all weights are trained. 8 to 64 for models of billions."""
    alpha: float = Field(16.0, gt=0)
    """The adapters' product is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in front of the adapters."""


class TrainableState:
    """The Stateful of a model of which only some parameters learn."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if _is_adapted(name)}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._trainable().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._trainable().items():
                parameter.copy_(state[name])


def add_adapters(model: nn.Module, settings: LoraSettings) -> TrainableState:
    """Put adapters on the backbone's linear layers in place and freeze all else but the head.

    Returns what a checkpoint needs to hold. At first the adapters change nothing: their second factor is 0.
    Raises UserError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("lora.rank needs the peft package: pip install 'stepwell[lora]'") from error
    inside = {id(module) for module in model.base_model.modules()}
    targets = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]
    inject_adapter_in_model(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=targets,
        ),
        model,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapted(name))
    return TrainableState(model)


def merge(model: Any) -> None:
    """Fold the adapters into the weights in place and take them out."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    # transformers refuses to save a model that it still takes for one with adapters.
    if getattr(model, "_hf_peft_config_loaded", False):
        model._hf_peft_config_loaded = False
    model.requires_grad_(True)


def _is_adapted(name: str) -> bool:
    return ".lora_" in name or name.split(".")[0] in ("score", "classifier")
