"""Step-reward shaping against worked numbers, slow float64 references and ragged, empty, dirty input."""

import math

import pytest
import torch
from rl_scripted import gather
from rl_world import world
from torch import Tensor

from reasoning_rl.config import RewardConfig
from reasoning_rl.experience import step_and_outcome_rewards
from reasoning_rl.functional import gae
from reasoning_rl.shaping import (
    cap_returns,
    drop_positive,
    place_on_last_action,
    place_on_tokens,
    shape_step_rewards,
)
from reasoning_rl.types import Scores

NAN = float("nan")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
FORMS = ["none", "sum", "clip", "delta", "clip_delta", "min"]
ALL = pytest.mark.parametrize("form", FORMS)


def full(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def to_go(rewards: Tensor) -> Tensor:
    return rewards.flip(1).cumsum(1).flip(1)


def slow_shape(scores: list[float], form: str, threshold: float, temperature: float) -> list[float]:
    """One row, from the papers' definitions, in Python floats."""
    n = len(scores)
    if form == "none":
        return [0.0] * n
    if form == "min":
        r = [2 * p - 1 for p in scores]
        weights = [math.exp(-x / temperature) for x in r]
        return [w / sum(weights) * x for w, x in zip(weights, r, strict=True)]
    if form.startswith("clip"):
        scores = [min(p - threshold, 0.0) for p in scores]
    if form.endswith("delta"):
        out = [0.0] * n
        for k in range(n - 1):
            out[k] = scores[k] if k == n - 2 else scores[k] - scores[k + 1]
        return out
    return scores


def ragged(seed: int) -> tuple[Tensor, Tensor]:
    """Scores (6, 5) with 5, 1, 0, 2, 3 and 4 steps."""
    torch.manual_seed(seed)
    return torch.rand(6, 5), torch.arange(5) < torch.tensor([5, 1, 0, 2, 3, 4])[:, None]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("none", [0.0, 0.0, 0.0, 0.0]),
        ("sum", [0.9, 0.8, 0.3, 0.6]),
        ("clip", [0.0, 0.0, -0.4, -0.1]),
        ("delta", [0.1, 0.5, 0.3, 0.0]),
        ("clip_delta", [0.0, 0.4, -0.4, 0.0]),
    ],
)
def test_four_steps_by_hand(form: str, expected: list[float]) -> None:
    scores = torch.tensor([[0.9, 0.8, 0.3, 0.6]])
    out = shape_step_rewards(scores, full(scores), form=form, clip_threshold=0.7)
    torch.testing.assert_close(out, torch.tensor([expected]), **CLOSE)


def test_delta_returns_are_each_steps_own_score_plus_the_outcome() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.3, 0.6]])
    outcome = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    delta = shape_step_rewards(scores, full(scores), form="delta") + outcome
    torch.testing.assert_close(to_go(delta), torch.tensor([[1.9, 1.8, 1.3, 1.0]]), **CLOSE)
    both = shape_step_rewards(scores, full(scores), form="clip_delta", clip_threshold=0.7) + outcome
    torch.testing.assert_close(to_go(both), torch.tensor([[1.0, 1.0, 0.6, 1.0]]), **CLOSE)


