"""Seconds and peak memory of each phase of an iteration.

phases.start()
...                                # sample
phases.lap("generate")             # time/generate_seconds, memory/generate_rss_mb, memory/generate_gpu_mb
"""

import time

import torch

from data.machine import peak_rss_mb, take_peak_rss_mb


class Phases:
    """What the phases of an iteration cost this process; `metrics` holds those that ended since `start`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.metrics: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """Begin an iteration and its first phase."""
        self.metrics = {}
        self._begin()

    def lap(self, phase: str) -> None:
        """End a phase, the part of the iteration since the last one ended."""
        self.metrics[f"time/{phase}_seconds"] = time.perf_counter() - self._began
        self.metrics[f"memory/{phase}_rss_mb"] = take_peak_rss_mb()
        if self.device.type == "cuda":
            self.metrics[f"memory/{phase}_gpu_mb"] = torch.cuda.max_memory_allocated(self.device) / 2**20
        self.metrics["memory/peak_rss_mb"] = peak_rss_mb()
        self._begin()

    def _begin(self) -> None:
        take_peak_rss_mb()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._began = time.perf_counter()
