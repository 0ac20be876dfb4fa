"""The receiving side of weight sync, run inside a vLLM worker; vLLM imports it as its worker extension.

Importing registers the transfer backend "files" with vLLM's factory: pieces of the new weights arrive as
safetensors files (or, from a trainer in the same process, as tensors), are checked one by one, and are loaded
only when all of them are there. Until then the engine keeps the weights it has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from reasoning_rl.rollout.vllm_engine import fingerprint
from reasoning_rl.rollout.vllm_weights import crc32

BACKEND = "files"
PROCESSED = "_already_called_process_weights_after_loading"
"""vLLM's mark on a layer whose kernels have packed their copy of the weights."""


@dataclass
class FilesInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class FilesUpdate(WeightTransferUpdateInfo):
    """One piece of the new weights, or (commit) the statement that there are no more."""

    path: str | None = None
    """File of this piece."""
    tensors: dict[str, torch.Tensor] | None = None
    """The piece itself, from a trainer in the same process."""
    checksum: int = 0
    """crc32 of the file."""
    commit: int | None = None
    """Number of tensors that all pieces together must have held."""


class FilesTransferEngine(WeightTransferEngine[FilesInit, FilesUpdate]):
    """All or nothing: a piece that is torn, missing, unknown or of another shape changes no weight."""

    init_info_cls = FilesInit
    update_info_cls = FilesUpdate
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: FilesInit) -> None:
        self.start_weight_update()

    def start_weight_update(self) -> None:
        self.staged: list[FilesUpdate] = []
        self.committed = False

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: FilesUpdate) -> None:
        if update_info.commit is None:
            if update_info.path is not None and crc32(update_info.path) != update_info.checksum:
                raise ValueError(f"{update_info.path}: checksum differs, the file is torn")
            self.staged.append(update_info)
            return
        shapes = {name: shape for piece in self.staged for name, shape in _shapes(piece).items()}
        if len(shapes) != update_info.commit:
            raise ValueError(f"{len(shapes)} tensors arrived of {update_info.commit}")
        self._compare(shapes)
        self.committed = True

    def _compare(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise ValueError unless these are the tensors of the checkpoint that the engine started from."""
        expected = checkpoint_shapes(self.model_config.model)
        if not expected:
            return
        if getattr(self.model_config.hf_config, "tie_word_embeddings", False):
            expected.pop("lm_head.weight", None)
            shapes = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
        missing, unknown = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
        if missing or unknown:
            raise ValueError(f"another model's weights: missing {missing[:3]}, unknown {unknown[:3]}")
        for name, shape in shapes.items():
            if shape != expected[name]:
                raise ValueError(f"{name} has shape {shape}, the engine's is {expected[name]}")

    def finish_weight_update(self) -> None:
        if not self.committed:
            raise RuntimeError("the weight update was not complete; the old weights stay")
        device = torch.device(self.device)
        with torch.no_grad(), device:
            initialize_layerwise_reload(self.model)
            self.model.load_weights(_tensors(self.staged))
            finalize_layerwise_reload(self.model, self.model_config)
            self._process_tied_head()
        self.start_weight_update()

    def _process_tied_head(self) -> None:
        """A tied head has no weights of its own to load, so the reload passes it by: its packed copy (CPU
        kernels make one) would stay that of the old embedding, without any error."""
        head = getattr(self.model, "lm_head", None)
        embedding = getattr(getattr(self.model, "model", None), "embed_tokens", None)
        if (
            head is None
            or embedding is None
            or not getattr(self.model_config.hf_config, "tie_word_embeddings", False)
        ):
            return
        if head is not embedding:
            head.tie_weights(embedding)
        if hasattr(head, PROCESSED):
            delattr(head, PROCESSED)
        head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        self.staged = []


def checkpoint_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a model folder's safetensors headers; empty where it has none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def _shapes(piece: FilesUpdate) -> dict[str, tuple[int, ...]]:
    if piece.tensors is not None:
        return {name: tuple(tensor.shape) for name, tensor in piece.tensors.items()}
    assert piece.path is not None
    with safe_open(piece.path, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def _tensors(pieces: list[FilesUpdate]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, read when its turn comes."""
    for piece in pieces:
        if piece.tensors is not None:
            yield from piece.tensors.items()
        else:
            assert piece.path is not None
            with safe_open(piece.path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    yield name, tensors.get_tensor(name)


class WeightReceiver:
    """Methods added to vLLM's worker; a trainer calls them through collective_rpc."""

    weight_transfer_engine: Any
    model_runner: Any

    def abort_weight_update(self) -> None:
        """Forget a weight update that its trainer did not finish."""
        self._weight_update_active = False
        self.weight_transfer_engine.reset_weight_update_target()
        if isinstance(self.weight_transfer_engine, FilesTransferEngine):
            self.weight_transfer_engine.start_weight_update()

    def describe_model(self) -> dict[str, Any]:
        """What a trainer must find in an engine before it trusts it with its weights and prompts."""
        config = self.model_runner.model_config
        return {
            "vocab_size": config.hf_config.vocab_size,
            "hidden_size": config.hf_config.hidden_size,
            "num_layers": config.hf_config.num_hidden_layers,
            "architecture": config.hf_config.architectures[0],
            "logprobs_mode": config.logprobs_mode,
            "fingerprint": fingerprint(config.model),
        }


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, FilesTransferEngine)
