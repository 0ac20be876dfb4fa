"""The implicit PRM that learns during a run: its token rewards, its loss, its updates, its checkpoint."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from rl_scripted import gather
from rl_world import tiny_policy, world

from prm.checkpoint import load_latest, save_checkpoint
from prm.implicit import new_implicit
from reasoning_rl.group import returns_to_go
from reasoning_rl.prime import OnlineImplicitPRM
from reasoning_rl.process_config import ImplicitConfig
from reasoning_rl.types import Scores

BETA = 0.5


def batch():
    """Eight answers, half of them right; the wrong ones subtract where they should add."""
    tokenizer, problems = world(8)
    texts = [p.solution if i % 2 else p.solution.replace("+", "-") + "\n" for i, p in enumerate(problems)]
    rollout = gather(tokenizer, problems, texts)
    outcomes = torch.tensor([float(i % 2) for i in range(8)])
    empty = torch.zeros(rollout.step_mask.shape)
    return tokenizer, rollout, Scores(empty, empty > 0, outcomes, torch.ones(8, dtype=torch.bool))


def online(tokenizer, *, changed: bool = True, **over) -> OnlineImplicitPRM:
    prm = new_implicit(tiny_policy(tokenizer), beta=BETA)
    if changed:
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in prm.policy.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    config = ImplicitConfig(
        **{"weight": 1.0, "beta": BETA, "learning_rate": 1e-2, "minibatch_size": 4} | over
    )
    return OnlineImplicitPRM(prm, config, Accelerator(cpu=True), micro_batch_tokens=150)


def slow_ratio(prm, ids: list[int], t: int) -> float:
    """log pi - log pi_ref of token t, in float64, from the prefix alone."""
    values = []
    for model in (prm.policy, prm.reference):
        with torch.no_grad():
            logits = copy.deepcopy(model).double()(torch.tensor([ids[:t]])).logits[0, -1]
        values.append(logits.log_softmax(-1)[ids[t]].item())
    return values[0] - values[1]


def test_a_tokens_reward_is_beta_times_its_log_ratio() -> None:
    tokenizer, rollout, _ = batch()
    implicit = online(tokenizer, normalise="off")
    rewards = implicit.token_rewards(rollout)
    assert bool((rewards[~rollout.action_mask] == 0).all())
    for row, t in ((0, int(rollout.action_mask[0].nonzero()[0])), (3, int(rollout.lengths[3]) - 1)):
        expected = BETA * slow_ratio(implicit.prm, rollout.input_ids[row].tolist(), t)
        assert rewards[row, t].item() == pytest.approx(expected, abs=1e-5)


def test_normalised_returns_stay_within_one_and_keep_their_order() -> None:
    tokenizer, rollout, _ = batch()
    plain = online(tokenizer, normalise="off").token_rewards(rollout)
    scaled = online(tokenizer).token_rewards(rollout)
    largest = returns_to_go(plain, rollout.action_mask).abs().max()
    torch.testing.assert_close(scaled, plain / largest, rtol=1e-5, atol=1e-6)


def test_an_untrained_model_is_its_reference_and_pays_nothing() -> None:
    tokenizer, rollout, _ = batch()
    assert online(tokenizer, changed=False).token_rewards(rollout).abs().max() == 0


def test_the_loss_is_the_cross_entropy_of_outcomes_and_unjudged_answers_are_left_out() -> None:
    tokenizer, rollout, scores = batch()
    implicit = online(tokenizer, learning_rate=1e-12, minibatch_size=8)
    judged = torch.tensor([True] * 6 + [False] * 2)
    scores = Scores(scores.step_scores, scores.scored, scores.outcomes, judged)
    metrics = implicit.update(rollout, scores)
    losses, right = [], 0
    for row in range(6):
        ids = rollout.input_ids[row, : rollout.lengths[row]].tolist()
        begin = int(rollout.action_mask[row].nonzero()[0])
        z = BETA * sum(slow_ratio(implicit.prm, ids, t) for t in range(begin, len(ids)))
        p = 1 / (1 + math.exp(-z))
        losses.append(-math.log(p if scores.outcomes[row] else 1 - p))
        right += (z >= 0) == bool(scores.outcomes[row])
    assert metrics["implicit/loss"] == pytest.approx(sum(losses) / 6, rel=1e-4)
    assert metrics["implicit/accuracy"] == pytest.approx(right / 6)


def test_it_learns_to_tell_right_answers_and_to_pay_the_tokens_that_differ() -> None:
    tokenizer, rollout, scores = batch()
    implicit = online(tokenizer, changed=False, normalise="off", epochs=4)
    before = implicit.update(rollout, scores)["implicit/loss"]
    for _ in range(4):
        metrics = implicit.update(rollout, scores)
    assert metrics["implicit/loss"] < 0.3 * before and metrics["implicit/accuracy"] == 1
    totals = implicit.token_rewards(rollout).sum(1)
    assert totals[scores.outcomes == 1].min() > totals[scores.outcomes == 0].max()
    reference = online(tokenizer, changed=False).prm.reference.state_dict()
    for name, value in implicit.prm.reference.state_dict().items():
        assert torch.equal(value, reference[name]), "the reference is frozen"


def test_a_gradient_does_not_depend_on_the_micro_batches() -> None:
    tokenizer, rollout, scores = batch()
    changed = []
    for tokens in (60, 100_000):
        implicit = online(tokenizer, minibatch_size=8)
        implicit.micro_batch_tokens = tokens
        torch.manual_seed(0)
        implicit.update(rollout, scores)
        changed.append(implicit.prm.policy.state_dict())
    for name in changed[0]:
        torch.testing.assert_close(changed[0][name], changed[1][name], rtol=1e-4, atol=2e-5)


def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    tokenizer, rollout, scores = batch()
    implicit = online(tokenizer, minibatch_size=8)
    before = copy.deepcopy(implicit.prm.policy.state_dict())
    outcomes = scores.outcomes.clone()
    outcomes[0] = float("nan")
    metrics = implicit.update(rollout, Scores(scores.step_scores, scores.scored, outcomes, scores.judged))
    assert metrics["implicit/skipped"] == 1
    assert all(torch.equal(before[name], value) for name, value in implicit.prm.policy.state_dict().items())


def test_its_weights_and_optimiser_survive_a_checkpoint(tmp_path) -> None:
    tokenizer, rollout, scores = batch()
    whole, first = online(tokenizer), online(tokenizer)
    torch.manual_seed(3)
    for _ in range(2):
        whole.update(rollout, scores)
    torch.manual_seed(3)
    first.update(rollout, scores)
    save_checkpoint(tmp_path, 1, first.parts())
    second = online(tokenizer, changed=False)
    assert load_latest(tmp_path, second.parts()) == 1
    second.update(rollout, scores)
    assert torch.equal(whole.token_rewards(rollout), second.token_rewards(rollout))
