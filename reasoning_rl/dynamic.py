"""Dynamic sampling: fresh problems take the place of those whose answers all agree (arXiv:2503.14476).

Where all G answers are right, or all wrong, a comparison within the group teaches nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.schema import Problem
from reasoning_rl.config import RolloutConfig
from reasoning_rl.types import Rollout


@dataclass(frozen=True)
class Sampled:
    """A rollout of fixed size, its grades, and what it cost to get."""

    rollout: Rollout
    graded: tuple[Tensor, Tensor] | None
    """(outcomes (B,) f32, judged (B,) bool); None where nothing needed them yet."""
    metrics: dict[str, float]


Draw = Callable[[int], list[Problem]]
Collect = Callable[[list[Problem]], Rollout]
Grade = Callable[[Rollout], tuple[Tensor, Tensor]]


def sample_rollout(
    rollout: RolloutConfig,
    num_problems: int,
    *,
    draw: Draw,
    collect: Collect,
    grade: Grade,
    largest: Callable[[int], int] = int,
) -> Sampled:
    """Sample this process's answers of one iteration; draw(n) gives it n problems."""
    if rollout.dynamic_rounds == 0:
        return Sampled(collect(draw(num_problems)), None, {})
    return sample_informative(
        draw,
        collect,
        grade,
        num_problems=num_problems,
        group_size=rollout.samples_per_problem,
        rounds=rollout.dynamic_rounds,
        largest=largest,
    )


def sample_informative(
    draw: Draw,
    collect: Collect,
    grade: Grade,
    *,
    num_problems: int,
    group_size: int,
    rounds: int,
    largest: Callable[[int], int] = int,
) -> Sampled:
    """Return `num_problems` groups, as many as possible of answers that disagree.

    After the first draw come at most `rounds` more, each of as many problems as are still missing. What then
    is missing is filled up with the last groups that agree: a batch has one size.
    largest: maximum over ranks. All ranks draw alike, so that their samplers stay in step.
    """
    kept: list[tuple[Rollout, Tensor, Tensor]] = []
    dropped: list[tuple[Rollout, Tensor, Tensor]] = []
    missing, tokens, num_groups, correct, seen, extra = num_problems, 0, 0, 0.0, 0, -1
    while extra < rounds and largest(missing):
        extra += 1
        problems = draw(largest(missing))[:missing]
        if problems:
            rollout = collect(problems)
            outcomes, judged = grade(rollout)
            useful = disagree(outcomes, judged, group_size)
            for pile, rows in ((kept, useful), (dropped, ~useful)):
                picked = rows.repeat_interleave(group_size).nonzero().squeeze(1)
                pile.append((rollout.select(picked), outcomes[picked], judged[picked]))
            missing -= int(useful.sum())
            tokens += int(rollout.action_mask.sum())
            num_groups += len(problems)
            correct, seen = correct + float(outcomes[judged].sum()), seen + int(judged.sum())
    if missing:
        rollout, outcomes, judged = _joined(dropped)
        rows = torch.arange(len(outcomes))[-missing * group_size :]
        kept.append((rollout.select(rows), outcomes[rows], judged[rows]))
    rollout, outcomes, judged = _joined(kept)
    metrics = {
        "rollout/tokens": float(tokens),
        "rollout/extra_rounds": float(extra),
        "rollout/dropped_groups": float(num_groups - num_problems),
        "rollout/filled_groups": float(missing),
        "rollout/outcome_before_filter": correct / max(seen, 1),
    }
    return Sampled(rollout, (outcomes, judged), metrics)


def disagree(outcomes: Tensor, judged: Tensor, group_size: int) -> Tensor:
    """Return (P,) bool: groups with a right and a wrong answer among those that could be judged."""
    right = ((outcomes > 0) & judged).reshape(-1, group_size).any(1)
    wrong = ((outcomes == 0) & judged).reshape(-1, group_size).any(1)
    return right & wrong


def _joined(parts: list[tuple[Rollout, Tensor, Tensor]]) -> tuple[Rollout, Tensor, Tensor]:
    rollouts, outcomes, judged = zip(*parts, strict=True)
    return Rollout.join(rollouts), torch.cat(outcomes), torch.cat(judged)
