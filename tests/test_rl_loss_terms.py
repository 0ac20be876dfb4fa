"""What weighs and joins the policy's loss; the whole loss of an update against its definition, row by row."""

import itertools
import math

import pytest
import torch
from rl_cases import ragged_mask
from rl_runs import experience_of, learner_for, settings
from rl_world import tiny_policy, world

from reasoning_rl.loss_terms import kl_loss, token_weights
from reasoning_rl.models import Actor
from reasoning_rl.update import ppo_update

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("token", (3 + 1 + 1 + 1) / 4), ("sequence", (3 + 1) / 2), ("fixed", (3 + 1 + 1 + 1) / (3 * 8))],
)
def test_aggregation_by_hand(kind: str, expected: float) -> None:
    """Losses 3 | 1, 1, 1 | none, of answers of at most 8 tokens."""
    mask = ragged_mask([1, 1, 4], [2, 4, 4], 5)
    per_token = torch.tensor([[0.0, 3, 0, 0, 0], [0.0, 1, 1, 1, 0], [0.0] * 5])
    weights, divisor = token_weights(mask, kind, max_tokens=8)
    assert float((weights * per_token).sum() / divisor) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["token", "sequence", "fixed"])
def test_shards_of_rows_add_up_to_the_whole(kind: str) -> None:
    mask, per_token = ragged_mask([1, 2, 3, 1], [9, 3, 8, 6], 9), torch.randn(4, 9)
    whole, divisor = token_weights(mask, kind, max_tokens=8)
    parts = [token_weights(mask[rows], kind, max_tokens=8) for rows in (slice(0, 1), slice(1, 4))]
    assert sum(int(part) for _, part in parts) == int(divisor)
    torch.testing.assert_close(torch.cat([weights for weights, _ in parts]), whole, rtol=0, atol=0)
    assert bool((whole * per_token)[~mask].eq(0).all())


