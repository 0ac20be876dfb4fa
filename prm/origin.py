"""Where a model to train comes from, a saved one or a config file and a tokenizer, and where it goes."""

from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from data.errors import UserError
from prm.checkpoint import save_model
from prm.model import load_backbone, load_config


class Origin(Protocol):
    """The settings that say it."""

    @property
    def model(self) -> str | None: ...

    @property
    def model_config_file(self) -> str | None: ...

    @property
    def tokenizer(self) -> str | None: ...


def check_origin(config: Origin) -> None:
    """Raise UserError unless the settings name one origin, and a tokenizer."""
    if (config.model is None) == (config.model_config_file is None):
        raise UserError("give exactly one of model and model_config_file (--model, --model-config-file)")
    if config.model is None and config.tokenizer is None:
        raise UserError("model_config_file needs a tokenizer: set tokenizer to a folder or hub id")


def start_language_model(config: Origin, seed: int) -> PreTrainedModel:
    """Return the causal LM in float32: the saved one, or a new one that torch draws from `seed`."""
    if config.model:
        return load_backbone(config.model)
    torch.manual_seed(seed)
    new = load_config(config.model_config_file or "")
    return AutoModelForCausalLM.from_config(new, dtype=torch.float32)


def save_trained(output_dir: str | Path, model: Any, tokenizer: Any, accelerator: Any) -> Path:
    """Write a trained model to model/ in the run's folder; return that once it is there for all processes."""
    folder = Path(output_dir) / "model"
    if accelerator.is_main_process:
        save_model(folder, model, tokenizer)
    accelerator.wait_for_everyone()
    return folder
