"""The batches of one PPO iteration.

B rollouts, T tokens, S steps. Index t of every (B, T) tensor speaks of token t; column 0 is never an action;
masks True = counts. Rows are right-padded: prompt, response, padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from data.schema import Problem


@dataclass(frozen=True)
class Rollout:
    """Sampled responses, before anything scored them."""

    problems: list[Problem]
    """One a row: a problem sampled G times stands G times."""
    responses: list[str]
    steps: list[list[str]]
    """Each response's steps, in text; the only thing that a reward model sees."""
    input_ids: Tensor  # (B, T) i64
    lengths: Tensor  # (B,) i64, prompt + response
    action_mask: Tensor  # (B, T) bool, the response's tokens
    behaviour_logprobs: Tensor  # (B, T) f32, as sampled
    complete: Tensor  # (B,) bool, ended by itself; False = cut at the length limit
    step_ends: Tensor  # (B, S) i64, column of the token that holds a step's last character
    step_mask: Tensor  # (B, S) bool

    def select(self, rows: Tensor) -> Self:
        """The given rows, at the same widths."""
        return replace(self, **{f.name: _picked(getattr(self, f.name), rows) for f in fields(self)})

    @classmethod
    def join(cls, parts: "Sequence[Rollout]") -> Self:
        """All rows of several rollouts, padded to the widest with what padding is: 0 and False."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: _joined(values) for name, values in columns.items()})


def _picked(column: Any, rows: Tensor) -> Any:
    return column[rows] if isinstance(column, Tensor) else [column[row] for row in rows.tolist()]


def _joined(columns: list[Any]) -> Any:
    if not isinstance(columns[0], Tensor):
        return [value for column in columns for value in column]
    if columns[0].dim() == 1:
        return torch.cat(columns)
    width = max(column.shape[1] for column in columns)
    return torch.cat([functional.pad(column, (0, width - column.shape[1])) for column in columns])


@dataclass(frozen=True)
class Scores:
    """What the reward model and the grader say of a rollout."""

    step_scores: Tensor  # (B, S) f32 in [0, 1]; 0 where not scored
    scored: Tensor  # (B, S) bool, False where the step did not fit the scorer's context
    outcomes: Tensor  # (B,) f32, 1 correct, else 0 or the grader's partial credit
    judged: Tensor  # (B,) bool, False = the grader could not tell
    start_scores: Tensor | None = None  # (B,) a prover's value of the problem; None where steps have a PRM's
    token_rewards: Tensor | None = None  # (B, T) of an implicit PRM, None without one

    def numbers(self) -> dict[str, Tensor]:
        """What rewards are made of: the tensors that must be finite."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: x for name, x in named.items() if x is not None and x.dtype != torch.bool}


@dataclass(frozen=True)
class Experience:
    """All that an update needs. Every field is a tensor with B rows, or None where nothing needs it."""

    input_ids: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    action_mask: Tensor  # (B, T)
    loss_mask: Tensor  # (B, T) bool, the actions that losses count: truncated answers may be left out
    old_logprobs: Tensor  # (B, T)
    advantages: Tensor  # (B, T)
    ref_logprobs: Tensor | None = None  # (B, T), for a KL penalty in the loss
    old_values: Tensor | None = None  # (B, T), in the critic's (normalised) units
    returns: Tensor | None = None  # (B, T), in the critic's (normalised) units
    weights: Tensor | None = None  # (B, T), of each token in the policy loss; None: 1 (rollout/mismatch.py)

    def select(self, rows: Tensor) -> Self:
        """The given rows, cut to their longest length: padding that no row needs is not computed on."""
        width = int(self.lengths[rows].max())
        return self.map(lambda x: x[rows][:, :width] if x.dim() == 2 else x[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the experience with every tensor changed."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(x) for name, x in tensors.items() if x is not None})

    def __len__(self) -> int:
        return self.input_ids.shape[0]


def micro_batches(lengths: Tensor, max_tokens: int) -> list[Tensor]:
    """Return row indices grouped by length; rows x longest row stays within `max_tokens` (one row at least).

    Sorting by length is what removes padding: on ragged batches it is most of the cost.
    """
    order = torch.argsort(lengths, stable=True)
    groups: list[list[int]] = [[]]
    for row in order.tolist():
        if groups[-1] and (len(groups[-1]) + 1) * int(lengths[row]) > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return [torch.tensor(group) for group in groups if group]
