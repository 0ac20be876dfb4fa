"""Sampler and trainer differ: what is measured, and what truncated importance weights put right."""

import dataclasses
import itertools
import math

import pytest
import torch
from rl_world import tiny_policy, world
from test_rl_ppo import learner_for, rollout_of, settings
from torch import Tensor

from data.errors import UserError
from data.schema import Sampling
from data.world_tokenizer import word_tokenizer
from reasoning_rl.config import RolloutConfig
from reasoning_rl.functional import importance_weights, policy_loss
from reasoning_rl.ppo import make_experience
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.rollout.mismatch import correct_mismatch, mismatch_metrics
from reasoning_rl.update import ppo_update


def alone(x: Tensor) -> Tensor:
    return x


def test_weights_of_a_hand_worked_case() -> None:
    half, double, tenfold = math.log(0.5), math.log(2), math.log(10)
    behaviour = torch.zeros(2, 4)
    logprobs = torch.tensor([[9.0, double, half, tenfold], [half, half, half, math.nan]])
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    token = importance_weights(logprobs, behaviour, mask, level="token", cap=5.0)
    torch.testing.assert_close(token, torch.tensor([[0.0, 2.0, 0.5, 5.0], [0.5, 0.5, 0.0, 0.0]]))
    sequence = importance_weights(logprobs, behaviour, mask, level="sequence", cap=50.0)
    torch.testing.assert_close(sequence, torch.tensor([[0.0, 10.0, 10.0, 10.0], [0.25, 0.25, 0.0, 0.0]]))
    far = importance_weights(
        torch.full((1, 2), 900.0), torch.zeros(1, 2), mask[:1, 1:3], level="token", cap=1e30
    )
    assert bool(torch.isfinite(far).all())


# Two policies over sequences of three tokens of three kinds, each token's odds given by the one before.
KINDS, LENGTH = 3, 3
SEQUENCES = torch.tensor(list(itertools.product(range(KINDS), repeat=LENGTH)))  # (27, 3)


def sequence_logprobs(logits: Tensor) -> Tensor:
    """(27, 3) logprobs of every token of every sequence, from (KINDS + 1, KINDS): the last row starts."""
    before = torch.cat([torch.full((len(SEQUENCES), 1), KINDS), SEQUENCES[:, :-1]], 1)
    return logits.log_softmax(-1)[before, SEQUENCES]


def gradient(theta: Tensor, sampler: Tensor, advantages: Tensor, weights: Tensor | None) -> Tensor:
    """The policy loss's expected gradient when sequences come from `sampler`, by enumeration."""
    leaf = theta.clone().requires_grad_()
    logprobs = sequence_logprobs(leaf)
    chance = sequence_logprobs(sampler).sum(1).exp()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(SEQUENCES)):
        one = slice(row, row + 1)
        loss, _ = policy_loss(
            logprobs[one],
            logprobs[one].detach(),
            advantages[one],
            torch.ones(1, LENGTH, dtype=torch.bool),
            clip_range=0.2,
            num_tokens=LENGTH,
            weights=None if weights is None else weights[one],
        )
        total = total + chance[row] * loss
    return torch.autograd.grad(total, leaf)[0]


@pytest.fixture
def policies() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(KINDS + 1, KINDS, generator=generator, dtype=torch.float64)
    stale = theta + 0.7 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn(len(SEQUENCES), 1, generator=generator, dtype=torch.float64).expand(-1, LENGTH)
    return theta, stale, advantages


def weigh(theta: Tensor, stale: Tensor, level: str, cap: float) -> Tensor:
    mask = torch.ones(len(SEQUENCES), LENGTH, dtype=torch.bool)
    return importance_weights(sequence_logprobs(theta), sequence_logprobs(stale), mask, level=level, cap=cap)


def test_sequence_weights_make_the_stale_gradient_the_fresh_one(policies) -> None:
    theta, stale, advantages = policies
    fresh = gradient(theta, theta, advantages, None)
    corrected = gradient(theta, stale, advantages, weigh(theta, stale, "sequence", math.inf))
    torch.testing.assert_close(corrected, fresh, rtol=1e-9, atol=1e-12)
    uncorrected = gradient(theta, stale, advantages, None)
    assert (uncorrected - fresh).norm() > 0.3 * fresh.norm(), "the staleness is worth correcting"