def test_the_expected_gradient_of_each_kl_loss_is_that_of_a_divergence() -> None:
    """k2's of KL(pi || ref), k3's of KL(ref || pi): exact, over all tokens of a small vocabulary."""
    logits = torch.tensor([0.1, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.5, 0.2, -0.3], dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    forward = (ref.exp() * (ref - logprobs)).sum()
    reverse = (logprobs.exp() * (logprobs - ref)).sum()
    mask = torch.ones(1, 3, dtype=torch.bool)
    for estimator, divergence in (("k2", reverse), ("k3", forward)):
        (expected,) = torch.autograd.grad(divergence, logits, retain_graph=True)
        # Sampled from pi: each token weighs its probability.
        loss = kl_loss(
            logprobs[None],
            ref[None],
            mask,
            estimator=estimator,
            weights=logprobs.detach().exp()[None],
            divisor=1,
        )
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_kl_loss_by_hand_and_far_away() -> None:
    logprobs = torch.tensor([[0.0, -1.0, -1.0, 0.0]], requires_grad=True)
    ref = torch.tensor([[math.nan, -1.1, -1.0, -900.0]])
    mask = torch.tensor([[False, True, True, False]])
    weights = mask.float()
    loss = kl_loss(logprobs, ref, mask, estimator="k3", weights=weights, divisor=2)
    assert loss.item() == pytest.approx((math.exp(-0.1) - 1 + 0.1) / 2, rel=1e-4)
    loss.backward()
    assert logprobs.grad is not None and logprobs.grad[0, 0] == 0
    far = kl_loss(
        torch.zeros(1, 1),
        torch.full((1, 1), -900.0),
        mask[:, 1:2],
        estimator="k3",
        weights=torch.ones(1, 1),
        divisor=1,
    )
    assert bool(far.isfinite())


# --- the whole loss ---


def slow_loss(learner, experience) -> torch.Tensor:
    """The policy's loss of one minibatch from its definition: no micro-batch, no padding, no shared code."""
    config, total, rows, tokens = learner.config, 0.0, 0, 0
    update = config.update
    for b in range(len(experience)):
        n = int(experience.lengths[b])
        ids = experience.input_ids[b, :n]
        dist = learner.policy(ids[None]).logits[0].log_softmax(-1)
        ref = learner.reference.model(ids[None]).logits[0].log_softmax(-1)
        row, counted = 0.0, experience.loss_mask[b].nonzero().flatten().tolist()
        for t in counted:
            now = dist[t - 1]
            ratio = (now[ids[t]] - experience.old_logprobs[b, t]).exp()
            a = float(experience.advantages[b, t])
            high = 1 + (update.clip_range_high or update.clip_range)
            surrogate = torch.minimum(a * ratio, a * ratio.clamp(1 - update.clip_range, high))
            if update.dual_clip and a < 0:
                surrogate = surrogate.clamp(min=update.dual_clip * a)
            row = row - surrogate
            row = row - update.entropy_coef * -(now.exp() * now).sum()
            if config.kl.place == "loss":
                x = now[ids[t]] - ref[t - 1, ids[t]].detach()
                row = row + config.kl.coef * (x**2 / 2 if config.kl.estimator == "k2" else (-x).exp() - 1 + x)
        total = total + (row / len(counted) if update.loss_aggregation == "sequence" and counted else row)
        rows, tokens = rows + bool(counted), tokens + len(counted)
    budget = len(experience) * config.rollout.max_new_tokens
    return total / {"token": tokens, "sequence": rows, "fixed": budget}[update.loss_aggregation]


CASES = [
    {"update": {"loss_aggregation": "token", "clip_range": 0.1, "clip_range_high": 0.3}},
    {"update": {"loss_aggregation": "sequence", "truncated": "mask"}, "kl": {"coef": 0.5, "estimator": "k3"}},
    {"update": {"loss_aggregation": "fixed", "dual_clip": 1.2}, "kl": {"coef": 0.5, "estimator": "k2"}},
    {"update": {"loss_aggregation": "sequence", "entropy_coef": 0.3, "clip_range": 0.1}},
    {"update": {"loss_aggregation": "token", "entropy_coef": 0.3, "truncated": "mask"}},
]


@pytest.mark.parametrize("case", CASES)
def test_one_update_follows_the_gradient_of_the_loss_as_defined(tmp_path, case) -> None:
    """With plain gradient descent at rate 1 the step is the gradient: every field must be in it."""
    tokenizer, problems = world(8)
    update = {"minibatch_size": 16, "micro_batch_tokens": 300, "max_grad_norm": None} | case["update"]
    kl = {"place": "loss"} | case["kl"] if "kl" in case else {}
    config = settings(tmp_path, update=update, kl=kl)
    learner = learner_for(config, tokenizer)
    learner.reference = Actor(tiny_policy(tokenizer, seed=9)).requires_grad_(False)
    experience, _ = experience_of(learner, tokenizer, problems)
    # As if the policy had moved since: ratios off 1, so that every clip is at work.
    torch.manual_seed(0)
    experience.old_logprobs.add_(0.4 * torch.randn(experience.old_logprobs.shape))
    experience.advantages.mul_(5)
    left_out = int((experience.action_mask & ~experience.loss_mask).sum())
    assert (left_out > 0) == (config.update.truncated == "mask") and experience.loss_mask.any()
    parameters = list(learner.policy.parameters())
    expected = torch.autograd.grad(slow_loss(learner, experience), parameters)
    before = [p.detach().clone() for p in parameters]
    learner.actor.optimizer = torch.optim.SGD(parameters, lr=1.0)
    stats = ppo_update(learner, experience, train_policy=True)
    assert stats["policy/clipfrac"] > 0.05
    for old, new, gradient in zip(before, parameters, expected, strict=True):
        torch.testing.assert_close(old - new.detach(), gradient, rtol=1e-3, atol=2e-5)


def test_the_cases_differ_from_one_another(tmp_path) -> None:
    """The test above would be no test if a field had no effect on the loss here."""
    tokenizer, problems = world(8)
    losses = []
    for case in ({}, *CASES):
        kl = {"place": "loss"} | case["kl"] if "kl" in case else {}
        config = settings(tmp_path, update={"minibatch_size": 16} | case.get("update", {}), kl=kl)
        learner = learner_for(config, tokenizer)
        learner.reference = Actor(tiny_policy(tokenizer, seed=9)).requires_grad_(False)
        experience, _ = experience_of(learner, tokenizer, problems)
        torch.manual_seed(0)
        experience.old_logprobs.add_(0.4 * torch.randn(experience.old_logprobs.shape))
        experience.advantages.mul_(5)
        with torch.no_grad():
            losses.append(float(slow_loss(learner, experience)))
    for a, b in itertools.combinations(losses, 2):
        assert abs(a - b) > 1e-3, losses
