"""Starts tests/distributed_run.py on one process or several, once for every line it reads: "ENGINE FOLDER".

"killed FOLDER" and "silent FOLDER" start tests/distributed_death.py instead. Everything is imported once and
then forked: imports would be most of what the launches take. Answers every line with one, the exit code; what
the processes wrote to stderr is FOLDER/stderr.
"""

import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import distributed_death
import distributed_run
import torch.distributed.fsdp  # noqa: F401
import transformers.models.qwen2.modeling_qwen2  # noqa: F401

if find_spec("deepspeed"):
    os.environ["DS_ACCELERATOR"] = "cpu"
    import prm.zero  # noqa: F401

NUM_PROCESSES = 2
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
ENGINES = {
    "one": {},
    "ddp": {},
    "zero2": {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "configs/deepspeed/zero2.json"},
    "zero3": {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "configs/deepspeed/zero3.json"},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
}


def launch(engine: str, folder: Path) -> int:
    """Run one engine to the end; return 0 or the first exit code that is not."""
    environment = ENGINES[engine] | {"STEPWELL_ENGINE": engine}
    world = 1 if engine == "one" else NUM_PROCESSES
    children = _fork(world, folder, environment, lambda: distributed_run.main(folder))
    code = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        if status and not code:
            code = os.waitstatus_to_exitcode(status)
            for other in children:  # it would wait for the one that is gone
                os.kill(other, signal.SIGKILL)
    return code


def drill(how: str, folder: Path) -> int:
    """Let the second process die or fall silent; return the first one's exit code."""
    environment = {"STEPWELL_HEARTBEAT": "4"}
    first, second = _fork(2, folder, environment, lambda: distributed_death.main(how))
    _, status = os.waitpid(first, 0)
    os.kill(second, signal.SIGKILL)
    os.waitpid(second, 0)
    return os.waitstatus_to_exitcode(status)


def _fork(world: int, folder: Path, environment: dict[str, str], run: Callable[[], None]) -> list[int]:
    """Start processes as torchrun would, which however ends them all when one dies; return their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if world > 1:
        size = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        environment = environment | size | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        child = os.fork()
        if child == 0:
            _run(folder, environment | own, run)
        children.append(child)
    return children


def _run(folder: Path, environment: dict[str, str], run: Callable[[], None]) -> None:
    """What a forked process does; it never returns."""
    code = 1
    try:
        os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        os.dup2(2, 1)
        os.environ.update(environment)
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    gc.freeze()  # DeepSpeed collects garbage for every engine, and would look through all that was imported
    for line in sys.stdin:
        name, _, folder = line.strip().partition(" ")
        print((launch if name in ENGINES else drill)(name, Path(folder)), flush=True)
