"""What `prm.fit` learns from a batch, one class for each kind of example. B rows, T tokens, N places.

objective = make_objective("pqm", zeta=4.0)
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prm.examples import EncodedPair, LabelledSolution
from prm.losses import (
    StepStats,
    bradley_terry,
    implicit_cross_entropy,
    pqm_ranking,
    step_binary_cross_entropy,
    step_cross_entropy,
    step_squared_error,
    step_three_class,
)
from prm.model import EncodedSolution, pad_right, step_logits

Batch = Mapping[str, Tensor]
StepLoss = Callable[..., tuple[Tensor, StepStats]]
"""(logits (N, C), labels (N,), and for rankings rows (N,)) -> (summed loss, stats)."""

STEP_LOSSES: dict[str, StepLoss] = {
    "cross_entropy": step_cross_entropy,
    "bce": step_binary_cross_entropy,
    "three_class": step_three_class,
    "mse": step_squared_error,
}


class StepObjective:
    """A loss over single steps, divided by their number. packed: solutions side by side in one row."""

    def __init__(self, loss: StepLoss = step_cross_entropy, *, packed: bool = False) -> None:
        self.step_loss = loss
        self.packed = packed

    def collate(self, examples: Sequence[LabelledSolution]) -> dict[str, Tensor]:
        """Return input_ids, attention_mask (B, T) and rows, columns, solutions, labels (N,).

        Packed: B is 1, and lengths (R,) of the solutions come with it.
        """
        solutions = torch.tensor([row for row, example in enumerate(examples) for _ in example.places])
        columns = torch.tensor([place for example in examples for place in example.places])
        batch = {
            "labels": torch.tensor([label for example in examples for label in example.labels]),
            "solutions": solutions,
        }
        if self.packed:
            lengths = torch.tensor([len(example) for example in examples])
            input_ids = torch.tensor([[token for example in examples for token in example.input_ids]])
            starts = lengths.cumsum(0) - lengths
            return batch | {
                "input_ids": input_ids,
                "attention_mask": torch.ones_like(input_ids, dtype=torch.bool),
                "rows": torch.zeros_like(solutions),
                "columns": columns + starts[solutions],
                "lengths": lengths,
            }
        input_ids, attention_mask = pad_right([EncodedSolution(e.input_ids, []) for e in examples])
        return batch | {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "rows": solutions,
            "columns": columns,
        }

    def count(self, batch: Batch) -> float:
        return float(len(batch["labels"]))

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = step_logits(
            model,
            batch["input_ids"],
            batch["attention_mask"],
            batch["rows"],
            batch["columns"],
            lengths=batch.get("lengths"),
        )
        loss, stats = self._step_loss(logits, batch)
        return loss, _report(stats)

    def _step_loss(self, logits: Tensor, batch: Batch) -> tuple[Tensor, StepStats]:
        return self.step_loss(logits, batch["labels"])


class RankingObjective(StepObjective):
    """PQM: a loss over the steps of a solution together, divided by the number of solutions."""

    def count(self, batch: Batch) -> float:
        return float(len(batch["solutions"].unique()))

    def _step_loss(self, logits: Tensor, batch: Batch) -> tuple[Tensor, StepStats]:
        return self.step_loss(logits, batch["labels"], batch["solutions"])


class OutcomeObjective:
    """The implicit PRM's: one outcome a solution, read off the log-ratio up to its last step."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def collate(self, examples: Sequence[LabelledSolution]) -> dict[str, Tensor]:
        batch = StepObjective().collate(examples)
        return batch | {"prompt_lengths": torch.tensor([example.prompt_length for example in examples])}

    def count(self, batch: Batch) -> float:
        return float(len(batch["labels"]))

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratios = model.log_ratios(batch["input_ids"], batch["attention_mask"], batch["prompt_lengths"])
        picked = log_ratios[batch["rows"], batch["columns"]]
        loss, stats = implicit_cross_entropy(picked, batch["labels"], beta=self.beta)
        return loss, _report(stats)


class PairObjective:
    """Bradley-Terry on the rewards at both sides' last tokens. Row 2 k is pair k's chosen, 2 k + 1 its
    rejected side."""

    def collate(self, examples: Sequence[EncodedPair]) -> dict[str, Tensor]:
        sides = [ids for pair in examples for ids in (pair.chosen_ids, pair.rejected_ids)]
        input_ids, attention_mask = pad_right([EncodedSolution(ids, []) for ids in sides])
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "rows": torch.arange(len(sides)),
            "columns": torch.tensor([len(ids) - 1 for ids in sides]),
        }

    def count(self, batch: Batch) -> float:
        return len(batch["rows"]) / 2

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        rewards = step_logits(
            model, batch["input_ids"], batch["attention_mask"], batch["rows"], batch["columns"]
        ).squeeze(-1)
        loss, num_right = bradley_terry(rewards[0::2], rewards[1::2])
        return loss, {"accuracy": num_right, "margin": (rewards[0::2] - rewards[1::2]).detach().sum()}


def make_objective(name: str, *, zeta: float = 4.0, beta: float = 0.05, packed: bool = False) -> Any:
    """Return the `fit` objective of a name of prm.readout.Objective."""
    if name == "implicit":
        return OutcomeObjective(beta)
    if name == "bradley_terry":
        return PairObjective()
    if name == "pqm":
        return RankingObjective(partial(pqm_ranking, zeta=zeta), packed=packed)
    return StepObjective(STEP_LOSSES[name], packed=packed)


def _report(stats: StepStats) -> dict[str, Tensor]:
    return {"accuracy": stats.correct, "mean_label": stats.positive, "mean_score": stats.score}
