"""Advantages without a critic: hand-worked groups, slow float64 references, and what they must not do."""

import itertools
import math
import statistics

import pytest
import torch
from rl_cases import in_ranks, ragged_mask
from torch import Tensor

from reasoning_rl.functional import whiten
from reasoning_rl.group import grpo_outcome, grpo_process, reinforce_pp, returns_to_go, rloo

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
EXACT = {"rtol": 1e-9, "atol": 1e-9}
NAN = float("nan")


def case(seed: int, group_size: int = 3) -> tuple[Tensor, Tensor, Tensor, int]:
    """(rewards, reward_mask, action_mask, G): two groups of ragged rows; what is outside is NaN."""
    torch.manual_seed(seed)
    mask = ragged_mask([1, 2, 1, 3, 1, 2], [9, 4, 6, 8, 3, 9], 10)
    paid = mask & (torch.rand(6, 10) < 0.4)
    rewards = torch.where(mask, torch.randn(6, 10, dtype=torch.float64) * paid, NAN)
    return rewards, paid, mask, group_size


def to_go(row: list[float], gamma: float = 1.0) -> list[float]:
    return [sum(gamma**k * r for k, r in enumerate(row[t:])) for t in range(len(row))]


def rows_of(rewards: Tensor, mask: Tensor) -> list[list[float]]:
    return [rewards[b][mask[b]].tolist() for b in range(len(mask))]


def laid_out(rows: list[list[float]], mask: Tensor) -> Tensor:
    out = torch.zeros(mask.shape, dtype=torch.float64)
    out[mask] = torch.tensor([x for row in rows for x in row], dtype=torch.float64)
    return out


# --- GRPO ---


def test_grpo_of_four_answers_by_hand() -> None:
    # One of four is right: mean 1/4, deviation (n - 1) 1/2. In the second group all agree.
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    expected = torch.tensor([1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0])
    torch.testing.assert_close(grpo_outcome(rewards, group_size=4), expected, **CLOSE)
    dr = torch.tensor([0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0])
    torch.testing.assert_close(grpo_outcome(rewards, group_size=4, divide_by_std=False), dr, **CLOSE)


def test_grpo_does_not_depend_on_the_rewards_scale_but_dr_grpo_does() -> None:
    rewards = torch.tensor([0.1, 0.9, 0.4])
    one, ten = (grpo_outcome(rewards * k, group_size=3) for k in (1, 10))
    torch.testing.assert_close(one, ten, **CLOSE)
    one, ten = (grpo_outcome(rewards * k, group_size=3, divide_by_std=False) for k in (1, 10))
    torch.testing.assert_close(10 * one, ten, **CLOSE)


def test_process_supervision_by_hand() -> None:
    # Steps of the group: 1, 0 | 0.5; mean 0.5, deviation 0.5, so normalised 1, -1 | 0. A token gets the sum
    # of those that end on it or later; behind the last step nothing is left.
    rewards = torch.tensor([[0.0, 0, 1, 0, 0, 0], [0.0, 0, 0.5, 0, 0, 0]])
    paid = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0]]).bool()
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]).bool()
    expected = torch.tensor([[0.0, 0, 0, -1, -1, 0], [0.0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(grpo_process(rewards, paid, mask, group_size=2), expected, **CLOSE)


@pytest.mark.parametrize("divide_by_std", [True, False])
def test_process_supervision_matches_the_definition(divide_by_std: bool) -> None:
    rewards, paid, mask, size = case(1)
    actual = grpo_process(rewards, paid, mask, group_size=size, divide_by_std=divide_by_std)
    expected = torch.zeros(rewards.shape, dtype=torch.float64)
    for start in range(0, len(rewards), size):
        group = range(start, start + size)
        steps = [float(rewards[b, t]) for b in group for t in paid[b].nonzero().flatten().tolist()]
        mean = statistics.mean(steps)
        std = statistics.stdev(steps) + 1e-6 if divide_by_std else 1.0
        for b in group:
            for t in mask[b].nonzero().flatten().tolist():
                following = [k for k in paid[b].nonzero().flatten().tolist() if k >= t]
                expected[b, t] = sum((float(rewards[b, k]) - mean) / std for k in following)
    torch.testing.assert_close(actual, expected, **EXACT)


def test_a_group_with_one_step_or_none_has_nothing_to_compare() -> None:
    rewards, mask = torch.rand(2, 4), torch.ones(2, 4, dtype=torch.bool)
    one = torch.zeros(2, 4, dtype=torch.bool)
    one[0, 2] = True
    for paid in (one, torch.zeros_like(one)):
        assert bool((grpo_process(rewards, paid, mask, group_size=2) == 0).all())


# --- RLOO ---


def test_leave_one_out_by_hand() -> None:
    # Paid on the last token; the others' means are 0.5, 0.5, 1.
    rewards = torch.tensor([[0.0, 0, 1], [0.0, 1, 0], [0.0, 0, 0]])
    mask = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 1, 1]]).bool()
    expected = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.5, 0.0], [0.0, -1.0, -1.0]])
    torch.testing.assert_close(rloo(rewards, mask, group_size=3), expected, **CLOSE)


