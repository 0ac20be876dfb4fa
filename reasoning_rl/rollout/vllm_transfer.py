"""The trainer's end of vLLM's weight-transfer interface, and clients that carry its messages.

Importing registers the trainer engine "files" with vLLM's factory; vllm_worker.py has the other end.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors.torch import save_file
from vllm.distributed.weight_transfer.base import TrainerInitInfo, TrainerWeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.rollout.vllm_weights import SyncRecord, crc32, unlink

BACKEND = "files"


@dataclass
class FilesTrainerInit(TrainerInitInfo):
    """How the trainer's side of the transfer through files is set up."""

    backend: ClassVar[str] = BACKEND
    folder: str
    direct: bool
    """Hand over parameters themselves where the engine lives in this process: no copy at all."""
    bucket_bytes: int


class FilesTrainerEngine(TrainerWeightTransferEngine[FilesTrainerInit]):
    """Every rank gathers; rank 0 writes one safetensors file a bucket and tells the engine of each."""

    init_info_cls = FilesTrainerInit
    init: FilesTrainerInit
    sent: list[str]
    rounds: int

    @classmethod
    def trainer_init(cls, init_info: FilesTrainerInit, *, client: Any, source: Any = None) -> Self:
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        engine.init = init_info
        engine.sent = []
        engine.rounds = 0
        if engine.is_sender:
            client.init_weight_transfer_engine({})
        return engine

    def send_weights(self, version: int = 0) -> SyncRecord:
        """Send `source`; on return the engine has taken all of it, and the files before are gone.

        When it fails they stay instead: an engine that died can be given them again.
        """
        before, self.sent = self.sent, []
        self.rounds += 1
        try:
            record = self._send(version)
        except BaseException:
            unlink(self.sent)
            self.sent = before
            raise
        unlink(before)
        return record

    def _send(self, version: int) -> SyncRecord:
        record = SyncRecord()
        if self.is_sender:
            self.client.start_weight_update()
        for index, bucket in enumerate(self.source.buckets()):
            record.num_tensors += len(bucket)
            record.num_bytes += sum(t.numel() * t.element_size() for _, t in bucket)
            if not self.is_sender:
                continue
            if self.init.direct and self.source.live:
                self.client.update_weights({"tensors": dict(bucket)})
                continue
            path = str(Path(self.init.folder) / f"{self.rounds}-{version}-{index}.safetensors")
            self.sent.append(path)
            save_file({name: tensor.contiguous().cpu() for name, tensor in bucket}, path)
            checksum = crc32(path)
            record.files.append((path, checksum))
            self.client.update_weights({"path": path, "checksum": checksum})
        if self.is_sender:
            self._finish(record, version)
        return record

    def send_files(self, record: SyncRecord, version: int) -> None:
        """Send the files of an earlier round again."""
        self.client.init_weight_transfer_engine({})
        self.client.start_weight_update()
        for path, checksum in record.files:
            self.client.update_weights({"path": path, "checksum": checksum})
        self._finish(record, version)

    def _finish(self, record: SyncRecord, version: int) -> None:
        record.checksum = 0
        for _, checksum in record.files:
            record.checksum = (record.checksum * 31 + checksum) % 2**32
        record.name = f"{version}-{record.checksum:08x}" if record.files else str(version)
        self.client.update_weights({"commit": record.num_tensors})
        self.client.finish_weight_update(record.name)


def gpu_init(config: EngineConfig, rank: int, world_size: int) -> TrainerInitInfo:
    """Settings of vLLM's own transfers between GPUs, to an engine of `world_size` workers."""
    size = config.sync_bucket_mb * 2**20
    if config.sync == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=size)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_ip, get_open_port

    return NCCLTrainerInitInfo(
        rank=rank,
        master_address=get_ip(),
        master_port=get_open_port(),
        world_size=world_size + 1,
        packed_buffer_size_bytes=size,
    )


class LocalSyncClient:
    """vLLM's VLLMWeightSyncClient over an engine of this process or of a child process."""

    def __init__(self, llm: Any, timeout_s: float) -> None:
        self.engine, self.timeout_s = llm.llm_engine, timeout_s

    def world_size(self) -> int:
        return self.engine.vllm_config.parallel_config.world_size

    def _call(self, method: str, **kwargs: Any) -> list[Any]:
        return self.engine.collective_rpc(method, timeout=self.timeout_s, kwargs=kwargs)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        self._call("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._call("update_weights", update_info=update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._call("finish_weight_update")
        self.engine.reset_prefix_cache()
        if weight_version is not None:
            self.engine.set_weight_version(weight_version)

    def abort(self) -> None:
        self._call("abort_weight_update")


if BACKEND not in WeightTransferTrainerFactory._registry:
    WeightTransferTrainerFactory.register_engine(BACKEND, FilesTrainerEngine)