def test_a_cap_that_cuts_nothing_changes_nothing_and_one_that_cuts_shrinks(policies) -> None:
    theta, stale, advantages = policies
    free = weigh(theta, stale, "sequence", math.inf)
    above = weigh(theta, stale, "sequence", float(free.max()) + 1)
    torch.testing.assert_close(above, free, rtol=0, atol=0)
    chance = sequence_logprobs(stale).sum(1).exp()
    mean = [float((chance * weigh(theta, stale, "sequence", cap)[:, 0]).sum()) for cap in (1, 2, math.inf)]
    assert mean[0] < mean[1] < mean[2] == pytest.approx(1.0, abs=1e-12)


def test_token_weights_are_unbiased_given_the_prefix_but_not_over_prefixes(policies) -> None:
    theta, stale, advantages = policies
    weights = weigh(theta, stale, "token", math.inf)
    # Over stale samples, the mean of weight x f(first token) is the trainer's own expectation of f.
    pi, mu = theta.softmax(-1), stale.softmax(-1)
    f = torch.arange(1.0, KINDS + 1, dtype=torch.float64)
    chance = sequence_logprobs(stale).sum(1).exp()
    estimate = (chance * weights[:, 0] * f[SEQUENCES[:, 0]]).sum()
    torch.testing.assert_close(estimate, (pi[KINDS] * f).sum())
    assert abs((chance * f[SEQUENCES[:, 0]]).sum() - estimate) > 0.05
    by_hand = pi[KINDS] / mu[KINDS]
    torch.testing.assert_close(weights[:, 0], by_hand[SEQUENCES[:, 0]], rtol=1e-9, atol=0)
    fresh = gradient(theta, theta, advantages, None)
    corrected = gradient(theta, stale, advantages, weights)
    assert (corrected - fresh).norm() > 0.1 * fresh.norm(), "how often a prefix is reached stays stale"


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_samples_of_stale_weights_estimate_what_the_policy_would_do(level) -> None:
    """Monte Carlo with real rollouts: the mean of weight x f over stale samples against the exact mean."""
    tokenizer = word_tokenizer()
    policy, stale = tiny_policy(tokenizer, seed=0), tiny_policy(tokenizer, seed=0)
    with torch.no_grad():
        noise = torch.Generator().manual_seed(1)
        for parameter in stale.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    count, prompt = 4096, "Ann has 12."
    sampling = Sampling(max_new_tokens=1, n=count, seed=5)
    (samples,) = HFGenerator(stale, tokenizer, max_batch=count).generate([prompt], sampling)
    ids = torch.tensor(samples[0].prompt_ids)
    with torch.inference_mode():
        logprobs = policy(ids[None]).logits[0, -1].double().log_softmax(-1)
        stale_logprobs = stale(ids[None]).logits[0, -1].double().log_softmax(-1)
    f = (logprobs > stale_logprobs).double()  # whether it is a token that the stale one draws too rarely
    chosen = torch.tensor([sample.token_ids[0] for sample in samples])
    behaviour = torch.tensor([sample.logprobs for sample in samples])  # (N, 1), as the engine reports them
    mask = torch.ones(count, 1, dtype=torch.bool)
    weights = importance_weights(logprobs[chosen][:, None].float(), behaviour, mask, level=level, cap=1e6)
    products = weights[:, 0].double() * f[chosen]
    error = products.std() / math.sqrt(count)
    exact, without = (logprobs.exp() * f).sum(), f[chosen].mean()
    assert abs(products.mean() - exact) < 4 * error
    assert abs(without - exact) > 8 * f[chosen].std() / math.sqrt(count), "without weights it is far off"
    torch.testing.assert_close(behaviour[:, 0].double(), stale_logprobs[chosen], rtol=0, atol=1e-5)


def test_metrics_are_mean_largest_and_kl_of_the_masked_tokens() -> None:
    torch.manual_seed(0)
    old, behaviour = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    mask = torch.rand(3, 5) < 0.6
    metrics = mismatch_metrics(old, behaviour, mask, reduce=alone)
    pairs = [
        (float(o), float(b))
        for o, b, m in zip(old.flatten(), behaviour.flatten(), mask.flatten(), strict=True)
        if m
    ]
    gaps = [abs(o - b) for o, b in pairs]
    k3 = [math.exp(o - b) - 1 - (o - b) for o, b in pairs]
    assert metrics["rollout/mismatch_mean"] == pytest.approx(sum(gaps) / len(gaps))
    assert metrics["rollout/mismatch_max"] == pytest.approx(max(gaps))
    assert metrics["rollout/mismatch_kl"] == pytest.approx(sum(k3) / len(k3))


