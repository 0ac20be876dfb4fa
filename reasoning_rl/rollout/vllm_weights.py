"""The sending side of weight sync: whole weights out of any actor, piece by piece, into a vLLM engine.

    sync = WeightSync(client, config, in_process=False)
    sync.push(ActorWeights(policy, bucket_bytes=2**28), version=3)

vLLM's own transfer interface does the work: nccl and ipc are its backends between GPUs; "files" is
registered here with the same factory and works on any device, inside one process or through a folder that
trainer and engine both see.
"""

import contextlib
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from prm.lora import merged_weight
from reasoning_rl.rollout.settings import EngineConfig

PREFIX = "stepwell-weights-"
MEMORY = "/dev/shm"


@dataclass(frozen=True)
class TensorMeta:
    """Name, type and full shape of a weight; the fields of vLLM's ParamMeta."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Weight:
    """A weight under its checkpoint name, and how to read it once its parts are whole."""

    name: str
    parts: tuple[nn.Parameter, ...]
    merge: Callable[[], Tensor] | None = None
    """Base weight plus its adapter's update; none: the first part itself."""

    @property
    def dtype(self) -> torch.dtype:
        packed = getattr(self.parts[0], "quant_state", None)  # of a weight in four bits
        return packed.dtype if packed else self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        packed = getattr(self.parts[0], "quant_state", None)
        return tuple(packed.shape if packed else getattr(self.parts[0], "ds_shape", self.parts[0].shape))

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class ActorWeights:
    """The weights of a plain, DDP, ZeRO-3 or LoRA actor under their checkpoint names: a vLLM WeightSource.

    Iterating is a collective under ZeRO-3: every rank does it.
    """

    model: nn.Module
    bucket_bytes: int = 2**28

    @property
    def live(self) -> bool:
        """True where each tensor is the parameter itself, not a copy made for sending."""
        return all(w.merge is None and not hasattr(w.parts[0], "ds_id") for w in _weights(self.model))

    def metadata(self) -> list[TensorMeta]:
        return [TensorMeta(w.name, w.dtype, w.shape) for w in _weights(self.model)]

    def buckets(self) -> Iterator[list[tuple[str, Tensor]]]:
        return gather_weights(self.model, self.bucket_bytes)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self.buckets():
            yield from bucket


