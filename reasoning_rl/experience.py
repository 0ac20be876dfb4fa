"""From problems to experience: collect rollouts, score their steps, turn scores into token rewards.

B rollouts, P problems, G samples a problem, T tokens, S steps. Text is cut into steps once, here; after that
a step is its text (for the reward model) and the policy token that ends it (for the reward).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from data.protocols import Grader, StepScorer, TextGenerator
from data.schema import Problem, Sample, Sampling
from data.steps import Splitter, split_steps, step_end_tokens, token_char_ends
from reasoning_rl.config import RewardConfig
from reasoning_rl.functional import overlong_penalty
from reasoning_rl.moments import RunningMoments
from reasoning_rl.shaping import (
    cap_returns,
    drop_positive,
    place_on_last_action,
    place_on_tokens,
    shape_step_rewards,
)
from reasoning_rl.types import Rollout, Scores

Reduce = Callable[[Tensor], Tensor]


def collect(
    generator: TextGenerator,
    tokenizer: Any,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    render: Callable[[str], str],
    splitter: Splitter,
) -> Rollout:
    """Sample `sampling.n` responses a problem and lay them out as one right-padded batch (B = P*G rows)."""
    drawn = generator.generate([render(problem.text) for problem in problems], sampling)
    samples = [sample for group in drawn for sample in group]
    owners = [problem for problem, group in zip(problems, drawn, strict=True) for _ in group]
    lengths = torch.tensor([len(s.prompt_ids) + len(s.token_ids) for s in samples])
    shape = (len(samples), int(lengths.max()))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    input_ids = torch.full(shape, pad)
    action_mask = torch.zeros(shape, dtype=torch.bool)
    logprobs = torch.zeros(shape)
    all_steps: list[list[str]] = []
    all_ends: list[list[int]] = []
    for row, sample in enumerate(samples):
        begin, end = len(sample.prompt_ids), int(lengths[row])
        input_ids[row, :end] = torch.tensor([*sample.prompt_ids, *sample.token_ids])
        action_mask[row, begin:end] = True
        logprobs[row, begin:end] = torch.tensor(sample.logprobs)
        steps, ends = _locate_steps(tokenizer, sample, splitter)
        all_steps.append(steps)
        all_ends.append([begin + e for e in ends])
    num_steps = max(1, max(map(len, all_ends)))
    step_ends = torch.zeros(len(samples), num_steps, dtype=torch.long)
    step_mask = torch.zeros(len(samples), num_steps, dtype=torch.bool)
    for row, ends in enumerate(all_ends):
        step_ends[row, : len(ends)] = torch.tensor(ends, dtype=torch.long)
        step_mask[row, : len(ends)] = True
    return Rollout(
        problems=owners,
        responses=[s.text for s in samples],
        steps=all_steps,
        input_ids=input_ids,
        lengths=lengths,
        action_mask=action_mask,
        behaviour_logprobs=logprobs,
        complete=torch.tensor([s.finish_reason == "stop" for s in samples]),
        step_ends=step_ends,
        step_mask=step_mask,
    )


def _locate_steps(tokenizer: Any, sample: Sample, splitter: Splitter) -> tuple[list[str], list[int]]:
    """Return the sample's steps and the index of the token that ends each."""
    spans = split_steps(sample.text, splitter)
    ends = step_end_tokens(spans, token_char_ends(tokenizer, sample.token_ids, sample.text))
    located = [(sample.text[a:b], e) for (a, b), e in zip(spans, ends, strict=True) if e is not None]
    return [step for step, _ in located], [end for _, end in located]


def score_rollout(
    scorer: StepScorer | None,
    grader: Grader,
    rollout: Rollout,
    graded: tuple[Tensor, Tensor] | None = None,
) -> Scores:
    """Score every step in text, and grade every complete response. Truncated responses are never correct.

    graded: (outcomes, judged) of a rollout that `grade` has seen already.
    """
    shape = rollout.step_mask.shape
    step_scores = torch.zeros(shape)
    scored = torch.zeros(shape, dtype=torch.bool)
    if scorer is not None:
        for row, values in enumerate(scorer.score([p.text for p in rollout.problems], rollout.steps)):
            for k, value in enumerate(values):
                if value is not None:
                    step_scores[row, k], scored[row, k] = value, True
    outcomes, judged = graded or grade(grader, rollout)
    return Scores(
        step_scores=step_scores, scored=scored & rollout.step_mask, outcomes=outcomes, judged=judged
    )


