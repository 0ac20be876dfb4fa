"""Every ingredient of PPO-max is one field, and the field does what it says: each test fails without it."""

import copy

import pytest
import torch
from rl_runs import experience_of, learner_for, rollout_of, run, settings
from rl_world import OracleScorer, oracle_grader, taught_policy, tiny_policy, world
from transformers import AutoModelForSequenceClassification

from data.errors import UserError
from data.schema import Verdict
from prm.checkpoint import save_model
from reasoning_rl.advantages import make_experience
from reasoning_rl.compose import _critic
from reasoning_rl.config import RewardConfig
from reasoning_rl.experience import score_rollout, task_rewards
from reasoning_rl.functional import gae
from reasoning_rl.models import Actor, Critic
from reasoning_rl.moments import RunningMoments
from reasoning_rl.ptx import Demonstrations
from reasoning_rl.sft import encode_pairs
from reasoning_rl.update import ppo_update

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# These tests read their folders by prm.model.load_tokenizer.
pytestmark = pytest.mark.filterwarnings("ignore:.*AutoTokenizer reads this tokenizer")


def made(tmp_path, **over):
    """(learner, rollout, rewards, experience) of one batch with a critic that says something."""
    tokenizer, policy = taught_policy()
    _, problems = world(8)
    over.setdefault("rollout", {"problems_per_iteration": 8, "samples_per_problem": 2, "max_new_tokens": 40})
    config = settings(tmp_path, **over)
    learner = learner_for(config, tokenizer, policy=policy)
    torch.manual_seed(0)
    torch.nn.init.normal_(learner.critic_model.score.weight)
    learner.reference = Actor(tiny_policy(tokenizer, seed=9, hidden=48)).requires_grad_(False)
    rollout = rollout_of(learner, tokenizer, problems)
    assert 0 < int(rollout.complete.sum()) < len(rollout.complete), "some answers must be cut, some not"
    rewards = torch.randn(rollout.input_ids.shape, generator=torch.Generator().manual_seed(1))
    rewards = rewards * rollout.action_mask
    return learner, rollout, rewards, make_experience(learner, rollout, rewards)[0]


def values_of(learner, rollout):
    with torch.no_grad():
        return Critic(learner.critic_model)(rollout.input_ids, rollout.action_mask, rollout.lengths)


def test_advantages_are_whitened_then_clipped(tmp_path) -> None:
    _, rollout, _, plain = made(tmp_path)
    update = {"minibatch_size": 8, "advantage_norm": True, "advantage_clip": 0.5}
    _, _, _, done = made(tmp_path, update=update)
    entries = plain.advantages[rollout.action_mask].double()
    white = (entries - entries.mean()) / entries.std(unbiased=False)
    torch.testing.assert_close(
        done.advantages[rollout.action_mask].double(), white.clamp(-0.5, 0.5), rtol=1e-4, atol=1e-4
    )


def test_the_critic_has_a_lambda_of_its_own(tmp_path) -> None:
    update = {"minibatch_size": 8, "lam": 0.5}
    learner, rollout, rewards, own = made(tmp_path, update=update | {"critic_lam": 1.0})
    _, _, _, shared = made(tmp_path, update=update)
    values, final = values_of(learner, rollout)
    options = {"gamma": 1.0, "bootstrap_values": final * ~rollout.complete}
    advantages, returns = gae(rewards, values, rollout.action_mask, lam=0.5, **options)
    torch.testing.assert_close(own.advantages, advantages, **CLOSE)
    torch.testing.assert_close(shared.returns, returns, **CLOSE)
    _, monte_carlo = gae(rewards, values, rollout.action_mask, lam=1.0, **options)
    torch.testing.assert_close(own.returns, monte_carlo, **CLOSE)
    assert (monte_carlo - returns).abs().max() > 0.1


def test_lambda_follows_each_answers_length(tmp_path) -> None:
    update = {"minibatch_size": 8, "adaptive_lam_alpha": 0.2, "lam": 0.0}
    learner, rollout, rewards, done = made(tmp_path, update=update)
    values, final = values_of(learner, rollout)
    lengths = rollout.action_mask.sum(1)
    assert lengths.min() < lengths.max()
    for row in range(len(lengths)):
        one, lam = slice(row, row + 1), max(0.0, 1 - 1 / (0.2 * float(lengths[row])))
        expected, _ = gae(
            rewards[one],
            values[one],
            rollout.action_mask[one],
            gamma=1.0,
            lam=lam,
            bootstrap_values=final[one] * ~rollout.complete[one],
        )
        torch.testing.assert_close(done.advantages[one], expected, **CLOSE)