def test_min_form_pays_the_worst_step_by_hand() -> None:
    # r = [.8, -.5, .3]; weights proportional to e^-8, e^5, e^-3
    scores = torch.tensor([[0.9, 0.25, 0.65]])
    out = shape_step_rewards(scores, full(scores), form="min", temperature=0.1)
    torch.testing.assert_close(out, torch.tensor([[1.8e-6, -0.499831, 0.000101]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(out.sum(), torch.tensor(-0.499729), rtol=0, atol=2e-6)
    cold = shape_step_rewards(scores, full(scores), form="min", temperature=0.001)
    torch.testing.assert_close(cold, torch.tensor([[0.0, -0.5, 0.0]]), **CLOSE)


@ALL
def test_ragged_rows_match_the_definition_row_by_row(form: str) -> None:
    scores, mask = ragged(0)
    out = shape_step_rewards(scores, mask, form=form, clip_threshold=0.6, temperature=0.2)
    for b in range(len(scores)):
        expected = slow_shape(scores[b][mask[b]].double().tolist(), form, 0.6, 0.2)
        torch.testing.assert_close(out[b][mask[b]], torch.tensor(expected), **CLOSE)
    assert (out[~mask] == 0).all()


@pytest.mark.parametrize(
    ("form", "expected"),
    [("none", 0.0), ("sum", 0.4), ("clip", -0.1), ("delta", 0.0), ("clip_delta", 0.0), ("min", -0.2)],
)
def test_an_answer_of_one_giant_step(form: str, expected: float) -> None:
    scores = torch.tensor([[0.4, NAN]])
    out = shape_step_rewards(scores, torch.tensor([[True, False]]), form=form)
    torch.testing.assert_close(out, torch.tensor([[expected, 0.0]]), **CLOSE)


@ALL
def test_answers_without_steps_are_paid_nothing(form: str) -> None:
    scores = torch.tensor([[NAN, NAN], [0.3, 0.9]])
    mask = torch.tensor([[False, False], [True, True]])
    assert torch.equal(shape_step_rewards(scores, mask, form=form)[0], torch.zeros(2))
    nothing = shape_step_rewards(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool), form=form)
    assert nothing.shape == (3, 0)


@ALL
def test_padding_content_width_and_row_order_change_nothing(form: str) -> None:
    scores, mask = ragged(1)
    expected = shape_step_rewards(scores, mask, form=form)
    for dirt in (NAN, math.inf, -math.inf, 7.0):
        dirty = torch.nn.functional.pad(scores.masked_fill(~mask, dirt), (0, 3), value=dirt)
        out = shape_step_rewards(dirty, torch.nn.functional.pad(mask, (0, 3)), form=form)
        torch.testing.assert_close(out[:, :5], expected, rtol=1e-6, atol=0)
        assert (out[:, 5:] == 0).all()
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    assert torch.equal(shape_step_rewards(scores[order], mask[order], form=form), expected[order])


@ALL
def test_steps_that_were_not_scored_are_skipped(form: str) -> None:
    scores = torch.tensor([[NAN, 0.9, NAN, 0.2, 0.7, NAN]])
    mask = torch.tensor([[False, True, False, True, True, False]])
    out = shape_step_rewards(scores, mask, form=form)
    packed = shape_step_rewards(scores[mask][None], full(scores[mask][None]), form=form)
    torch.testing.assert_close(out[mask][None], packed, **CLOSE)
    assert (out[~mask] == 0).all()


def test_repeating_a_right_step_pays_only_in_the_sum_form() -> None:
    short = torch.tensor([[0.9, 0.9, 0.9]])
    long = torch.full((1, 30), 0.9)
    totals = {
        form: [float(shape_step_rewards(x, full(x), form=form).sum()) for x in (short, long)]
        for form in FORMS
    }
    assert totals["sum"][1] > 9 * totals["sum"][0]
    for form in ("none", "clip", "delta", "clip_delta", "min"):
        assert totals[form][1] == pytest.approx(totals[form][0], abs=1e-5)


# --- truncated answers ---


def test_truncated_answers_keep_only_what_they_lose() -> None:
    rewards = torch.tensor([[0.5, -0.25, 0.0], [0.5, -0.25, 0.0]])
    expected = torch.tensor([[0.5, -0.25, 0.0], [0.0, -0.25, 0.0]])
    assert torch.equal(drop_positive(rewards, torch.tensor([True, False])), expected)


def test_capped_returns_of_a_truncated_answer_by_hand() -> None:
    # returns to go -.7 -> -.7, .3 -> 0, -.2 -> -.2
    rewards = torch.tensor([[-1.0, 0.5, -0.2], [-1.0, 0.5, -0.2]])
    out = cap_returns(rewards, torch.tensor([True, False]))
    assert torch.equal(out[0], rewards[0])
    torch.testing.assert_close(out[1], torch.tensor([-0.7, 0.2, -0.2]), **CLOSE)


def test_a_truncated_answer_has_no_positive_return_in_any_form() -> None:
    scores, mask = ragged(2)
    truncated = torch.zeros(6, dtype=torch.bool)
    for form in FORMS:
        rewards = shape_step_rewards(scores, mask, form=form)
        capped = cap_returns(rewards, truncated)
        torch.testing.assert_close(to_go(capped), to_go(rewards).clamp(max=0), **CLOSE)
        assert (capped[~mask] == 0).all()
        assert torch.equal(cap_returns(rewards, ~truncated), rewards)
        assert (drop_positive(rewards, truncated) <= 0).all()
    delta = shape_step_rewards(scores, mask, form="delta")
    torch.testing.assert_close(cap_returns(delta, truncated), torch.zeros(6, 5), **CLOSE)
    both = shape_step_rewards(scores, mask, form="clip_delta")
    torch.testing.assert_close(cap_returns(both, truncated), both, **CLOSE)


# --- onto tokens ---


def test_step_rewards_land_on_the_tokens_that_end_the_steps() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [8.0, NAN, 16.0]])
    ends = torch.tensor([[2, 5, 5], [1, 999, -7]])  # row 0: two steps end on one token
    mask = torch.tensor([[True, True, True], [True, False, False]])
    out = place_on_tokens(rewards, ends, mask, num_tokens=6)
    expected = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 6.0], [0.0, 8.0, 0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(out, expected)


def test_placing_neither_loses_nor_invents_reward() -> None:
    torch.manual_seed(3)
    rewards, ends, mask = torch.randn(8, 6), torch.randint(1, 20, (8, 6)), torch.rand(8, 6) < 0.6
    out = place_on_tokens(rewards, ends, mask, num_tokens=20)
    torch.testing.assert_close(out.sum(1), (rewards * mask).sum(1), **CLOSE)
    for b in range(8):
        for t in range(20):
            expected = sum(float(rewards[b, k]) for k in range(6) if mask[b, k] and ends[b, k] == t)
            assert float(out[b, t]) == pytest.approx(expected, abs=1e-6)


def test_no_steps_place_nothing() -> None:
    empty = torch.zeros(2, 0)
    out = place_on_tokens(empty, empty.long(), empty.bool(), num_tokens=4)
    assert torch.equal(out, torch.zeros(2, 4))


def test_outcomes_land_on_the_last_action() -> None:
    mask = torch.tensor(
        [[False, True, True, False], [False, False, True, True], [False, False, False, False]]
    )
    out = place_on_last_action(torch.tensor([1.0, 2.0, NAN]), mask)
    assert torch.equal(out, torch.tensor([[0.0, 0, 1, 0], [0.0, 0, 0, 2], [0.0, 0, 0, 0]]))


def test_from_scores_to_returns_on_tokens() -> None:
    # 2 prompt tokens, steps end at columns 3, 4 and 6, padding at 7; lambda 1 and no critic: plain returns.
    scores, outcome = torch.tensor([[0.9, 0.8, 0.3]]), torch.tensor([1.0])
    action_mask = torch.tensor([[False, False, True, True, True, True, True, False]])
    steps = shape_step_rewards(scores, full(scores), form="delta")
    rewards = place_on_tokens(steps, torch.tensor([[3, 4, 6]]), full(scores), num_tokens=8)
    rewards = rewards + place_on_last_action(outcome, action_mask)
    _, returns = gae(rewards, torch.zeros(1, 8), action_mask, gamma=1.0, lam=1.0)
    # On a step's tokens: its own score + the outcome; the last step's score is unused.
    expected = torch.tensor([[0.0, 0.0, 1.9, 1.9, 1.8, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(returns, expected, **CLOSE)


def test_the_threshold_of_the_clip_forms_is_the_configs() -> None:
    tokenizer, problems = world(2)
    rollout = gather(tokenizer, problems, [problem.solution for problem in problems])
    step_scores = torch.rand(rollout.step_mask.shape, generator=torch.Generator().manual_seed(0))
    judged = torch.ones(2, dtype=torch.bool)
    scores = Scores(step_scores * rollout.step_mask, rollout.step_mask, torch.ones(2), judged)
    for form in ("clip", "clip_delta"):
        for threshold in (0.3, 0.9):
            config = RewardConfig(form=form, clip_threshold=threshold)
            steps, _ = step_and_outcome_rewards(rollout, scores, config)
            expected = shape_step_rewards(
                scores.step_scores, scores.scored, form=form, clip_threshold=threshold
            )
            torch.testing.assert_close(steps, expected, **CLOSE)
