"""From step scores to rewards on tokens: how much of what a process reward model says the policy is paid.

B rollouts, S steps, T tokens. A *score* is P(step and all before it are right), in [0, 1]; a *reward* is what
the policy is paid. Masks are bool, True = counts; what stands outside is never read and comes out as 0.

    step_rewards = shape_step_rewards(step_scores, step_mask, form="clip_delta", clip_threshold=0.7)
    rewards = place_on_tokens(step_rewards, step_ends, step_mask, num_tokens=T)
    rewards = rewards + place_on_last_action(outcomes, action_mask)
"""

from typing import Literal

import torch
from torch import Tensor

Form = Literal["none", "sum", "clip", "delta", "clip_delta", "min", "progress"]
TELESCOPING: frozenset[Form] = frozenset({"delta", "clip_delta"})
"""Forms whose rewards are differences: it is their sum from a step on that means something."""
ADVANTAGES: frozenset[Form] = frozenset({"progress"})
"""Forms that say how good a step is by itself. Summed up as rewards they would cancel to the last score."""


def shape_step_rewards(
    step_scores: Tensor,
    step_mask: Tensor,
    *,
    form: Form,
    clip_threshold: float = 0.5,
    temperature: float = 0.1,
    start_scores: Tensor | None = None,
) -> Tensor:
    """Return step rewards (B, S), 0 off `step_mask`, from scores p (B, S) in [0, 1]; step k of K, from 0.

    none        0.
    sum         p_k. Grows with every step that is merely right: invites padding. For comparison.
    clip        min(p_k - clip_threshold, 0): a step can only cost. (arXiv:2410.15115; its threshold is not
                reported: 0.5, even odds, is ours.)
    delta       p_k - p_{k+1}; p_{K-2} for the step before the last; 0 for the last, whose score is unused.
                The return from step k < K-1 is then p_k, however many steps follow. (ibid.)
    clip_delta  clip, then delta: the return from step k < K-1 is its clipped score. (ibid.)
    min         w_k r_k, r = 2p - 1, w = softmax(-r / temperature) over the row's steps: as temperature falls
                the worst step gets its own r and all others 0. (PURE, arXiv:2504.15275: 0.1)
    progress    p_k - p_{k-1}, the first against `start_scores` (B,): what a step adds to the chance of
                success. With p a prover's success rate it is the advantage under the prover, A^mu. No
                reward: it goes to the tokens of its own step, beside the advantage of the rewards
                (`spread_on_steps`; eq. 5, arXiv:2410.08146).

    A row without steps gets nothing. A row of one step gets p, min(p - clip_threshold, 0), 0, 0, r and
    p - start: the delta forms pay for the steps before the last, and it has none. Steps left out by the mask
    are skipped: "next" and "last" are meant among those that count.
    """
    scores = torch.where(step_mask, step_scores.float(), 0.0)
    if form == "none":
        return torch.zeros_like(scores)
    if form == "sum":
        return scores
    if form == "min":
        return _softmin_rewards(2 * scores - 1, step_mask, temperature)
    if form == "progress":
        assert start_scores is not None, "progress is measured from the problem's own score"
        return _gains(scores, step_mask, start_scores.float())
    if form in ("clip", "clip_delta"):
        scores = torch.where(step_mask, (scores - clip_threshold).clamp(max=0.0), 0.0)
    if form == "clip":
        return scores
    assert form in ("delta", "clip_delta"), form
    return _differences(scores, step_mask)


def drop_positive(step_rewards: Tensor, complete: Tensor) -> Tensor:
    """Return the rewards (B, S) with those above 0 set to 0 in the rows that are not `complete` (B,) bool.

    A truncated answer earns no positive step reward: otherwise rambling to the limit pays. Meant for forms
    whose rewards stand alone (sum, clip, min); delta forms need `cap_returns`, since differences
    without their positive part would punish the steps before an improvement.
    """
    return torch.where(complete[:, None], step_rewards, step_rewards.clamp(max=0.0))


