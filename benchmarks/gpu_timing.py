"""The clock of benchmarks/gpu.py: where it runs, how it times, and what a device could do at best."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from accelerate import Accelerator

REPEATS, WARM_UP = 5, 2
PART_SECONDS = 8.0
"""After which no further repeat begins."""


@dataclass(frozen=True)
class Place:
    """Where everything runs."""

    device: torch.device
    micro_batch_tokens: int

    @classmethod
    def find(cls, kind: str, micro_batch_tokens: int | None) -> Self:
        device = cls._accelerator(kind).device
        if micro_batch_tokens is None:
            large = kind == "cuda" and torch.cuda.get_device_properties(device).total_memory > 60 * 2**30
            micro_batch_tokens = 16_384 if large else 4096
        return cls(device, micro_batch_tokens)

    @staticmethod
    def _accelerator(kind: str) -> Accelerator:
        return Accelerator(cpu=kind == "cpu", mixed_precision="bf16")

    def accelerator(self) -> Accelerator:
        """A fresh one: each keeps the models that it prepared."""
        return self._accelerator(self.device.type)


class Enough(Exception):
    """Ends a training loop from within its log: measured, or out of time."""


def now(device: torch.device) -> float:
    """Seconds, once everything that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Marks:
    """A MetricLog that notes when each update ended, and raises Enough after the last one wanted."""

    def __init__(self, device: torch.device, deadline: float, seconds: float = PART_SECONDS) -> None:
        self.device, self.deadline, self.limit = device, deadline, seconds
        self.times: list[float] = []
        self.metrics: list[dict[str, float]] = []

    def __call__(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.times.append(now(self.device))
        self.metrics.append(dict(metrics))
        if iteration >= WARM_UP + REPEATS or self.times[-1] > self.deadline:
            raise Enough

    def rewind(self, iteration: int) -> None:
        self.times = [now(self.device)]
        self.deadline = min(self.deadline, self.times[0] + self.limit)  # making the models does not count

    @property
    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def repeat(work: Callable[[], Any], device: torch.device, deadline: float) -> list[float]:
    """Seconds of each call, the first ones to warm up."""
    seconds: list[float] = []
    deadline = min(deadline, time.perf_counter() + PART_SECONDS)
    while len(seconds) < WARM_UP + REPEATS and (not seconds or time.perf_counter() < deadline):
        started = now(device)
        work()
        seconds.append(now(device) - started)
    return seconds


def warmed(values: list[Any]) -> list[Any]:
    """Without the warm-up; where time was short, all but the first, or the only one."""
    return values[WARM_UP:] or values[1:] or values


def gemm_rate(device: torch.device) -> float:
    """FLOP/s of a large square product in bf16."""
    size, products = (8192, 8) if device.type == "cuda" else (256, 2)
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def work() -> None:
        for _ in range(products):
            left @ right

    seconds = repeat(work, device, time.perf_counter() + PART_SECONDS)
    return products * 2 * size**3 / statistics.median(warmed(seconds))


# Dense bf16 TFLOP/s of the makers' data sheets; the first name that a device's contains counts.
DATA_SHEETS = {
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A40": 150.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


def data_sheet_tflops(name: str) -> float | None:
    """Of a whole device; None where it is unknown or a slice."""
    words = f" {name.replace('-', ' ')} "
    known = (peak for sheet, peak in DATA_SHEETS.items() if f" {sheet} " in words)
    return None if "MIG" in name else next(known, None)