def test_a_cut_answer_goes_on_ends_or_is_left_out(tmp_path) -> None:
    """With lambda 1 the first advantage is return - value: what differs is the value of what was cut off."""
    done = {}
    for kind in ("bootstrap", "end", "mask"):
        update = {"minibatch_size": 8, "lam": 1.0, "truncated": kind}
        learner, rollout, _, done[kind] = made(tmp_path, update=update)
    _, final = values_of(learner, rollout)
    first = rollout.action_mask & (rollout.action_mask.cumsum(1) == 1)
    gap = (done["bootstrap"].advantages - done["end"].advantages)[first]
    torch.testing.assert_close(gap, torch.where(rollout.complete, 0.0, final), **CLOSE)
    assert torch.equal(done["mask"].loss_mask.any(1), rollout.complete)
    assert torch.equal(done["end"].loss_mask, rollout.action_mask)
    # Nothing learns from an answer that is left out, neither the policy nor the critic.
    done["mask"].advantages[~rollout.complete] = 1e6
    done["mask"].returns[~rollout.complete] = 1e6
    learner, *_ = made(tmp_path, update={"minibatch_size": 16, "truncated": "mask"})
    stats = ppo_update(learner, done["mask"], train_policy=True)
    assert abs(stats["policy/loss"]) < 100 and stats["critic/loss"] < 1e4


def test_answers_that_are_left_out_do_not_whiten_the_others(tmp_path) -> None:
    update = {"minibatch_size": 8, "truncated": "mask"}
    _, _, _, plain = made(tmp_path, update=update)
    _, _, _, white = made(tmp_path, update=update | {"advantage_norm": True})
    entries = plain.advantages[plain.loss_mask].double()
    expected = (entries - entries.mean()) / entries.std(unbiased=False)
    torch.testing.assert_close(white.advantages[plain.loss_mask].double(), expected, rtol=1e-4, atol=1e-4)


def test_kl_is_paid_in_the_reward_or_in_the_loss_and_not_twice(tmp_path) -> None:
    kl = {"coef": 0.3, "estimator": "k2"}
    _, rollout, rewards, in_reward = made(tmp_path, kl=kl)
    _, _, _, in_loss = made(tmp_path, kl=kl | {"place": "loss"})
    _, _, _, without = made(tmp_path, kl={"coef": 0.0})
    torch.testing.assert_close(in_loss.advantages, without.advantages, rtol=0, atol=0)
    assert in_loss.ref_logprobs is not None and in_reward.ref_logprobs is None
    assert (in_reward.advantages - without.advantages).abs().max() > 0.1


def test_values_are_learned_in_normalised_units(tmp_path) -> None:
    critic = {"learning_rate": 1e-3, "value_norm": True}
    learner, rollout, _, done = made(tmp_path, critic=critic)
    _, _, _, plain = made(tmp_path)
    entries = plain.returns[rollout.action_mask].double()
    scaled = (entries - entries.mean()) / entries.std(unbiased=False)
    torch.testing.assert_close(done.returns[rollout.action_mask].double(), scaled, rtol=1e-4, atol=1e-4)
    assert learner.value_norm.num_updates == 1


def test_what_a_cut_answer_goes_on_with_is_in_the_units_of_rewards(tmp_path) -> None:
    critic = {"learning_rate": 1e-3, "value_norm": True}
    learner, rollout, rewards, _ = made(tmp_path, critic=critic)
    learner.value_norm.update(torch.tensor([10.0, 14.0]).repeat(500))
    norm = copy.deepcopy(learner.value_norm)
    done, _ = make_experience(learner, rollout, rewards)
    values, final = (norm.denormalise(v) for v in values_of(learner, rollout))
    mask = rollout.action_mask
    options = {"gamma": 1.0, "lam": learner.config.update.lam, "bootstrap_values": final * ~rollout.complete}
    expected, _ = gae(rewards, values * mask, mask, **options)
    torch.testing.assert_close(done.advantages, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("clip", "moved"), [(1e-6, False), (None, True)])