def cap_returns(step_rewards: Tensor, complete: Tensor) -> Tensor:
    """Return rewards (B, S) whose sum from any step on is at most 0 in the rows that are not `complete`.

    `drop_positive` for rewards that telescope: delta gives 0 everywhere, clip_delta stays as it is. For
    rewards on tokens (B, T) as well.
    """
    returns = step_rewards.flip(1).cumsum(1).flip(1).clamp(max=0.0)
    following = torch.cat([returns[:, 1:], torch.zeros_like(returns[:, :1])], dim=1)
    return torch.where(complete[:, None], step_rewards, returns - following)


def place_on_tokens(step_rewards: Tensor, step_ends: Tensor, step_mask: Tensor, *, num_tokens: int) -> Tensor:
    """Return rewards (B, T) with each step's reward on the token that ends it; T = `num_tokens`.

    `step_ends` (B, S) holds columns; off `step_mask` it may hold anything. Two steps that end on the same
    token add up.
    """
    columns = torch.where(step_mask, step_ends.long(), 0)
    counted = torch.where(step_mask, step_rewards, 0.0)
    return counted.new_zeros(len(counted), num_tokens).scatter_add(1, columns, counted)


def spread_on_steps(step_values: Tensor, step_ends: Tensor, step_mask: Tensor, action_mask: Tensor) -> Tensor:
    """Return (B, T) with each step's value (B, S) on all of its tokens, and the last one's behind it too.

    The counted steps stand first in a row. A row without any is one step.
    """
    num_steps = step_mask.sum(1, keepdim=True)  # (B, 1)
    places = torch.arange(step_mask.shape[1], device=step_values.device)
    assert bool((step_mask == (places < num_steps)).all()), "counted steps stand first in a row"
    ends = torch.zeros(action_mask.shape, dtype=torch.long, device=step_values.device)
    ends.scatter_add_(1, torch.where(step_mask, step_ends, 0), step_mask.long())
    passed = ends.cumsum(1) - ends  # (B, T): steps that ended before the token
    of_step = step_values.gather(1, passed.minimum((num_steps - 1).clamp(min=0)))
    return torch.where(action_mask, of_step, 0.0)


def place_on_last_action(values: Tensor, action_mask: Tensor) -> Tensor:
    """Return (B, T) with each row's value (B,) on its last action; a row without actions gets only zeros."""
    columns = torch.arange(action_mask.shape[1], device=action_mask.device)
    last = torch.where(action_mask, columns, -1).amax(1, keepdim=True)
    return torch.where(columns == last, values[:, None], 0.0)


def _softmin_rewards(rewards: Tensor, step_mask: Tensor, temperature: float) -> Tensor:
    logits = torch.where(step_mask, -rewards / temperature, torch.finfo(rewards.dtype).min)
    return torch.where(step_mask, torch.softmax(logits, dim=1) * rewards, 0.0)


def _gains(scores: Tensor, step_mask: Tensor, start: Tensor) -> Tensor:
    """score - the counted score before it; the first counted step's is `start` (B,)."""
    with_start = torch.cat([start[:, None], scores], dim=1)  # (B, 1 + S)
    columns = torch.arange(1, with_start.shape[1], device=scores.device)
    latest = torch.where(step_mask, columns, 0).cummax(1).values  # last counted column up to k, 0 = start
    before = torch.cat([torch.zeros_like(latest[:, :1]), latest[:, :-1]], dim=1)
    return torch.where(step_mask, scores - with_start.gather(1, before), 0.0)


def _differences(scores: Tensor, step_mask: Tensor) -> Tensor:
    """score - next counted score; the last counted step has no say, neither for itself nor as a next one."""
    if scores.shape[1] == 0:
        return scores
    num_steps = scores.shape[1]
    columns = torch.arange(num_steps, device=scores.device)
    last = torch.where(step_mask, columns, -1).amax(1, keepdim=True)
    used = torch.where(columns == last, 0.0, scores)  # the step before the last keeps its whole score
    own = torch.where(step_mask, columns, num_steps)
    from_here = own.flip(1).cummin(1).values.flip(1)  # first counted column >= k, S where there is none
    end = torch.full_like(from_here[:, :1], num_steps)
    following = torch.cat([from_here[:, 1:], end], dim=1)
    padded = torch.cat([used, torch.zeros_like(used[:, :1])], dim=1)
    return torch.where(step_mask, used - padded.gather(1, following), 0.0)
