"""From problems to experience: collect rollouts, score their steps, turn scores into token rewards.

B rollouts, P problems, G samples a problem, T tokens, S steps. Text is cut into steps once, here; after that
a step is its text (for the reward model) and the policy token that ends it (for the reward).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from data.grading import start_grading
from data.own import reward_problems
from data.protocols import Grader, ResponseScorer, StepScorer, TextGenerator
from data.schema import Problem, Sample, Sampling
from data.steps import Splitter, split_steps, step_end_tokens, token_char_ends
from reasoning_rl.config import RewardConfig
from reasoning_rl.functional import overlong_penalty
from reasoning_rl.hack_gauge import measure
from reasoning_rl.moments import RunningMoments
from reasoning_rl.shaping import (
    ADVANTAGES,
    TELESCOPING,
    cap_returns,
    drop_positive,
    place_on_last_action,
    place_on_tokens,
    shape_step_rewards,
    spread_on_steps,
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
    # A prompt too long for the context has no sample. Its row trains nothing: one token of it is kept.
    samples = [s if s.token_ids else replace(s, prompt_ids=s.prompt_ids[:1]) for g in drawn for s in g]
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
    verdicts = None if graded else start_grade(grader, rollout)  # programs run while the steps are scored
    shape = rollout.step_mask.shape
    step_scores = torch.zeros(shape)
    scored = torch.zeros(shape, dtype=torch.bool)
    if scorer is not None:
        for row, values in enumerate(scorer.score([p.text for p in rollout.problems], rollout.steps)):
            for k, value in enumerate(values):
                if value is not None:
                    step_scores[row, k], scored[row, k] = value, True
    if verdicts:
        graded = verdicts()
    assert graded
    outcomes, judged = graded
    return Scores(
        step_scores=step_scores, scored=scored & rollout.step_mask, outcomes=outcomes, judged=judged
    )


def grade(grader: Grader, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Return (outcomes (B,) f32, judged (B,) bool) of every response; a truncated one is wrong unseen."""
    return start_grade(grader, rollout)()


def start_grade(grader: Grader, rollout: Rollout) -> Callable[[], tuple[Tensor, Tensor]]:
    """Begin to grade; return the function that returns what `grade` does."""
    rows = rollout.complete.nonzero().squeeze(1).tolist()
    verdicts = start_grading(
        grader, [rollout.problems[row] for row in rows], [rollout.responses[row] for row in rows]
    )

    def wait() -> tuple[Tensor, Tensor]:
        outcomes = torch.zeros(len(rollout.responses))
        judged = torch.ones(len(rollout.responses), dtype=torch.bool)
        for row, verdict in zip(rows, verdicts(), strict=True):
            credit = verdict.credit
            outcomes[row] = float(verdict.status == "correct") if credit is None else credit
            judged[row] = verdict.status != "unjudged"
        return outcomes, judged

    return wait


def reward_responses(
    reward_model: ResponseScorer, render: Callable[[str], str], rollout: Rollout
) -> tuple[Tensor, Tensor]:
    """Return (rewards (B,) f32, judged (B,) bool) of a reward model, in the place of `grade`'s outcomes.

    A truncated response gets 0 unseen; one that does not fit the model's context is not judged.
    """
    prompts = [render(problem.text) for problem in rollout.problems]
    rewards = reward_problems(reward_model, rollout.problems, prompts, rollout.responses)
    judged = torch.tensor([reward is not None for reward in rewards]) | ~rollout.complete
    return torch.tensor([reward or 0.0 for reward in rewards]) * rollout.complete, judged


