"""A process that dies or hangs: the others end soon, and say which it was."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "silent"])
def test_the_others_stop_and_name_the_process_that_is_gone(how) -> None:
    """Started by hand: torchrun would end the others itself, a scheduler over several machines may not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "PYTHONPATH": str(ROOT),
        "STEPWELL_DEVICE": "cpu",
        "STEPWELL_HEARTBEAT": "4",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "distributed_death.py"), how],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        _, said = processes[0].communicate(timeout=300)
    finally:
        processes[1].send_signal(signal.SIGKILL)
        processes[1].communicate()
    assert processes[0].returncode in (2, 75), said
    assert "process 1 of 2 on" in said and "--resume continues" in said, said
