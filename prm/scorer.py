"""Scoring steps with a local process reward model: one forward per solution for all of its steps.

scorer = LocalScorer.load("runs/prm/model")
scorer.score(["2 + 2?"], [["2 + 2 = 4", "The answer is 4."]])   # [[0.97, 0.95]]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from prm.batching import cut_by_tokens
from prm.model import (
    EncodedSolution,
    check_vocabulary,
    context_length,
    encode_solutions,
    load_prm,
    load_tokenizer,
    pad_right,
    step_logits,
)


class LocalScorer:
    """A StepScorer over a two-class token classifier in this process.

    joiner: the text between steps, as in training. max_batch_tokens: padded tokens of one forward; about 1024
    keeps a CPU's caches warm, a GPU wants 32 times that. max_length: tokens of one solution, at most the
    model's context; steps beyond it score None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        joiner: str | None = None,
        max_batch_tokens: int | None = None,
        max_length: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_vocabulary(model, tokenizer)
        self.model = model if device is None else model.to(device)
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
        """Return P(correct) in [0, 1] of every step, in the order given; None where it did not fit."""
        encoded = encode_solutions(
            self.tokenizer, problems, solutions, joiner=self.joiner, max_length=self.max_length
        )
        results: list[list[float | None]] = [[None] * len(solution.step_ends) for solution in encoded]
        scored = [i for i, solution in enumerate(encoded) if any(e is not None for e in solution.step_ends)]
        scored.sort(key=lambda i: -len(encoded[i]))
        was_training = self.model.training
        self.model.eval()
        try:
            for group in cut_by_tokens(scored, [len(s) for s in encoded], self.max_batch_tokens):
                self._score_batch([encoded[i] for i in group], [results[i] for i in group])
        finally:
            self.model.train(was_training)
        return results

    @torch.inference_mode()
    def _score_batch(self, batch: Sequence[EncodedSolution], results: Sequence[list[float | None]]) -> None:
        """Write the scores of one forward into `results`."""
        places = [
            (row, step, end)
            for row, solution in enumerate(batch)
            for step, end in enumerate(solution.step_ends)
            if end is not None
        ]
        input_ids, attention_mask = pad_right(batch)
        device = self.model.device
        rows = torch.tensor([row for row, _, _ in places], device=device)
        columns = torch.tensor([end for _, _, end in places], device=device)
        logits = step_logits(
            self.model, input_ids.to(device), attention_mask.to(device), rows, columns
        )  # (N, 2)
        for (row, step, _), score in zip(places, logits.softmax(-1)[:, 1].tolist(), strict=True):
            results[row][step] = score
