"""Where a run executes: one process, DDP, DeepSpeed ZeRO or FSDP2, as the launcher asked.

    accelerator = make_accelerator()

What was asked for is compared with what was got: a launcher that quietly starts one process, or skips
DeepSpeed, is a UserError and not a slow run. Environment: STEPWELL_DEVICE=cpu keeps off GPUs,
STEPWELL_NUM_PROCESSES and STEPWELL_ENGINE (ddp, zero1, zero2, zero3, fsdp2) say what to insist on,
STEPWELL_TIMEOUT is the seconds a process waits for the others (1800), STEPWELL_DETERMINISTIC=1 (or
--deterministic) refuses operations without a deterministic form.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from data.errors import UserError
from prm.sharding import engine_of

ENGINES = ("one", "ddp", "zero1", "zero2", "zero3", "fsdp2")
TIMEOUT = 1800.0


@dataclass(frozen=True)
class Request:
    """What launcher and environment asked for."""

    num_processes: int
    engine: str
    """One of ENGINES, or "zero": the stage stands in DeepSpeed's own settings."""
    on_cpu: bool


def read_request(environment: Mapping[str, str], *, has_gpu: bool) -> Request:
    """Return what the environment asks for. Raises UserError where it contradicts itself."""
    world = _number(environment, "WORLD_SIZE", 1)
    launched = "LOCAL_RANK" in environment
    # accelerate sets an address for several processes, also where it then starts a single one.
    if not launched and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= set(environment):
        raise UserError(
            "accelerate launch was asked for several processes and started one; add --multi_gpu (on a CPU as "
            "well) or start with torchrun --nproc-per-node N"
        )
    zero, fsdp = _is_on(environment, "ACCELERATE_USE_DEEPSPEED"), _is_on(environment, "ACCELERATE_USE_FSDP")
    if fsdp and environment.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP version 1 is not supported; set fsdp_version: 2 in the accelerate config")
    if (zero or fsdp) and not launched:
        raise UserError(
            f"{'DeepSpeed' if zero else 'FSDP2'} was asked for outside a launcher; start with accelerate "
            "launch or torchrun, also for one process"
        )
    engine = "zero" if zero else "fsdp2" if fsdp else "ddp" if world > 1 else "one"
    on_cpu = environment.get("STEPWELL_DEVICE") == "cpu" or not has_gpu
    if on_cpu and has_gpu and zero:
        raise UserError("DeepSpeed takes the GPUs it sees; for a CPU run set CUDA_VISIBLE_DEVICES= (empty)")
    insisted = environment.get("STEPWELL_ENGINE")
    if insisted is not None and insisted not in ENGINES:
        raise UserError(f"STEPWELL_ENGINE={insisted}: must be one of {', '.join(ENGINES)}")
    if _number(environment, "STEPWELL_NUM_PROCESSES", world) != world:
        raise UserError(
            f"STEPWELL_NUM_PROCESSES asks for {environment['STEPWELL_NUM_PROCESSES']} processes and the "
            f"launcher started {world}; check --num_processes, or start with torchrun --nproc-per-node"
        )
    return Request(world, engine, on_cpu)


def make_accelerator() -> Accelerator:
    """Return the accelerator of this process, once it is what was asked for. Raises UserError otherwise."""
    if os.environ.get("STEPWELL_DETERMINISTIC") == "1":
        be_deterministic()
    request = read_request(os.environ, has_gpu=torch.cuda.is_available())
    timeout = timedelta(seconds=float(os.environ.get("STEPWELL_TIMEOUT", TIMEOUT)))
    if request.engine == "zero":
        _prepare_deepspeed(on_cpu=request.on_cpu)
    backend = "gloo" if request.on_cpu and "LOCAL_RANK" in os.environ else None
    group = InitProcessGroupKwargs(backend=backend, timeout=timeout)
    accelerator = Accelerator(cpu=request.on_cpu and request.engine != "zero", kwargs_handlers=[group])
    if request.engine == "zero":
        _make_models_whole(accelerator)
    check(accelerator, request)
    return accelerator


def _prepare_deepspeed(*, on_cpu: bool) -> None:
    if find_spec("deepspeed") is None:
        raise UserError("DeepSpeed was asked for and is not installed: pip install 'stepwell[deepspeed]'")
    if on_cpu:
        # Told to run on a CPU, accelerate skips DeepSpeed without a word: only the backend may say so.
        os.environ.pop("ACCELERATE_USE_CPU", None)
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        # gloo does: a kernel of its own would be compiled first, for minutes and with every process waiting.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _make_models_whole(accelerator: Accelerator) -> None:
    """Hide DeepSpeed's settings from transformers, which would cut every model up as it is made under ZeRO-3.

    A critic could then not be made from a policy, nor a scorer or an implicit PRM score anything.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    accelerator.deepspeed_plugin.dschf = None
    unset_hf_deepspeed_config()


def check(accelerator: Accelerator, request: Request) -> None:
    """Raise UserError unless the accelerator is what was asked for."""
    if accelerator.num_processes != request.num_processes:
        raise UserError(
            f"the launcher asked for {request.num_processes} processes and this run has "
            f"{accelerator.num_processes}; start with torchrun --nproc-per-node {request.num_processes}"
        )
    got = running_engine(accelerator)
    if request.engine != got and not (request.engine == "zero" and got.startswith("zero")):
        raise UserError(
            f"the launcher asked for {request.engine} and this run got {got}; compare the accelerate config "
            "with those in configs/accelerate"
        )
    insisted = os.environ.get("STEPWELL_ENGINE")
    if insisted is not None and insisted != got:
        raise UserError(f"STEPWELL_ENGINE asks for {insisted} and this run got {got}; see configs/accelerate")
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            "gradient_accumulation_steps in the accelerate config must be 1: micro-batches come from the "
            "token budget (micro_batch_tokens)"
        )


def running_engine(accelerator: Accelerator) -> str:
    """Return one of ENGINES."""
    kind = engine_of(accelerator)
    if kind == "deepspeed":
        return f"zero{accelerator.deepspeed_plugin.zero_stage}"
    if kind == "fsdp2":
        return "fsdp2"
    return "ddp" if accelerator.num_processes > 1 else "one"


def be_deterministic() -> None:
    """Take deterministic kernels only; torch raises where an operation has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it, before CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(environment.get(name, default))
    except ValueError as error:
        raise UserError(f"{name}={environment[name]}: must be a whole number") from error


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() == "true"
