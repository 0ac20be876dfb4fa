"""The tensors of a checkpoint by name, from safetensors or from pickles that may hold nothing else."""

import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from data.errors import UserError
from prm.model import load_or_refuse

_NAMES = ("model.safetensors", "pytorch_model.bin")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return every tensor of a folder or hub id, whole or sharded. Raises UserError when there is none."""
    for name in _NAMES:
        index = _file(path, f"{name}.index.json")
        if index is not None:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            found = [_file(path, shard) for shard in shards]
            if None in found:
                raise UserError(f"{path}: shard {shards[found.index(None)]} is missing; download it again")
            return {k: v for file in found if file is not None for k, v in _read(file).items()}
        whole = _file(path, name)
        if whole is not None:
            return _read(whole)
    raise UserError(f"{path}: no weights; expected {' or '.join(_NAMES)}, whole or sharded")


def _file(path: str | Path, name: str) -> Path | None:
    found = load_or_refuse(
        path,
        lambda: cached_file(str(path), name, _raise_exceptions_for_missing_entries=False),
    )
    return None if found is None else Path(found)


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_or_refuse(file, lambda: load_file(file))
    try:
        # weights_only: a pickle may otherwise run whatever its author liked.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{file}: unreadable as plain tensors ({str(error).splitlines()[0]})") from error
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
