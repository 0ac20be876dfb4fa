"""GRPO, RLOO and REINFORCE++ in the loop: no critic anywhere, the advantages of group.py, and they learn."""

import copy
from random import Random

import pytest
import torch
from rl_runs import learner_for, rollout_of, run, settings
from rl_world import taught_policy, world

from data.errors import UserError
from data.schema import Verdict
from prm.checkpoint import list_checkpoints
from reasoning_rl.advantages import make_group_experience
from reasoning_rl.config import PPOConfig
from reasoning_rl.experience import score_rollout, task_rewards
from reasoning_rl.functional import kl_estimate, overlong_penalty
from reasoning_rl.group import grpo_outcome, grpo_process, reinforce_pp, rloo
from reasoning_rl.models import Actor
from reasoning_rl.moments import RunningMoments
from reasoning_rl.shaping import place_on_last_action

ALGORITHMS = ("grpo", "rloo", "reinforce_pp")


def short_is_right(problem, response) -> Verdict:
    """Correct: at most three lines, which about a third of the taught answers have."""
    return Verdict("correct" if response.count("\n") <= 2 else "wrong")


class Fickle:
    """A StepScorer with an opinion of its own on every step, the same each time."""

    def score(self, problems, solutions):
        return [[Random(step).random() for step in steps] for steps in solutions]


def config_for(tmp_path, algorithm: str, **over) -> PPOConfig:
    base = {
        "preset": algorithm,
        "algorithm": algorithm,
        "rollout": {"problems_per_iteration": 8, "samples_per_problem": 4, "max_new_tokens": 48},
        "update": {"minibatch_size": 16, "learning_rate": 1e-3},
    }
    return settings(tmp_path, **(base | over))


