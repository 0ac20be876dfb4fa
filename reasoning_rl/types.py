"""The batches of one PPO iteration.

B rollouts, T tokens, S steps. Index t of every (B, T) tensor speaks of token t; column 0 is never an action;
masks True = counts. Rows are right-padded: prompt, response, padding.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Scores:
    """What the reward model and the grader say of a rollout."""

    step_scores: Tensor  # (B, S) f32 in [0, 1]; 0 where not scored
    scored: Tensor  # (B, S) bool, False where the step did not fit the scorer's context
    outcomes: Tensor  # (B,) f32, 1 correct, 0 otherwise
    judged: Tensor  # (B,) bool, False = the grader could not tell


@dataclass(frozen=True)
class Experience:
    """All that an update needs. Every field is a tensor with B rows, or None."""

    input_ids: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    action_mask: Tensor  # (B, T)
    old_logprobs: Tensor  # (B, T)
    old_values: Tensor  # (B, T), in the critic's (normalised) units
    advantages: Tensor  # (B, T)
    returns: Tensor  # (B, T), in the critic's (normalised) units
    weights: Tensor | None = None  # (B, T), of each token in the policy loss; None: 1 (rollout/mismatch.py)

    def select(self, rows: Tensor) -> Self:
        """The given rows, cut to their longest length: padding that no row needs is not computed on."""
        width = int(self.lengths[rows].max())
        present = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        picked = {name: getattr(self, name)[rows] for name in present}
        return replace(self, **{k: v[:, :width] if v.dim() == 2 else v for k, v in picked.items()})

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