@torch.no_grad()
def gather_weights(model: nn.Module, bucket_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield lists of (checkpoint name, whole tensor), at most `bucket_bytes` together or one larger tensor.

    Shards of ZeRO-3 are gathered and LoRA adapters merged for one bucket at a time: that is all the extra
    memory. Tied weights come once. Raises UserError for an adapter that cannot be merged by addition.
    """
    bucket: list[_Weight] = []
    size = 0
    for weight in _weights(model):
        if bucket and size + weight.num_bytes > bucket_bytes:
            yield _read(bucket)
            bucket, size = [], 0
        bucket.append(weight)
        size += weight.num_bytes
    if bucket:
        yield _read(bucket)


def _read(bucket: list[_Weight]) -> list[tuple[str, Tensor]]:
    parts = [part for weight in bucket for part in weight.parts]
    if not any(hasattr(part, "ds_id") for part in parts):
        return [(w.name, w.merge() if w.merge else w.parts[0].detach()) for w in bucket]
    import deepspeed

    with deepspeed.zero.GatheredParameters(parts):  # a collective
        return [(w.name, w.merge() if w.merge else w.parts[0].detach().clone()) for w in bucket]


def _weights(model: nn.Module) -> list[_Weight]:
    while isinstance(inner := getattr(model, "module", None), nn.Module):  # DDP, DeepSpeed
        model = inner
    adapters = {name: m for name, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    found = []
    for name, parameter in model.named_parameters():
        if "lora_" in name or ".original_module." in name:
            continue
        layer = adapters.get(name.rpartition(".base_layer.")[0])
        clean = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if ".modules_to_save." in clean:
            before, _, after = clean.partition(".modules_to_save.")
            clean = f"{before}.{after.partition('.')[2]}"
        if layer is not None and name.endswith(".weight") and layer.active_adapters:
            found.append(_merged(clean, parameter, layer))
        else:
            found.append(_Weight(clean, (parameter,)))
    return found


def _merged(name: str, base: nn.Parameter, layer: Any) -> _Weight:
    active = [a for a in layer.active_adapters if a in layer.scaling]
    if any(getattr(layer, "use_dora", {}).get(a) for a in active):
        raise UserError(f"{name}: a DoRA adapter cannot be merged for the engine; train plain LoRA")
    lora = tuple(p for n, p in layer.named_parameters() if "lora_" in n)
    return _Weight(name, (base, *lora), lambda: merged_weight(layer))


def remove_abandoned(folder: str) -> None:
    """Remove weights in `folder` whose trainer was killed before it could."""
    for path in Path(folder).glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


@dataclass
class SyncRecord:
    """What the last sync cost."""

    seconds: float = 0.0
    num_bytes: int = 0
    checksum: int = 0
    files: list[tuple[str, int]] = field(default_factory=list)
    """The pieces (path, crc32) that were sent, still there to be sent again."""
    num_tensors: int = 0
    name: str = ""
    """What the engine calls these weights; empty where the transfer leaves that to vLLM."""


class WeightSync:
    """A WeightSink over one vLLM engine. `client` has the methods of vLLM's VLLMWeightSyncClient and `abort`.

    push raises UserError when the engine does not take the weights; it then still has the old ones, or, when
    it died, can be given them again.
    """

    def __init__(self, client: Any, config: EngineConfig, *, in_process: bool) -> None:
        self.client, self.config, self.in_process = client, config, in_process
        self.last = SyncRecord()
        self._engine: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def push(self, named_tensors: Iterable[tuple[str, Any]], version: int) -> None:
        """Send the weights; on return the engine uses them. `last` says what it cost."""
        started = time.perf_counter()
        try:
            source: Any = named_tensors
            if not isinstance(named_tensors, ActorWeights):
                source = _Given(list(named_tensors))
            num_bytes = sum(torch.Size(m.shape).numel() * m.dtype.itemsize for m in source.metadata())
            if self._engine is None:
                self._engine = self._connect(source, num_bytes)
            self._engine.source = source
            if self.config.sync == "files":
                self.last = self._engine.send_weights(version)
            else:
                self._engine.send_weights()
                self.last = SyncRecord(num_bytes=num_bytes)
        except Exception as error:
            with contextlib.suppress(Exception):  # what is dead has forgotten the update already
                self.client.abort()
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"the engine did not take the weights of version {version} ({_reason(error)}); it keeps the "
                "ones before them. --resume continues the run from its last checkpoint"
            ) from error
        self.last.seconds = time.perf_counter() - started

    def send_again(self, version: int) -> None:
        """Push the files of the last version once more, to an engine that was restarted."""
        if not self.last.files:
            raise UserError("the engine was restarted and the weights it had are gone: --resume the run")
        try:
            self._engine.send_files(self.last, version)
        except Exception as error:
            raise UserError(
                f"the restarted engine did not take the weights of version {version} ({_reason(error)}); "
                "--resume continues the run from its last checkpoint"
            ) from error

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def _connect(self, source: Any, num_bytes: int) -> Any:
        """The trainer-side engine, from vLLM's factory."""
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        from reasoning_rl.rollout import vllm_transfer

        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        if self.config.sync == "files":
            folder = self._sync_dir(2 * num_bytes)
            remove_abandoned(folder)
            self._folder = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=folder)
            init = vllm_transfer.FilesTrainerInit(
                rank=rank, folder=self._folder.name, direct=self.in_process, bucket_bytes=self._bucket_bytes
            )
        else:
            init = vllm_transfer.gpu_init(self.config, rank, self.client.world_size())
        return WeightTransferTrainerFactory.trainer_init(init, client=self.client, source=source)

    @property
    def _bucket_bytes(self) -> int:
        return self.config.sync_bucket_mb * 2**20

    def _sync_dir(self, num_bytes: int) -> str:
        """Where files go: with room for the new weights beside the old ones, unless none are written."""
        folder, needed = self.config.sync_dir, 0 if self.in_process else num_bytes
        if folder is None:
            usable = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= needed
            folder = MEMORY if usable else tempfile.gettempdir()
        if not Path(folder).is_dir():
            raise UserError(f"sync_dir {folder} is no folder; make it, where trainer and engine both see it")
        if (free := shutil.disk_usage(folder).free) < needed:
            raise UserError(
                f"{folder} has {free / 2**20:,.0f} MiB free, and two copies of the weights take "
                f"{needed / 2**20:,.0f}: set sync_dir to a folder with more room"
            )
        return folder


@dataclass(frozen=True)
class _Given:
    """A WeightSource over tensors at hand."""

    tensors: list[tuple[str, Tensor]]
    live: bool = True

    def metadata(self) -> list[TensorMeta]:
        return [TensorMeta(name, t.dtype, tuple(t.shape)) for name, t in self.tensors]

    def buckets(self) -> Iterator[list[tuple[str, Tensor]]]:
        yield self.tensors

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.tensors)


def crc32(path: str | Path) -> int:
    """Checksum of a file's bytes, read in pieces."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(2**24):
            value = zlib.crc32(chunk, value)
    return value


def _reason(error: BaseException) -> str:
    """The last line of an engine's message: what a remote traceback ends with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def unlink(paths: Iterable[str]) -> None:
    """Remove files; those that are gone already do not matter."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