def test_an_algorithm_brings_its_own_preset() -> None:
    needed = {"policy": "p", "prm": "r"}
    for algorithm in ALGORITHMS:
        config = PPOConfig.from_preset(needed | {"algorithm": algorithm})
        assert config == PPOConfig.from_preset(needed | {"preset": algorithm})
        assert config.algorithm == config.preset == algorithm and config.reward.normalise == "off"
    grpo, dr, dapo = (PPOConfig.from_preset(needed | {"preset": n}) for n in ("grpo", "dr_grpo", "dapo"))
    assert (grpo.kl.place, grpo.kl.estimator, grpo.kl.coef) == ("loss", "k3", 0.04)
    assert (grpo.update.loss_aggregation, grpo.group.divide_by_std) == ("sequence", True)
    assert (dr.update.loss_aggregation, dr.group.divide_by_std, dr.kl.coef) == ("fixed", False, 0.0)
    assert (dapo.update.clip_range, dapo.update.clip_range_high, dapo.kl.coef) == (0.2, 0.28, 0.0)
    assert dapo.update.loss_aggregation == "token" and dapo.rollout.dynamic_rounds > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm": "grpo", "rollout": {"samples_per_problem": 1}}, "samples_per_problem above 1$"),
        ({"algorithm": "rloo", "rollout": {"samples_per_problem": 1}}, "or group.baseline to none"),
        ({"algorithm": "grpo", "preset": "ppo_max"}, "rollout.samples_per_problem above 1"),
        (
            {"algorithm": "reinforce_pp", "preset": "ppo_max", "group": {"baseline": "none"}},
            "--preset reinforce_pp",
        ),
        ({"algorithm": "grpo", "kl": {"place": "reward"}}, "set kl.place loss and kl.estimator k3"),
        ({"algorithm": "grpo", "kl": {"estimator": "k1"}}, "gradient of k1 is 0"),
        ({"reward": {"overlong_buffer": 300}}, "longer than rollout.max_new_tokens 256"),
        ({"reward": {"overlong_buffer": 9, "outcome_weight": 0}}, "set reward.outcome_weight above 0"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(values, message) -> None:
    with pytest.raises(UserError, match=message):
        PPOConfig.from_preset({"policy": "p", "prm": "r"} | values)


@pytest.mark.parametrize(
    ("algorithm", "form", "weights"),
    [
        ("grpo", "none", (1.0, 1.0)),
        ("grpo", "sum", (0.5, 0.0)),
        ("grpo", "delta", (0.5, 2.0)),
        ("rloo", "none", (1.0, 1.0)),
        ("rloo", "min", (0.5, 2.0)),
        ("reinforce_pp", "delta", (0.5, 2.0)),
    ],
)
def test_the_loop_trains_on_the_estimators_advantages(tmp_path, algorithm, form, weights) -> None:
    """Outcome rewards, process rewards and both, with the KL penalty where it belongs."""
    tokenizer, policy = taught_policy()
    _, problems = world(8)
    step_weight, outcome_weight = weights
    reward = {"form": form, "step_weight": step_weight, "outcome_weight": outcome_weight}
    learner = learner_for(config_for(tmp_path, algorithm, reward=reward), tokenizer, policy=policy)
    config = learner.config
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.lm_head.weight.mul_(0.9)
    learner.reference = Actor(other).requires_grad_(False)
    rollout = rollout_of(learner, tokenizer, problems)
    scores = score_rollout(Fickle(), short_is_right, rollout)
    rewards, _ = task_rewards(rollout, scores, config.reward, RunningMoments())
    experience, metrics = make_group_experience(learner, rollout, scores, rewards)
    assert experience.old_values is None and experience.returns is None
    mask, size = rollout.action_mask, 4
    with torch.no_grad():
        ref, _ = learner.reference(rollout.input_ids, mask)
    if algorithm == "grpo":
        assert metrics["policy/kl_per_response"] > 0 and learner.kl.coef > 0
        torch.testing.assert_close(experience.ref_logprobs, ref, rtol=1e-4, atol=1e-4)
        expected = outcome_weight * grpo_outcome(scores.outcomes, group_size=size)[:, None] * mask
        if form != "none":
            ends = torch.zeros_like(mask)
            for row, (columns, counted) in enumerate(zip(rollout.step_ends, scores.scored, strict=True)):
                ends[row, columns[counted]] = True
            alone = config.reward.model_copy(update={"step_weight": 1.0, "outcome_weight": 0.0})
            steps, _ = task_rewards(rollout, scores, alone, RunningMoments())
            expected = expected + step_weight * grpo_process(steps, ends, mask, group_size=size)
    else:
        penalty = kl_estimate(experience.old_logprobs, ref, "k1") * mask
        paid = rewards - config.kl.coef * penalty
        estimate = rloo if algorithm == "rloo" else reinforce_pp
        expected = estimate(paid, mask, group_size=size, baseline=config.group.baseline)
    torch.testing.assert_close(experience.advantages, expected, rtol=1e-4, atol=1e-4)
    assert experience.advantages.abs().max() > 0.1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_critic_is_held_trained_or_saved_and_the_run_resumes(tmp_path, algorithm) -> None:
    _, problems = world(32)
    finals = []
    for name in ("whole", "stopped"):
        config = config_for(
            tmp_path / name,
            algorithm,
            iterations=3,
            critic={"pretrain_iterations": 2},
            rollout={"problems_per_iteration": 4, "samples_per_problem": 2, "max_new_tokens": 24},
            update={"minibatch_size": 8, "learning_rate": 1e-3},
        )
        tokenizer, policy = taught_policy()
        learner = learner_for(config, tokenizer, policy=policy)
        assert learner.critic is None and learner.critic_model is None
        if name == "stopped":
            run(config.model_copy(update={"iterations": 2}), learner, tokenizer, problems)
            learner = learner_for(config, tokenizer, policy=taught_policy()[1])
        rows = run(config, learner, tokenizer, problems, resume=name == "stopped")
        finals.append(learner.policy.state_dict())
        files = {path.name for path in list_checkpoints(tmp_path / name)[-1].iterdir()}
        assert "policy.pt" in files and not any("critic" in file or "value" in file for file in files)
        assert not any(key.startswith("critic/") for row in rows for key in row)
        assert "policy/loss" in rows[0], "without a critic there is nothing to pre-train"
    assert all(torch.equal(finals[1][k], v) for k, v in finals[0].items())
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_reward_within_reach_is_learned(tmp_path, algorithm) -> None:
    _, problems = world(256)
    config = config_for(
        tmp_path,
        algorithm,
        iterations=8,
        rollout={"problems_per_iteration": 16, "samples_per_problem": 4, "max_new_tokens": 32},
        reward={"form": "none"},
        update={"minibatch_size": 16, "learning_rate": 3e-3},
        save_every=0,
    )
    tokenizer, policy = taught_policy()
    learner = learner_for(config, tokenizer, policy=policy)
    rows = run(config, learner, tokenizer, problems, grader=short_is_right)
    first, last = rows[0]["reward/outcome"], rows[-1]["reward/outcome"]
    assert last > first + 0.25, (first, last)


def estimated(tmp_path, algorithm: str, **over):
    """(rollout, scores, rewards, the loop's advantages) without a KL penalty."""
    tokenizer, policy = taught_policy()
    _, problems = world(8)
    config = config_for(tmp_path, algorithm, kl={"coef": 0.0}, **over)
    learner = learner_for(config, tokenizer, policy=policy)
    rollout = rollout_of(learner, tokenizer, problems)
    scores = score_rollout(Fickle(), short_is_right, rollout)
    limit = config.rollout.max_new_tokens
    rewards, _ = task_rewards(rollout, scores, config.reward, RunningMoments(), max_new_tokens=limit)
    experience, _ = make_group_experience(learner, rollout, scores, rewards)
    return rollout, scores, rewards, experience.advantages


def test_grpo_too_pays_less_for_answers_near_the_limit(tmp_path) -> None:
    reward = {"form": "none", "overlong_buffer": 40}
    rollout, scores, _, advantages = estimated(tmp_path, "grpo", reward=reward)
    penalty = overlong_penalty(rollout.action_mask.sum(1), max_length=48, buffer=40)
    outcomes = scores.outcomes * rollout.complete + penalty
    expected = grpo_outcome(outcomes, group_size=4)[:, None] * rollout.action_mask
    assert penalty.min() < 0 and penalty.max() > penalty.min()
    torch.testing.assert_close(advantages, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce_pp"])
@pytest.mark.parametrize("baseline", ["none", "response", "token"])
def test_the_baseline_is_the_one_that_is_set(tmp_path, algorithm, baseline) -> None:
    reward = {"form": "min", "normalise": "off"}
    rollout, scores, rewards, advantages = estimated(
        tmp_path, algorithm, group={"baseline": baseline}, reward=reward
    )
    estimate = rloo if algorithm == "rloo" else reinforce_pp
    process = rewards - place_on_last_action(scores.outcomes * rollout.complete, rollout.action_mask)
    expected = {
        name: estimate(rewards, rollout.action_mask, group_size=4, baseline=name, process=process)
        for name in ("none", "response", "token")
    }
    torch.testing.assert_close(advantages, expected[baseline], rtol=1e-4, atol=1e-4)
    assert all((expected[baseline] - e).abs().max() > 0.01 for n, e in expected.items() if n != baseline)
