"""Scoring steps with a local process reward model: one forward per solution for all of its steps.

scorer = LocalScorer.load("runs/prm/model")
scorer.score(["2 + 2?"], [["2 + 2 = 4", "The answer is 4."]])   # [[0.97, 0.95]]
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from prm.batching import cut_by_tokens
from prm.model import (
    PRM,
    EncodedSolution,
    check_vocabulary,
    context_length,
    encode_solutions,
    load_prm,
    load_tokenizer,
    pad_right,
    step_scores,
)


class LocalScorer:
    """A StepScorer over a PRM in this process. What its outputs mean stands in its config (prm.readout).

    joiner: the text between steps, as in training. max_batch_tokens: padded tokens of one forward.
    max_length: tokens of one solution, at most the model's context; steps beyond it score None.
    """

    def __init__(
        self,
        model: PRM,
        tokenizer: Any,
        *,
        joiner: str | None = None,
        max_batch_tokens: int | None = None,
        max_length: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_vocabulary(model, tokenizer)
        self.model = model if device is None else model.to(device)  # type: ignore[arg-type]  # wrapped: loses self
        self.tokenizer = tokenizer
        self.joiner = joiner if joiner is not None else getattr(model.config, "step_joiner", "\n")
        on_cpu = model.device.type == "cpu"
        self.max_batch_tokens = max_batch_tokens or (1024 if on_cpu else 32768)
        limits = [limit for limit in (max_length, context_length(model)) if limit is not None]
        self.max_length = min(limits) if limits else None

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Self:
        """Read model and tokenizer from a folder or hub id; options as for the constructor."""
        return cls(load_prm(path), load_tokenizer(path), **options)

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        """Return the score in [0, 1] of every step, in the order given; None where it did not fit.

        P(correct) for models trained on probabilities; a mere order for ranked ones (pqm, bradley_terry).
        """
        encoded = encode_solutions(
            self.tokenizer, problems, solutions, joiner=self.joiner, max_length=self.max_length
        )
        with scoring(self.model):
            return score_in_batches(encoded, self._read, self.max_batch_tokens)

    def _read(self, batch: Sequence[EncodedSolution], rows: Tensor, columns: Tensor) -> Tensor:
        input_ids, attention_mask = pad_right(batch)
        device = self.model.device
        prompts = torch.tensor([solution.prompt_length for solution in batch], device=device)
        return step_scores(
            self.model,
            input_ids.to(device),
            attention_mask.to(device),
            rows.to(device),
            columns.to(device),
            prompts,
        )


def score_in_batches(
    encoded: Sequence[Any],
    read: Callable[[Sequence[Any], Tensor, Tensor], Tensor],
    max_batch_tokens: int,
) -> list[list[float | None]]:
    """Return what `read` says of every step of every solution, in the order given; None where none is read.

    A solution has `input_ids`, and in `step_ends` the index at which each step is read, or None.
    Solutions of like length share a forward of at most `max_batch_tokens` padded tokens. `read` gets a batch
    and the N places (rows (N,), columns (N,) i64) to read in it, and returns their scores (N,).
    """
    results: list[list[float | None]] = [[None] * len(solution.step_ends) for solution in encoded]
    wanted = [i for i, solution in enumerate(encoded) if any(end is not None for end in solution.step_ends)]
    wanted.sort(key=lambda i: -len(encoded[i]))
    for group in cut_by_tokens(wanted, [len(solution) for solution in encoded], max_batch_tokens):
        places = [
            (row, step, end)
            for row, i in enumerate(group)
            for step, end in enumerate(encoded[i].step_ends)
            if end is not None
        ]
        rows = torch.tensor([row for row, _, _ in places])
        columns = torch.tensor([end for _, _, end in places])
        with torch.inference_mode():
            scores = read([encoded[i] for i in group], rows, columns).tolist()
        for (row, step, _), score in zip(places, scores, strict=True):
            results[group[row]][step] = score
    return results


@contextmanager
def scoring(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode, and back into the mode they were in."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def default_batch_tokens(device: torch.device) -> int:
    """Padded tokens of one forward: about 1024 keeps a CPU's caches warm, a GPU wants 32 times that."""
    return 1024 if device.type == "cpu" else 32768