def test_off_is_no_weights_and_the_cap_is_counted() -> None:
    mask = torch.tensor([[True, True, True, False]])
    old, behaviour = torch.tensor([[3.0, 0.0, 0.0, 9.0]]), torch.zeros(1, 4)
    assert correct_mismatch(old, behaviour, mask, RolloutConfig(), reduce=alone) == (None, {})
    config = RolloutConfig(truncated_is="token", is_cap=2.0)
    weights, metrics = correct_mismatch(old, behaviour, mask, config, reduce=alone)
    torch.testing.assert_close(weights, torch.tensor([[2.0, 1.0, 1.0, 0.0]]))
    assert metrics["rollout/importance_capped"] == pytest.approx(1 / 3)
    assert metrics["rollout/importance_weight"] == pytest.approx(4 / 3)


def test_an_update_weighs_every_token_by_how_stale_its_sample_was(tmp_path) -> None:
    """Rollouts whose logprobs are all off by log 2 count twice, or 1.5 times where that is the cap."""
    tokenizer, problems = world(8)
    losses = {}
    for level, cap in (("off", 2.0), ("token", 4.0), ("token", 1.5)):
        rollout_settings = {
            "problems_per_iteration": 8,
            "samples_per_problem": 2,
            "max_new_tokens": 8,
            "truncated_is": level,
            "is_cap": cap,
        }
        config = settings(tmp_path, rollout=rollout_settings, update={"minibatch_size": 16})
        learner = learner_for(config, tokenizer)
        rollout = rollout_of(learner, tokenizer, problems)
        stale = dataclasses.replace(rollout, behaviour_logprobs=rollout.behaviour_logprobs - math.log(2))
        rewards = torch.randn(rollout.input_ids.shape, generator=torch.Generator().manual_seed(0))
        experience, metrics = make_experience(learner, stale, rewards * rollout.action_mask)
        losses[level, cap] = ppo_update(learner, experience, train_policy=True)["policy/loss"]
        assert metrics["rollout/mismatch_mean"] == pytest.approx(math.log(2), abs=1e-4)
    assert losses["token", 4.0] == pytest.approx(2 * losses["off", 2.0], rel=1e-4)
    assert losses["token", 1.5] == pytest.approx(1.5 * losses["off", 2.0], rel=1e-4)


def test_logprobs_noted_while_sampling_stand_for_the_actors_own_pass(tmp_path) -> None:
    tokenizer, problems = world(8)
    found = {}
    for source in ("recomputed", "sampled"):
        rollout_settings = {
            "problems_per_iteration": 8,
            "samples_per_problem": 16,
            "max_new_tokens": 12,
            "old_logprobs": source,
        }
        config = settings(tmp_path, rollout=rollout_settings, update={"minibatch_size": 128})
        learner = learner_for(config, tokenizer)
        rollout = rollout_of(learner, tokenizer, problems)
        passes: list[bool] = []
        learner.actor.module.register_forward_pre_hook(lambda *_, passes=passes: passes.append(True))
        rewards = torch.randn(rollout.input_ids.shape, generator=torch.Generator().manual_seed(0))
        experience, metrics = make_experience(learner, rollout, rewards * rollout.action_mask)
        found[source] = experience, metrics, len(passes)
    (ours, measured, own), (theirs, noted, none) = found["recomputed"], found["sampled"]
    assert own > 0 and none == 0
    for name in ("old_logprobs", "advantages", "returns"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-4, atol=1e-4)
    assert noted["policy/kl_per_response"] == pytest.approx(measured["policy/kl_per_response"], abs=1e-3)
    # 128 responses: the mean surprise is the mean entropy up to sampling.
    assert noted["policy/entropy"] == pytest.approx(measured["policy/entropy"], rel=0.05)
    assert "rollout/mismatch_mean" in measured and "rollout/mismatch_mean" not in noted


@pytest.mark.parametrize("other", [{"top_p": 0.9}, {"top_k": 5}, {"truncated_is": "token"}])
def test_logprobs_noted_while_sampling_are_refused_where_they_are_others(tmp_path, other) -> None:
    with pytest.raises(UserError, match=r"rollout\.old_logprobs"):
        settings(tmp_path, rollout={"old_logprobs": "sampled", **other})
