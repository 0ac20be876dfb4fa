"""Decoder layers through torch.compile: what lies between the matrix products runs as fused kernels.

One layer's graph serves all layers of its kind and all shapes (regional compilation with symbolic sizes); it
is built once a process. Not for inference with a key-value cache, whose Python
code would be compiled again and again: `eagerly` is for that.
"""

import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from data.errors import UserError


def compile_layers(model: nn.Module) -> None:
    """Compile every decoder layer of a transformers model in place; names and weights stay as they are.

    Values change by rounding. Raises UserError where no layer is found or no C++ compiler is there for a CPU.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"{type(model).__name__}: has no decoder layers of transformers that could be compiled; set "
            "compile_layers to false"
        )
    # What torch._inductor.config.cpp.cxx looks for, and nothing else.
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if next(model.parameters()).device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"compile_layers: torch.compile needs a C++ compiler on a CPU and '{compiler}' is not on PATH; "
            "install it, name another one by CXX, or set compile_layers to false"
        )
    # A graph each for frozen, with and without gradients, adapters on and off, of one row and of several.
    from torch._dynamo import config  # takes a second to import

    config.recompile_limit = max(64, config.recompile_limit)
    for layer in layers:
        layer.compile(dynamic=True)


def eagerly(model: nn.Module) -> AbstractContextManager[object]:
    """Run compiled layers of `model` as if they were not, for as long as the context lasts."""
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