def test_leave_one_out_is_the_group_mean_stretched() -> None:
    """(G / (G - 1)) (r - mean), with one reward an answer."""
    rewards, mask = torch.zeros(8, 5), torch.ones(8, 5, dtype=torch.bool)
    rewards[:, -1] = torch.rand(8)
    expected = 4 / 3 * grpo_outcome(rewards[:, -1], group_size=4, divide_by_std=False)
    torch.testing.assert_close(rloo(rewards, mask, group_size=4), expected[:, None].expand(8, 5), **CLOSE)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("baseline", ["none", "response", "token"])
def test_per_token_returns_against_the_definition(baseline: str, gamma: float) -> None:
    rewards, _, mask, size = case(2)
    rows = rows_of(rewards, mask)
    expected = []
    for b, row in enumerate(rows):
        others = [rows[k] for k in range(b - b % size, b - b % size + size) if k != b]
        if baseline == "token":
            per_token = sum(map(sum, others)) / sum(map(len, others))
            expected.append(to_go([r - per_token for r in row], gamma))
        else:
            mean = statistics.mean(to_go(other, gamma)[0] for other in others)
            expected.append([g - mean * (baseline == "response") for g in to_go(row, gamma)])
    actual = rloo(rewards, mask, group_size=size, baseline=baseline, gamma=gamma)
    torch.testing.assert_close(actual, laid_out(expected, mask), **EXACT)


