"""The records that travel between packages. Plain frozen dataclasses: no torch, no behaviour beyond checks.

A *score* is what a model says, a *label* what supervision says, a *verdict* what a grader says, and a
*reward* what the policy is paid. The four never share a field.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from data.errors import UserError


@dataclass(frozen=True, slots=True)
class Problem:
    """One task with its gold answer."""

    id: str
    text: str
    """The question as the model reads it, without prompt template."""
    answer: str
    """Gold answer: what a grader compares with."""
    source: str = ""
    """Benchmark or world it came from, e.g. "gsm8k"."""
    solution: str = ""
    """Gold worked solution, steps separated as the source has them; "" where none exists."""
    level: int | None = None
    """Difficulty, larger is harder: MATH level 1-5, or number of dependent operations."""
    subject: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepSolution:
    """A solution cut into steps, each with a correctness label in [0, 1] or None (never rated: masked).

    Raises UserError when the numbers of steps and labels differ.
    """

    problem: str
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    id: str = ""
    source: str = ""
    label_kind: Literal["human", "mc_hard", "mc_soft", "judge", "consensus", "synthetic", "oracle"] = "human"
    first_error: int | None = None
    """0-based index of the first wrong step, -1 when all are right, None when unknown."""
    answer_correct: bool | None = None
    """Verdict on the final answer, independent of the steps; None when unknown."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels):
            raise UserError(
                f"solution {self.id or self.problem[:40]!r}: {len(self.labels)} labels for "
                f"{len(self.steps)} steps; give one label per step (null for an unrated one)"
            )


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with a preferred and a rejected response."""

    prompt: str
    chosen: str
    rejected: str
    id: str = ""
    source: str = ""
    prefix: str = ""
    """Start of the response that both share: `chosen` and `rejected` go on from there. Context, no loss."""
    chosen_ends: bool = True
    """The response ends with `chosen`; False: it goes on (a step in the middle)."""
    rejected_ends: bool = True


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. temperature 0 is greedy; top_p 1 and top_k 0 are off."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = 1
    """Samples per prompt."""
    stop: tuple[str, ...] = ()
    """Strings that end a sample; the text is cut before the first of them."""
    seed: int | None = None
    """None: continue the generator's own random stream."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled response."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Response tokens as sampled, end-of-sequence token included when it was sampled."""
    logprobs: tuple[float, ...]
    """Log-probability of each response token under the distribution it was drawn from."""
    text: str
    """Decoded response without special tokens."""
    finish_reason: Literal["stop", "length"]
    """length: cut. Without a single token: the prompt left no room for one in the model's context."""
    version: int = 0
    """Version of the policy weights that produced it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a grader says. `unjudged` is counted as such, never as wrong."""

    status: Literal["correct", "wrong", "unjudged"]
    reason: str = ""
    seconds: float = 0.0
    credit: float | None = None
    """What a reward may pay for the response, 1 being a correct one's; None: 1 when correct, else 0."""