def step_and_outcome_rewards(
    rollout: Rollout, scores: Scores, config: RewardConfig, *, max_new_tokens: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return (step rewards (B, S), outcome rewards (B,)), each before its weight and any normalisation.

    max_new_tokens: where the penalty for long responses ends; needed where `config.overlong_buffer` is on.
    """
    # An answer that nobody could judge is paid like the average one: neither right nor wrong.
    usual = scores.outcomes[scores.judged].mean() if bool(scores.judged.any()) else 0.0
    outcome_rewards = torch.where(scores.judged, scores.outcomes, usual) * rollout.complete
    if config.overlong_buffer:
        assert max_new_tokens is not None
        outcome_rewards = outcome_rewards + overlong_penalty(
            rollout.action_mask.sum(1), max_length=max_new_tokens, buffer=config.overlong_buffer
        )
    return step_rewards_of(rollout, scores, config), outcome_rewards


def step_rewards_of(rollout: Rollout, scores: Scores, config: RewardConfig) -> Tensor:
    """Return step rewards (B, S), before their weight; a truncated answer's are never above 0."""
    rewards = shape_step_rewards(
        scores.step_scores,
        scores.scored,
        form=config.form,
        clip_threshold=config.clip_threshold,
        temperature=config.softmin_temperature,
        start_scores=_start_scores(rollout, scores),
    )
    withhold = cap_returns if config.form in TELESCOPING else drop_positive
    return withhold(rewards, rollout.complete)


def _start_scores(rollout: Rollout, scores: Scores) -> Tensor:
    """(B,): what form progress measures a first step against. A PRM has no score for the problem itself, so
    there it is the mean first score of the problem's samples: what a first step is worth on average."""
    if scores.start_scores is not None:
        return scores.start_scores
    texts = [problem.text for problem in rollout.problems]
    firsts: dict[str, list[float]] = {text: [] for text in texts}
    for row, text in enumerate(texts):
        scored = scores.scored[row].nonzero()
        if len(scored):
            firsts[text].append(float(scores.step_scores[row, scored[0, 0]]))
    return torch.tensor([sum(found) / len(found) if (found := firsts[text]) else 0.0 for text in texts])


def process_rewards(rollout: Rollout, scores: Scores, config: RewardConfig, step_rewards: Tensor) -> Tensor:
    """Return weighted rewards (B, T) for everything but the outcome, before normalisation.

    step_rewards (B, S) as from `step_and_outcome_rewards`. Token rewards of an implicit PRM are withheld
    from truncated answers as step rewards are.
    """
    width = rollout.input_ids.shape[1]
    weighted = config.step_weight * step_rewards
    rewards = place_on_tokens(weighted, rollout.step_ends, scores.scored, num_tokens=width)
    if scores.token_rewards is not None:
        rewards = rewards + config.implicit.weight * cap_returns(scores.token_rewards, rollout.complete)
    return rewards


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
    if config.form in ADVANTAGES:
        step_rewards = torch.zeros_like(step_rewards)
    rewards = process_rewards(rollout, scores, config, step_rewards)
    outcome_rewards = config.outcome_weight * outcome_rewards
    totals = rewards.sum(1) + outcome_rewards
    if config.normalise != "off":
        moments.update(totals, reduce=reduce)
        rewards = rewards / moments.std
        outcome_rewards = outcome_rewards / moments.std
        if config.normalise == "standardise":
            outcome_rewards = outcome_rewards - moments.mean / moments.std
    rewards = rewards + place_on_last_action(outcome_rewards, rollout.action_mask)
    if config.clip is not None:
        rewards = rewards.clamp(-config.clip, config.clip)
    return rewards * rollout.action_mask, totals


def process_share(rollout: Rollout, scores: Scores, config: RewardConfig, moments: RunningMoments) -> Tensor:
    """Return what of `task_rewards` (B, T), under the same moments, is not the outcome's."""
    step_rewards = step_rewards_of(rollout, scores, config)
    if config.form in ADVANTAGES:
        step_rewards = torch.zeros_like(step_rewards)
    rewards = process_rewards(rollout, scores, config, step_rewards)
    return rewards if config.normalise == "off" else rewards / moments.std


def progress_advantages(
    rollout: Rollout, scores: Scores, config: RewardConfig, moments: RunningMoments
) -> Tensor | None:
    """Return alpha A^mu (B, T) on every token of a step, in the rewards' units; None unless form progress.

    Added to the advantages that the rewards give: each token's gradient weighs Q^pi + alpha A^mu of its step
    (eq. 5, arXiv:2410.08146).
    """
    if config.form not in ADVANTAGES:
        return None
    steps = step_rewards_of(rollout, scores, config)
    plane = spread_on_steps(steps, rollout.step_ends, rollout.step_mask, rollout.action_mask)
    plane = config.step_weight * plane
    return plane if config.normalise == "off" else plane / moments.std


def rollout_metrics(
    rollout: Rollout,
    scores: Scores,
    totals: Tensor,
    config: RewardConfig,
    *,
    ngram: int = 4,
    is_verified: bool = True,
) -> dict[str, float]:
    """Return the monitors of one batch of rollouts, the hack gauge's numbers (hack/*) among them.

    totals (B,): raw reward of each response, as from `task_rewards`. ngram: as HackConfig has it.
    is_verified: outcomes are a grader's; a reward model's, in units of its own, have another name.
    """
    outcome = (scores.outcomes.sum() / scores.judged.sum().clamp(min=1)).item()
    responses = rollout.action_mask.sum(1).float()
    mean_score = (scores.step_scores * scores.scored).sum(1) / scores.scored.sum(1).clamp(min=1)
    paid = process_rewards(rollout, scores, config, step_rewards_of(rollout, scores, config)).sum(1)
    low, high = torch.quantile(totals, torch.tensor([0.1, 0.9])).tolist()
    return {
        "reward/total": totals.mean().item(),
        "reward/total_std": totals.std(unbiased=False).item(),
        "reward/total_p10": low,
        "reward/total_p90": high,
        "reward/process": paid.mean().item(),
        "reward/outcome" if is_verified else "reward/response": outcome,
        **({"reward/step_score": mean_score.mean().item()} if bool(scores.scored.any()) else {}),
        **measure(rollout, scores, paid, ngram=ngram, is_verified=is_verified),
        "rollout/response_tokens": responses.mean().item(),
        "rollout/truncated": (~rollout.complete).float().mean().item(),
        "rollout/prompt_too_long": (responses == 0).float().mean().item(),
        "rollout/unjudged": (~scores.judged).float().mean().item(),
        "rollout/unscored_steps": 1.0 - (scores.scored.sum() / rollout.step_mask.sum().clamp(min=1)).item(),
        "rollout/tokens": responses.sum().item(),
    }