def test_the_siblings_baseline_leaves_the_gradient_where_it_was() -> None:
    """All outcomes of two answers of one token, weighed by their probability: the exact expectation."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.2, -0.7], dtype=torch.float64)
    probabilities = logits.softmax(0)
    (expected,) = torch.autograd.grad((probabilities * reward).sum(), logits, retain_graph=True)
    total = torch.zeros(3, dtype=torch.float64)
    mask = torch.tensor([[False, True], [False, True]])
    for pair in itertools.product(range(3), repeat=2):
        rewards = torch.tensor([[0.0, reward[k]] for k in pair], dtype=torch.float64)
        advantages = rloo(rewards, mask, group_size=2)[:, 1]
        objective = (advantages * logits.log_softmax(0)[list(pair)]).mean()
        (gradient,) = torch.autograd.grad(objective, logits, retain_graph=True)
        total += float(probabilities[list(pair)].detach().prod()) * gradient
    torch.testing.assert_close(total, expected, **EXACT)


# --- REINFORCE++ ---


@pytest.mark.parametrize("baseline", ["none", "response", "token"])
def test_whitened_returns_against_the_definition(baseline: str) -> None:
    rewards, _, mask, size = case(3)
    rows = [to_go(row) for row in rows_of(rewards, mask)]
    if baseline == "response":
        means = [statistics.mean(row[0] for row in rows[k : k + size]) for k in range(0, len(rows), size)]
        rows = [[g - means[b // size] for g in row] for b, row in enumerate(rows)]
    if baseline == "token":
        rows = rows_of(rloo(rewards, mask, group_size=size, baseline="token"), mask)
    flat = [g for row in rows for g in row]
    mean, std = statistics.mean(flat), math.sqrt(statistics.pvariance(flat) + 1e-8)
    expected = laid_out([[(g - mean) / std for g in row] for row in rows], mask)
    actual = reinforce_pp(rewards, mask, group_size=size, baseline=baseline)
    torch.testing.assert_close(actual, expected, **EXACT)


def test_whitening_spans_all_ranks() -> None:
    rewards, _, mask, size = case(4)
    whole = reinforce_pp(rewards, mask, group_size=size)
    shards = [(rewards[:3], mask[:3]), (rewards[3:], mask[3:])]
    parts = in_ranks(lambda r, m, total, _: reinforce_pp(r, m, group_size=size, reduce=total), shards)
    torch.testing.assert_close(torch.cat(parts), whole, **EXACT)


ESTIMATES = {
    "grpo": lambda r, p, m: grpo_process(r, p, m, group_size=3),
    "rloo": lambda r, p, m: rloo(r, m, group_size=3),
    "rloo, per token": lambda r, p, m: rloo(r, m, group_size=3, baseline="token"),
    "reinforce_pp": lambda r, p, m: reinforce_pp(r, m, group_size=3, baseline="response"),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_nothing_leaks_from_or_to_what_does_not_count(name: str) -> None:
    rewards, paid, mask, _ = case(5)
    out = ESTIMATES[name](rewards, paid, mask)
    assert bool((out[~mask] == 0).all()) and bool(out.isfinite().all())
    wider = [torch.nn.functional.pad(x, (0, 3)) for x in (rewards, paid, mask)]
    torch.testing.assert_close(ESTIMATES[name](*wider)[:, :10], out, **EXACT)
    if name != "reinforce_pp":  # whose whitening spans the batch
        alone = ESTIMATES[name](rewards[3:], paid[3:], mask[3:])
        torch.testing.assert_close(alone, out[3:], **EXACT)


def test_returns_to_go_by_hand() -> None:
    rewards = torch.tensor([[9.0, 1, 0, 2, 9]])
    mask = torch.tensor([[False, True, True, True, False]])
    assert returns_to_go(rewards, mask).tolist() == [[0, 3, 2, 2, 0]]
    assert returns_to_go(rewards, mask, gamma=0.5).tolist() == [[0, 1.5, 1, 2, 0]]


def test_the_token_baseline_is_of_process_rewards_and_never_of_an_outcome() -> None:
    """Four right answers of 20, 20, 20 and 80 tokens: none is better than the others (section 3.2,
    arXiv:2504.15275, has a response baseline for what is verified)."""
    lengths = torch.tensor([20, 20, 20, 80])
    mask = torch.arange(80) < lengths[:, None]
    outcome = torch.zeros(4, 80)
    outcome[torch.arange(4), lengths - 1] = 1.0
    options = {"group_size": 4, "baseline": "token"}
    mixed = rloo(outcome, mask, process=torch.zeros(4, 80), **options)
    torch.testing.assert_close(mixed, torch.zeros(4, 80))
    assert rloo(outcome, mask, **options)[3, 0] < -1, "compared per token, the long one would be blamed"
    process = torch.where(mask, torch.rand(4, 80, generator=torch.Generator().manual_seed(0)), 0.0)
    together = rloo(outcome + process, mask, process=process, **options)
    apart = rloo(process, mask, **options) + rloo(outcome, mask, group_size=4, baseline="response")
    torch.testing.assert_close(together, apart)
    whitened = reinforce_pp(outcome + process, mask, process=process, **options)
    torch.testing.assert_close(whitened, whiten(apart, mask))
