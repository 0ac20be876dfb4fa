"""The random states of a process, for checkpoints."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from data.protocols import Stateful


def rng_state() -> dict[str, Any]:
    """Return the states of the python, numpy and torch generators of this process, as plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what `rng_state` returned; CUDA states only where as many devices are visible."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def process_state(own: Mapping[str, Stateful]) -> dict[str, Any]:
    """Return what a checkpoint holds of one process: its random generators and the parts of its own."""
    return {"random": rng_state(), "own": {name: part.state_dict() for name, part in own.items()}}
