"""A run that is told to stop (SIGTERM, as schedulers send) saves first; a second signal ends it at once."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import torch


class StopSignal:
    """Notes SIGTERM while a loop runs.

    with StopSignal(accelerator) as stop:
        for update in ...:
            if stop.requested(): save, then raise data.errors.Stopped
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.seen = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def requested(self) -> bool:
        """Whether any process was told to stop. Call it on all of them."""
        if self.accelerator.num_processes == 1:
            return self.seen
        seen = torch.tensor(float(self.seen), device=self.accelerator.device)
        return float(self.accelerator.reduce(seen, "sum")) > 0