def test_the_value_clip_holds_a_critic_that_has_moved(tmp_path, clip, moved) -> None:
    """Towards the return beyond the clip there is no gradient: the critic stays where it is."""
    critic = {"learning_rate": 1e-2, "value_clip_range": clip}
    learner, rollout, _, done = made(tmp_path, critic=critic, update={"minibatch_size": 16})
    # As if the critic had moved towards the returns by a thousandth of the way.
    values = values_of(learner, rollout)[0]
    done.old_values.copy_(values - 1e-3 * (done.returns - values))
    before = copy.deepcopy(learner.critic_model.state_dict())
    ppo_update(learner, done, train_policy=False)
    changed = [not torch.equal(before[k], v) for k, v in learner.critic_model.state_dict().items()]
    assert any(changed) == moved


def test_rewards_are_scaled_by_all_that_came_before_and_clipped() -> None:
    tokenizer, policy = taught_policy()
    _, problems = world(8)
    learner = learner_for(settings("unused"), tokenizer, policy=policy)
    rollout = rollout_of(learner, tokenizer, problems)
    scores = score_rollout(OracleScorer(problems), oracle_grader, rollout)
    moments = RunningMoments()
    moments.update(torch.tensor([100.0, 300.0]))
    config = RewardConfig(form="none", normalise="standardise", clip=0.2)
    rewards, totals = task_rewards(rollout, scores, config, moments)
    history = torch.cat([torch.tensor([100.0, 300.0]), totals]).double()
    expected = ((totals.double() - history.mean()) / history.std()).clamp(-0.2, 0.2)
    torch.testing.assert_close(rewards.sum(1).double(), expected, rtol=1e-4, atol=1e-5)
    assert expected.min() == -0.2


def test_a_long_answer_costs_more_the_nearer_it_is_to_the_limit() -> None:
    tokenizer, policy = taught_policy()
    _, problems = world(8)
    learner = learner_for(settings("unused"), tokenizer, policy=policy)
    rollout = rollout_of(learner, tokenizer, problems)
    scores = score_rollout(None, lambda problem, response: Verdict("correct"), rollout)
    config = RewardConfig(form="none", normalise="off", clip=None, overlong_buffer=10)
    _, totals = task_rewards(rollout, scores, config, RunningMoments(), max_new_tokens=24)
    for row, length in enumerate(rollout.action_mask.sum(1).tolist()):
        penalty = min(0.0, max(-1.0, (24 - 10 - length) / 10))
        assert float(totals[row]) == pytest.approx(float(rollout.complete[row]) + penalty, abs=1e-6)
    assert totals.min() == -1


def test_an_entropy_bonus_raises_entropy_and_demonstrations_are_learned(tmp_path) -> None:
    """Nothing else to learn from: advantages are 0. The ptx loss falls, the entropy rises."""
    tokenizer, problems = world(16)
    measured = {}
    for name, update, policy in (
        ("entropy", {"entropy_coef": 1.0}, taught_policy()[1]),
        ("ptx", {"ptx_coef": 1.0}, tiny_policy(tokenizer)),
    ):
        config = settings(
            tmp_path,
            update={"minibatch_size": 16, "learning_rate": 3e-3} | update,
            demonstrations="in-memory",
        )
        learner = learner_for(config, tokenizer, policy=policy)
        experience, _ = experience_of(learner, tokenizer, problems[:8])
        experience.advantages.zero_()
        pairs = encode_pairs(tokenizer, [(f"{p.text}\n", p.solution) for p in problems])
        ptx = Demonstrations(pairs, batch_size=8, seed=0)
        for _ in range(4):
            stats = ppo_update(learner, experience, train_policy=True, ptx=ptx)
            _, after = experience_of(learner, tokenizer, problems[:8])
            measured.setdefault(name, []).append(stats.get("ptx/loss", after["policy/entropy"]))
    assert measured["entropy"][-1] > measured["entropy"][0] + 0.01
    assert measured["ptx"][-1] < measured["ptx"][0] - 0.01