def grade(grader: Grader, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Return (outcomes (B,) f32, judged (B,) bool) of every response; a truncated one is wrong unseen."""
    outcomes = torch.zeros(len(rollout.responses))
    judged = torch.ones(len(rollout.responses), dtype=torch.bool)
    for row, (problem, response) in enumerate(zip(rollout.problems, rollout.responses, strict=True)):
        if rollout.complete[row]:
            status = grader(problem, response).status
            outcomes[row] = float(status == "correct")
            judged[row] = status != "unjudged"
    return outcomes, judged


def step_and_outcome_rewards(
    rollout: Rollout, scores: Scores, config: RewardConfig, *, max_new_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return (step rewards (B, S), outcome rewards (B,)), each before its weight and any normalisation.

    max_new_tokens: where the penalty for long responses ends; needed where `config.overlong_buffer` is on.
    """
    step_rewards = shape_step_rewards(
        scores.step_scores,
        scores.scored,
        form=config.form,
        clip_threshold=config.clip_threshold,
        temperature=config.softmin_temperature,
    )
    withhold = cap_returns if config.form in ("delta", "clip_delta") else drop_positive
    # An answer that nobody could judge is paid like the average one: neither right nor wrong.
    usual = scores.outcomes[scores.judged].mean() if bool(scores.judged.any()) else 0.0
    outcome_rewards = torch.where(scores.judged, scores.outcomes, usual) * rollout.complete
    if config.overlong_buffer:
        assert max_new_tokens is not None
        outcome_rewards = outcome_rewards + overlong_penalty(
            rollout.action_mask.sum(1), max_length=max_new_tokens, buffer=config.overlong_buffer
        )
    return withhold(step_rewards, rollout.complete), outcome_rewards


def task_rewards(
    rollout: Rollout,
    scores: Scores,
    config: RewardConfig,
    moments: RunningMoments,
    reduce: Reduce | None = None,
    *,
    max_new_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (token rewards (B, T) before the KL penalty, raw reward of each response (B,)).

    A step is paid on the token with its last character, the outcome on the last token. The moments run
    over whole responses' rewards, so every response is scaled alike however many steps it has.
    Differs from arXiv 2307.04964, which has one reward a response: the mean is taken off on the last token
    only. Taken off at each step it would pay for writing more or fewer steps.
    """
    step_rewards, outcome_rewards = step_and_outcome_rewards(
        rollout, scores, config, max_new_tokens=max_new_tokens
    )
    step_rewards, outcome_rewards = (
        config.step_weight * step_rewards,
        config.outcome_weight * outcome_rewards,
    )
    totals = step_rewards.sum(1) + outcome_rewards
    if config.normalise != "off":
        moments.update(totals, reduce=reduce)
        step_rewards = step_rewards / moments.std
        outcome_rewards = outcome_rewards / moments.std
        if config.normalise == "standardise":
            outcome_rewards = outcome_rewards - moments.mean / moments.std
    rewards = place_on_tokens(
        step_rewards, rollout.step_ends, scores.scored, num_tokens=rollout.input_ids.shape[1]
    )
    rewards = rewards + place_on_last_action(outcome_rewards, rollout.action_mask)
    if config.clip is not None:
        rewards = rewards.clamp(-config.clip, config.clip)
    return rewards * rollout.action_mask, totals


def rollout_metrics(rollout: Rollout, scores: Scores, totals: Tensor) -> dict[str, float]:
    """Return the monitors of one batch of rollouts, the hack gauge (hack/*) among them."""
    counts = rollout.step_mask.sum(1).float()
    responses = rollout.action_mask.sum(1).float()
    mean_score = (scores.step_scores * scores.scored).sum(1) / scores.scored.sum(1).clamp(min=1)
    last = (counts.long() - 1).clamp(min=0)[:, None]
    final_score = scores.step_scores.gather(1, last).squeeze(1)
    repeated = [1 - len(set(steps)) / len(steps) if steps else 0.0 for steps in rollout.steps]
    return {
        "reward/total": totals.mean().item(),
        "reward/total_std": totals.std(unbiased=False).item(),
        "reward/outcome": (scores.outcomes.sum() / scores.judged.sum().clamp(min=1)).item(),
        "reward/step_score": mean_score.mean().item(),
        "hack/score_outcome_gap": (final_score - scores.outcomes).mean().item(),
        "hack/score_outcome_correlation": correlation(final_score, scores.outcomes),
        "hack/num_steps": counts.mean().item(),
        "hack/at_most_one_step": (counts <= 1).float().mean().item(),
        "hack/repeated_steps": sum(repeated) / len(repeated),
        "rollout/response_tokens": responses.mean().item(),
        "rollout/truncated": (~rollout.complete).float().mean().item(),
        "rollout/unjudged": (~scores.judged).float().mean().item(),
        "rollout/unscored_steps": 1.0 - (scores.scored.sum() / rollout.step_mask.sum().clamp(min=1)).item(),
        "rollout/tokens": responses.sum().item(),
    }


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson correlation of two (B,) tensors; 0 where one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    norm = x.norm() * y.norm()
    return (x @ y / norm).item() if norm > 0 else 0.0
