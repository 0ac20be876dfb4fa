"""Frozen models that wait in host memory and visit the device for their phase alone (`offload: frozen`).

    with on_device([reference], device):
        ...                                  # forwards

Not the optimisers' offload, which is DeepSpeed's (configs/accelerate).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

HOST = torch.device("cpu")


@contextmanager
def on_device(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Inside, the modules are on the device; before and after, in host memory."""
    modules = list(modules)
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module in modules:
            module.to(HOST)


class VisitingScorer:
    """A StepScorer or ResponseScorer whose models are on the device only while it scores."""

    def __init__(self, scorer: Any, device: torch.device) -> None:
        self.scorer, self.device = scorer, device
        self.modules = modules_of(scorer)
        for module in self.modules:
            module.to(HOST)

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        with on_device(self.modules, self.device):
            return self.scorer.score(problems, solutions)

    def score_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        with on_device(self.modules, self.device):
            return self.scorer.score_responses(prompts, responses)


def modules_of(scorer: Any) -> list[nn.Module]:
    """Return the models among a scorer's attributes."""
    values = [
        one for value in vars(scorer).values() for one in (value if isinstance(value, list) else [value])
    ]
    return [value for value in values if isinstance(value, nn.Module)]