@pytest.mark.parametrize(("limit", "held"), [({}, 0), ({"max_ratio": 1.5}, 2), ({"max_kl": 0.1}, 1)])
def test_a_policy_that_left_its_trust_region_is_not_moved_further(tmp_path, limit, held) -> None:
    """Two minibatches, both with a mean ratio of e: one is held by its ratio, KL ends the whole iteration."""
    tokenizer, problems = world(8)
    config = settings(tmp_path, update={"minibatch_size": 8, "learning_rate": 1e-3} | limit)
    learner = learner_for(config, tokenizer)
    experience, _ = experience_of(learner, tokenizer, problems)
    experience.old_logprobs.sub_(1.0)
    experience.advantages.fill_(-1.0)  # no clip stops this: a bad token that became more likely
    before = copy.deepcopy(learner.policy.state_dict())
    values = copy.deepcopy(learner.critic_model.state_dict())
    stats = ppo_update(learner, experience, train_policy=True)
    assert stats["update/held"] == held
    moved = any(not torch.equal(before[k], v) for k, v in learner.policy.state_dict().items())
    assert moved == (held == 0)
    assert any(not torch.equal(values[k], v) for k, v in learner.critic_model.state_dict().items())
    assert stats["update/num_updates"] == 2, "the critic goes on"
    assert stats["policy/ratio"] > 2, "averaged over the minibatches that the policy saw"


@pytest.mark.parametrize(("limit", "expected"), [(1e-3, 1e-3), (None, None)])
def test_the_global_gradient_norm_is_clipped(tmp_path, limit, expected) -> None:
    tokenizer, problems = world(8)
    config = settings(tmp_path, update={"minibatch_size": 16, "max_grad_norm": limit})
    learner = learner_for(config, tokenizer)
    experience, _ = experience_of(learner, tokenizer, problems)
    parameters = list(learner.policy.parameters())
    before = [p.detach().clone() for p in parameters]
    learner.actor.optimizer = torch.optim.SGD(parameters, lr=1.0)
    stats = ppo_update(learner, experience, train_policy=True)
    step = torch.stack([(a - b).norm() for a, b in zip(before, parameters, strict=True)]).norm().item()
    assert stats["policy/grad_norm"] > 1e-2, "the norm before clipping is what is logged"
    assert step == pytest.approx(expected or stats["policy/grad_norm"], rel=1e-3)


def test_a_small_buffer_is_used_four_times_and_no_more(tmp_path) -> None:
    """PPO-max's 128 rollouts in minibatches of 32, at a smaller size."""
    tokenizer, problems = world(16)
    config = settings(tmp_path, iterations=1, update={"minibatch_size": 4, "learning_rate": 1e-3})
    rows = run(config, learner_for(config, tokenizer), tokenizer, problems)
    assert rows[0]["update/num_updates"] == 4


# --- the critic's start ---


def reward_model(folder, tokenizer, num_labels: int = 1):
    config = copy.deepcopy(tiny_policy(tokenizer).config)
    config.num_labels = num_labels
    torch.manual_seed(4)
    model = AutoModelForSequenceClassification.from_config(config)
    save_model(folder, model, tokenizer)
    return model.eval()


def test_a_critic_from_a_pairwise_reward_model_says_its_reward_at_the_end(tmp_path) -> None:
    tokenizer, problems = world(4)
    model = reward_model(tmp_path / "rm", tokenizer)
    critic = {"init": "reward_model", "reward_model": str(tmp_path / "rm")}
    config = settings(tmp_path, critic=critic)
    started = _critic(config, tiny_policy(tokenizer), tokenizer, None)
    for problem in problems:
        ids = torch.tensor([tokenizer(problem.text + "\n" + problem.solution)["input_ids"]])
        with torch.no_grad():
            reward = model(ids).logits[0, 0]
            _, final = Critic(started)(ids, torch.ones_like(ids).bool(), torch.tensor([ids.shape[1]]))
        torch.testing.assert_close(final[0], reward, rtol=1e-5, atol=1e-6)


def test_what_is_no_pairwise_reward_model_is_refused(tmp_path) -> None:
    tokenizer, _ = world(1)
    policy = tiny_policy(tokenizer)
    with pytest.raises(UserError, match=r"needs critic\.reward_model"):
        settings(tmp_path, critic={"init": "reward_model"})
    reward_model(tmp_path / "two", tokenizer, num_labels=2)
    save_model(tmp_path / "lm", policy, tokenizer)
    for name in ("two", "lm"):
        critic = {"init": "reward_model", "reward_model": str(tmp_path / name)}
        with pytest.raises(UserError, match="no pairwise reward model"):
            _critic(settings(tmp_path, critic=critic), policy, tokenizer, None)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["stranger"])
    save_model(tmp_path / "other", reward_model(tmp_path / "rm", tokenizer), other)
    critic = {"init": "reward_model", "reward_model": str(tmp_path / "other")}
    with pytest.raises(UserError, match="the policy's tokenizer, and theirs differ"):
        _critic(settings(tmp_path, critic=critic), policy, tokenizer, None)
