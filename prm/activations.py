"""Activation memory: layers that keep their input alone and are computed again in the backward."""

from torch import nn
from transformers import PreTrainedModel

from data.errors import UserError


def checkpoint_layers(model: nn.Module) -> None:
    """Turn gradient checkpointing on in every transformers model inside `model`; it works in training mode.

    Losses and gradients stay the same; a forward more is the price (arXiv:1604.06174). Raises UserError for
    an architecture that cannot.
    """
    found = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not any(module.supports_gradient_checkpointing for module in found):
        raise UserError(
            f"{type(model).__name__}: transformers has no gradient checkpointing for this architecture; set "
            "gradient_checkpointing to false"
        )
    for module in found:
        if module.supports_gradient_checkpointing:
            name = "activation_checkpointing_enable"  # how newer versions of transformers call it
            enable = getattr(module, name, None) or module.gradient_checkpointing_enable
            # The reentrant kind needs inputs with a gradient, which a model below adapters has not.
            enable({"use_reentrant": False})
