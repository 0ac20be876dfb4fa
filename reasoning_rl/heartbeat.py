"""Names the process that died or hangs, so that the others stop with a reason instead of waiting.

Every process counts up in a store that all see. One whose count stands still for STEPWELL_HEARTBEAT seconds
(60) is gone: the others end with its number and machine. It does not start a run again: launchers can.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore

from data.errors import Stopped, UserError

EXIT_CODE = 75
"""Of processes that end because another one is gone (EX_TEMPFAIL: starting again may help)."""
END, FAILED = b"end", b"failed"


class Heartbeat(threading.Thread):
    """Beats for this process and watches the others; `gone` says who stopped, None while all live."""

    def __init__(self, accelerator: Any, *, patience: float) -> None:
        super().__init__(daemon=True)
        from accelerate.utils import broadcast_object_list

        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.patience = patience
        self.gone: str | None = None
        self.ended = threading.Event()
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        wait = timedelta(seconds=patience)
        # Bound on the main process's own machine, at a port that is free there.
        if accelerator.is_main_process:
            self.store = TCPStore(host, 0, None, True, timeout=wait, wait_for_workers=False)
        port = broadcast_object_list([self.store.port if accelerator.is_main_process else None])[0]
        if not accelerator.is_main_process:
            self.store = TCPStore(host, port, None, False, timeout=wait)
        self.store.set(f"host{self.rank}", socket.gethostname())
        self._beat(0)
        accelerator.wait_for_everyone()

    def run(self) -> None:
        last = {rank: (b"", time.monotonic()) for rank in range(self.world)}
        for count in range(1, sys.maxsize):
            if self.ended.wait(self.patience / 5):
                return
            try:
                self._beat(count)
                for rank in range(self.world):
                    beat = self.store.get(f"beat{rank}")
                    if beat == END:
                        return
                    if beat == FAILED:
                        self._stop(rank, "ended by an error of its own")
                        return
                    if beat != last[rank][0]:
                        last[rank] = (beat, time.monotonic())
            except RuntimeError:  # the store lives in process 0
                self._stop(0, "its machine or process is gone")
                return
            for rank, (_, seen) in last.items():
                if time.monotonic() - seen > self.patience:
                    self._stop(rank, f"silent for {self.patience:.0f} s")
                    return

    def end(self, beat: bytes) -> None:
        """Stop watching, and tell the others that this process ends well or not."""
        self.ended.set()
        with suppress(RuntimeError):
            self.store.set(f"beat{self.rank}", beat.decode())

    def _beat(self, count: int) -> None:
        self.store.set(f"beat{self.rank}", str(count))

    def _stop(self, rank: int, why: str) -> None:
        try:
            host = self.store.get(f"host{rank}").decode()
        except RuntimeError:
            host = os.environ.get("MASTER_ADDR", "unknown")
        self.gone = f"process {rank} of {self.world} on {host} stopped ({why}); --resume continues"
        # The main thread may hang in a collective that never ends: give it a moment to see for itself.
        if not self.ended.wait(self.patience / 5):
            sys.stderr.write(f"stepwell: {self.gone}\n")
            sys.stderr.flush()
            os._exit(EXIT_CODE)


@contextmanager
def watched(accelerator: Any) -> Iterator[None]:
    """Inside, a process that is gone ends the others, with a UserError or exit code 75 that names it."""
    if accelerator.num_processes == 1:
        yield
        return
    patience = float(os.environ.get("STEPWELL_HEARTBEAT", "60"))
    heartbeat = Heartbeat(accelerator, patience=patience)
    heartbeat.start()
    beat = FAILED
    try:
        yield
        beat = END
    except Stopped:
        beat = END
        raise
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        # A collective that fails does not say who left it; the heartbeats do, a little later.
        deadline = time.monotonic() + 2 * patience
        while heartbeat.gone is None and heartbeat.is_alive() and time.monotonic() < deadline:
            time.sleep(patience / 50)
        if heartbeat.gone is not None:
            raise UserError(heartbeat.gone) from error
        raise
    finally:
        heartbeat.end(beat)
