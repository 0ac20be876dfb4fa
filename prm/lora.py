"""Low-rank adapters on a frozen model while it trains; the saved model is a plain one again.

Checkpoints hold the adapters and the head only, and a fingerprint of the weights below. `merge` adds the
learned product to the weights, so nothing that reads the model later needs peft (the extra `lora`). With
`quantize` the frozen weights are held in four bits (QLoRA, arXiv:2305.14314; the extra `qlora`).

    adapters = add_adapters(model, LoraSettings(rank=16))    # ... train ...
    with adapters_off(model): ...                            # the model as it was
    merge(model)
"""

import copy
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data.errors import UserError
from prm.checkpoint import replace_folder
from prm.config import LoraSettings


class TrainableState:
    """The Stateful of a model of which only some parameters learn."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.base = BaseWeights(_fingerprint(model))
        """What the adapters belong to, as a checkpoint's part."""

    def _trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if _is_adapted(name)}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._trainable().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._trainable().items():
                parameter.copy_(state[name])


class BaseWeights:
    """Knows whether adapters go back onto the weights that they were trained on. Stateful."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                "cannot resume: the checkpoint's adapters were trained on other weights than this model's; "
                "give the model that the run started from"
            )


def add_adapters(
    model: nn.Module, settings: LoraSettings, *, frozen: torch.dtype = torch.float32
) -> TrainableState:
    """Put adapters on the backbone's linear layers in place and freeze all else but the head.

    frozen: the number format of what does not learn; what 4-bit layers compute in. Returns what a checkpoint
    needs to hold. At first the adapters change nothing: their second factor is 0. Raises UserError without
    peft, or without bitsandbytes where it is asked for.
    """
    # peft loads bitsandbytes where it is installed, which on a CPU warns of a kernel that it does without.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("lora.rank needs the peft package: pip install 'stepwell[lora]'") from error
    base_model = model.base_model
    assert isinstance(base_model, nn.Module)
    inside = {id(module) for module in base_model.modules()}
    targets = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]
    if settings.quantize:
        _quantize(model, targets, frozen)
    inject_adapter_in_model(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # only divides, so a fraction will do
            lora_dropout=settings.dropout,
            target_modules=targets,
        ),
        model,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapted(name))
    state = TrainableState(model)
    for parameter in model.parameters():
        if parameter.is_floating_point():  # peft makes adapters in what a 4-bit layer computes in
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else frozen)
    return state


def has_adapters(model: nn.Module) -> bool:
    """Return whether LoRA adapters are in the model."""
    return any(".lora_" in name for name, _ in model.named_parameters())


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it did before it had adapters."""
    layers = _adapted_layers(model)
    for _, layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in layers:
            layer.enable_adapters(True)


def save_adapters(folder: str | Path, model: Any, base: str) -> None:
    """Write the adapters alone as peft and vLLM read them, whole or not at all. base: what they belong to."""
    config = copy.deepcopy(model.peft_config["default"])
    config.base_model_name_or_path, config.task_type = base, "CAUSAL_LM"
    tensors = {
        f"base_model.model.{name.replace('.default.', '.')}": parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }

    def fill(temporary: Path) -> None:
        config.save_pretrained(temporary)
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})

    replace_folder(Path(folder), fill)


def merge(model: Any) -> None:
    """Fold the adapters into the weights in place and take them out; all weights are float32 after it."""
    for name, layer in _adapted_layers(model):
        base = layer.get_base_layer()
        plain = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        plain.weight = nn.Parameter(merged_weight(layer).float())
        if base.bias is not None:
            plain.bias = base.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
    if hasattr(model, "peft_config"):
        del model.peft_config
    # transformers refuses to save a model that it still takes for one with adapters.
    if getattr(model, "_hf_peft_config_loaded", False):
        model._hf_peft_config_loaded = False
    model.float().requires_grad_(True)


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """Return the weight of an adapted layer with what its adapters add, in the format of the weight."""
    weight = base_weight(layer.get_base_layer().weight)
    for adapter in layer.active_adapters:
        if adapter in layer.scaling:
            weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
    return weight


def base_weight(parameter: nn.Parameter) -> Tensor:
    """Return a frozen weight as numbers, also where it is held in four bits."""
    if not hasattr(parameter, "quant_state"):
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, parameter.quant_state)


def _quantize(model: nn.Module, names: list[str], dtype: torch.dtype) -> None:
    """Put 4-bit layers in the place of linear ones. Packing happens when the model moves to its device."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise UserError(
            "lora.quantize needs the bitsandbytes package: pip install 'stepwell[qlora]'"
        ) from error
    form: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
    for name in names:
        whole = model.get_submodule(name)
        assert isinstance(whole, nn.Linear)
        device = whole.weight.device
        packed = Linear4bit(
            whole.in_features,
            whole.out_features,
            bias=whole.bias is not None,
            compute_dtype=dtype,
            device="meta",
            **form,
        )
        packed.weight = Params4bit(whole.weight.data, requires_grad=False, **form)
        packed.bias = whole.bias  # type: ignore[assignment]  # None as well
        # On CPUs that have a kernel for it, an eval forward would repack the weights in a form for inference.
        packed.support_avx512bf16_for_cpu = False
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed.to(device))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # what peft asks for


def _adapted_layers(model: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _fingerprint(model: nn.Module) -> str:
    """Tells two models' frozen weights apart by a few values of each."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not _is_adapted(name):
            flat = parameter.detach().reshape(-1)
            few = flat[:: max(1, flat.numel() // 64)].cpu().contiguous()
            digest.update(
                f"{name} {tuple(parameter.shape)}".encode() + few.view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()


def _is_adapted(name: str) -> bool:
    return ".lora_" in name or name.split(".")[0] in ("score", "classifier")
