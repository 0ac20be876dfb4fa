"""The PPO loop's invariants, and that it learns. The world's oracle stands in for the reward model here."""

import copy
import json
import math
from random import Random

import pytest
import torch
from rl_runs import experience_of, learner_for, rollout_of, run, settings
from rl_world import OracleScorer, oracle_grader, taught_policy, tiny_policy, world
from transformers import GraniteConfig, GraniteForCausalLM

from data.errors import UserError
from data.schema import Sampling, Verdict
from reasoning_rl.advantages import make_experience
from reasoning_rl.config import RewardConfig
from reasoning_rl.experience import collect
from reasoning_rl.learner import Learner
from reasoning_rl.models import Actor, Critic, critic_from_policy
from reasoning_rl.moments import AdaptiveKL
from reasoning_rl.ppo import run_ppo
from reasoning_rl.ptx import Demonstrations
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.sampler import ProblemSampler
from reasoning_rl.sft import encode_pairs
from reasoning_rl.telemetry import RunLog
from reasoning_rl.types import micro_batches
from reasoning_rl.update import ppo_update


class Fickle:
    """A StepScorer with an opinion of its own on every step, so that a policy that knows nothing is paid."""

    def score(self, problems, solutions):
        return [[Random(step).random() for step in steps] for steps in solutions]


def test_logprobs_and_values_are_aligned_with_their_tokens_and_blind_to_padding() -> None:
    tokenizer, problems = world(3)
    policy = tiny_policy(tokenizer)
    critic = critic_from_policy(policy)
    torch.nn.init.normal_(critic.score.weight)
    ids = torch.tensor([tokenizer(problems[0].text + "\n" + problems[0].solution)["input_ids"]])
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, 20:] = True
    logprobs, entropies = Actor(policy)(ids, mask, temperature=0.5, with_entropy=True)
    values, final = Critic(critic)(ids, mask, torch.tensor([ids.shape[1]]))
    with torch.no_grad():
        full = (policy(ids).logits[0].double() / 0.5).log_softmax(-1)
        raw = critic(ids).logits[0, :, 0]
    for t in range(ids.shape[1]):
        expected = full[t - 1, ids[0, t]].item() if mask[0, t] else 0.0
        assert logprobs[0, t].item() == pytest.approx(expected, abs=1e-5)
        assert values[0, t].item() == pytest.approx(raw[t - 1].item() if mask[0, t] else 0.0, abs=1e-6)
    assert final.item() == pytest.approx(raw[-1].item(), abs=1e-6)
    dist = full[19:-1].exp()
    torch.testing.assert_close(entropies[0, 20:].double(), -(dist * dist.log()).sum(-1), rtol=1e-4, atol=1e-5)
    padded = torch.cat([ids, torch.full((1, 7), 5)], dim=1)
    wide = torch.cat([mask, torch.zeros(1, 7, dtype=torch.bool)], dim=1)
    again, _ = Actor(policy)(padded, wide, temperature=0.5)
    torch.testing.assert_close(again[:, :-7], logprobs, rtol=1e-5, atol=1e-6)
    assert bool((again[:, -7:] == 0).all())


def test_the_first_minibatch_has_ratio_one_and_kl_zero(tmp_path) -> None:
    tokenizer, problems = world(8)
    learner = learner_for(
        settings(tmp_path, update={"minibatch_size": 16, "micro_batch_tokens": 300}), tokenizer
    )
    experience, metrics = experience_of(learner, tokenizer, problems)
    stats = ppo_update(learner, experience, train_policy=True)
    assert stats["policy/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert stats["policy/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert stats["policy/clipfrac"] == 0
    assert metrics["policy/kl_per_response"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["rollout/mismatch_max"] < 1e-4


@pytest.mark.parametrize("budget", [100, 700, 100_000])
def test_the_micro_batch_split_changes_no_weight(tmp_path, budget) -> None:
    tokenizer, problems = world(8)

    def train(tokens: int) -> Learner:
        update = {"minibatch_size": 8, "micro_batch_tokens": tokens, "learning_rate": 1e-3, "epochs": 2}
        config = settings(tmp_path, update=update, critic={"value_clip_range": 0.2, "learning_rate": 1e-3})
        learner = learner_for(config, tokenizer)
        experience, _ = experience_of(learner, tokenizer, problems)
        torch.manual_seed(1)
        ppo_update(learner, experience, train_policy=True)
        return learner

    one, other = train(2_000), train(budget)
    for a, b in zip(one.policy.parameters(), other.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)
    for a, b in zip(one.critic_model.parameters(), other.critic_model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_scaled_logits_are_the_models_own_business(tmp_path) -> None:
    """Granite divides its logits: a bare LM head gives another distribution than the one sampled from."""
    tokenizer, problems = world(4)
    torch.manual_seed(0)
    granite = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            logits_scaling=4.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()
    torch.nn.init.normal_(granite.get_output_embeddings().weight, std=1.0)
    generator = HFGenerator(granite, tokenizer)
    rollout = collect(
        generator,
        tokenizer,
        problems,
        Sampling(max_new_tokens=8),
        render=lambda t: f"{t}\n",
        splitter="newline",
    )
    logprobs, _ = Actor(granite)(rollout.input_ids, rollout.action_mask)
    torch.testing.assert_close(logprobs, rollout.behaviour_logprobs, rtol=1e-4, atol=1e-4)


def test_a_run_killed_before_its_first_checkpoint_starts_its_record_anew(tmp_path) -> None:
    tokenizer, problems = world(16)
    config = settings(tmp_path, iterations=3, save_every=0)

    def validate(generator) -> dict[str, float]:
        return {"valid/greedy": 0.5}

    log = RunLog(tmp_path)
    log(0, {"valid/greedy": 0.5})  # what a run leaves that dies in iteration 1
    rows = run(config, learner_for(config, tokenizer), tokenizer, problems, validate=validate, resume=True)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]


def test_micro_batches_hold_every_row_once_within_the_budget() -> None:
    lengths = torch.tensor([5, 90, 3, 3, 40, 41, 7])
    groups = micro_batches(lengths, 80)
    assert sorted(torch.cat(groups).tolist()) == list(range(7))
    for group in groups:
        assert len(group) == 1 or len(group) * int(lengths[group].max()) <= 80


def test_rewards_by_hand_kl_penalty_and_bootstrap(tmp_path) -> None:
    tokenizer, problems = world(8)
    config = settings(tmp_path, kl={"coef": 0.3}, update={"minibatch_size": 8, "lam": 1.0, "gamma": 1.0})
    learner = learner_for(config, tokenizer)
    learner.reference.model.load_state_dict(tiny_policy(tokenizer, seed=9).state_dict())
    rollout = rollout_of(learner, tokenizer, problems)
    rewards = torch.zeros(rollout.input_ids.shape)
    torch.nn.init.normal_(learner.critic_model.score.weight)
    experience, metrics = make_experience(learner, rollout, rewards)
    ids = rollout.input_ids
    with torch.no_grad():
        for row in range(4):
            n = int(rollout.lengths[row])
            begin = int(rollout.action_mask[row].nonzero()[0])
            new = learner.policy(ids[row : row + 1, :n]).logits[0].log_softmax(-1)
            ref = learner.reference.model(ids[row : row + 1, :n]).logits[0].log_softmax(-1)
            kl = [float(new[t - 1, ids[row, t]] - ref[t - 1, ids[row, t]]) for t in range(begin, n)]
            values = learner.critic_model(ids[row : row + 1, :n]).logits[0, :, 0]
            tail = 0.0 if rollout.complete[row] else float(values[n - 1])
            expected = -0.3 * sum(kl) + tail - float(values[begin - 1])
            assert float(experience.advantages[row, begin]) == pytest.approx(expected, abs=1e-3)
    assert metrics["policy/kl_per_response"] > 0


def test_critic_pretraining_leaves_the_policy_alone_and_fits_the_returns(tmp_path) -> None:
    _, problems = world(16)
    config = settings(tmp_path, critic={"pretrain_iterations": 6, "learning_rate": 3e-3}, iterations=6)
    config = config.model_copy(update={"reward": RewardConfig(form="none", normalise="off")})
    tokenizer, policy = taught_policy()
    learner = learner_for(config, tokenizer, policy=policy)
    before = copy.deepcopy(learner.policy.state_dict())
    rows = run(config, learner, tokenizer, problems, grader=lambda problem, response: Verdict("correct"))
    for name, value in learner.policy.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert rows[-1]["critic/loss"] < 0.5 * rows[0]["critic/loss"]
    assert "policy/loss" not in rows[-1]


FULL = {
    "reference_ema": 0.1,
    "kl": {"coef": 0.1, "target": 1.0},
    "critic": {"pretrain_iterations": 1, "value_norm": True, "learning_rate": 1e-3},
    "update": {
        "minibatch_size": 8,
        "learning_rate": 1e-3,
        "advantage_norm": True,
        "ptx_coef": 0.1,
        "entropy_coef": 0.01,
        "epochs": 2,
        "schedule": "linear",
        "warmup_iterations": 1,
    },
    "demonstrations": "in-memory",
    "reward": {"form": "min", "normalise": "standardise", "clip": 2.0},
}


def demonstrations_for(tokenizer, problems) -> Demonstrations:
    pairs = encode_pairs(tokenizer, [(f"{p.text}\n", p.solution) for p in problems])
    return Demonstrations(pairs, batch_size=4, seed=3)


def test_one_seed_repeats_bit_for_bit_and_resume_equals_the_uninterrupted_run(tmp_path) -> None:
    """Every moving part is on: EMA reference, adaptive KL, value norm, ptx, reward moments, schedules."""
    tokenizer, problems = world(16)
    runs = {}
    for name in ("whole", "again", "stopped"):
        config = settings(tmp_path / name, **FULL, iterations=6)
        learner = learner_for(config, tokenizer)
        ptx = demonstrations_for(tokenizer, problems)
        if name == "stopped":
            first = config.model_copy(update={"iterations": 6})
            stop_after(3, first, learner, tokenizer, problems, ptx)
            learner = learner_for(config, tokenizer, seed=5)  # a fresh process knows other weights
            ptx = demonstrations_for(tokenizer, problems)
        run(config, learner, tokenizer, problems, demonstrations=ptx, resume=name == "stopped")
        runs[name] = (
            (tmp_path / name / "metrics.jsonl").read_bytes(),
            {k: v.clone() for k, v in learner.policy.state_dict().items()},
        )
    for name in ("again", "stopped"):
        assert runs[name][0] == runs["whole"][0]
        assert all(torch.equal(runs[name][1][k], v) for k, v in runs["whole"][1].items())


class Stop(Exception):
    pass


def stop_after(iteration: int, config, learner, tokenizer, problems, ptx) -> None:
    """Run, and die in the middle of the iteration after `iteration`, before it is logged or saved."""

    class Dying(OracleScorer):
        calls = 0

        def score(self, *args):
            self.calls += 1
            if self.calls > iteration:
                raise Stop
            return super().score(*args)

    with pytest.raises(Stop):
        run_ppo(
            config,
            learner=learner,
            tokenizer=tokenizer,
            problems=problems,
            render=lambda text: f"{text}\n",
            scorer=Dying(problems),
            grader=oracle_grader,
            log=RunLog(config.output_dir),
            demonstrations=ptx,
        )


def test_the_reference_follows_by_eta(tmp_path) -> None:
    tokenizer, policy = taught_policy()
    _, problems = world(16)
    config = settings(tmp_path, reference_ema=0.25, iterations=1)
    learner = learner_for(config, tokenizer, policy=policy)
    before = copy.deepcopy(learner.reference.model.state_dict())
    run(config, learner, tokenizer, problems, scorer=Fickle())
    after = learner.policy.state_dict()
    assert max((after[name] - value).abs().max() for name, value in before.items()) > 1e-4, "the policy moved"
    for name, value in learner.reference.model.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * after[name], rtol=1e-5, atol=1e-7)


def test_the_kl_controller_hears_of_every_iteration(tmp_path) -> None:
    tokenizer, policy = taught_policy()
    _, problems = world(16)
    config = settings(tmp_path, kl={"coef": 0.1, "target": 0.5, "horizon": 100.0}, iterations=3)
    learner = learner_for(config, tokenizer, policy=policy)
    rows = run(config, learner, tokenizer, problems, scorer=Fickle())
    controller = AdaptiveKL(0.1, target=0.5, horizon=100.0)
    coefs = [controller.update(row["policy/kl_per_response"], 16) for row in rows if row["iteration"]]
    assert [row["kl/coef"] for row in rows if row["iteration"]] == pytest.approx(coefs, rel=1e-9)
    assert len(set(coefs)) == 3 and 0.1 not in coefs


def test_a_non_finite_minibatch_is_skipped_counted_and_finally_fatal(tmp_path) -> None:
    tokenizer, problems = world(8)
    learner = learner_for(settings(tmp_path), tokenizer)
    experience, _ = experience_of(learner, tokenizer, problems)
    before = copy.deepcopy(learner.policy.state_dict())
    broken = copy.deepcopy(experience)
    broken.advantages[broken.action_mask] = math.nan
    stats = ppo_update(learner, broken, train_policy=True)
    assert stats["update/skipped"] == 2 and "policy/loss" not in stats
    assert all(torch.equal(v, before[k]) for k, v in learner.policy.state_dict().items())
    with pytest.raises(UserError, match="not finite in 5 updates in a row"):
        for _ in range(2):
            ppo_update(learner, broken, train_policy=True)


def test_a_reward_within_reach_is_learned_on_every_seed(tmp_path) -> None:
    """Paid for at most three lines, which about a third of the taught answers have."""

    def grader(problem, response) -> Verdict:
        return Verdict("correct" if response.count("\n") <= 2 else "wrong")

    _, problems = world(256)
    for seed in (0, 1, 2):
        config = settings(
            tmp_path / str(seed),
            seed=seed,
            iterations=15,
            rollout={"problems_per_iteration": 64, "samples_per_problem": 1, "max_new_tokens": 48},
            reward={"form": "none", "normalise": "standardise", "clip": 5.0},
            update={"minibatch_size": 16, "learning_rate": 2e-3, "lam": 0.95},
            critic={"learning_rate": 3e-3},
            save_every=0,
        )
        tokenizer, policy = taught_policy()
        learner = learner_for(config, tokenizer, policy=policy)
        rows = run(config, learner, tokenizer, problems, grader=grader)
        first, last = rows[0]["reward/outcome"], rows[-1]["reward/outcome"]
        assert last > first + 0.25, (seed, first, last)


def test_problem_sampler_covers_an_epoch_before_repeating_and_resumes() -> None:
    _, problems = world(10)
    sampler = ProblemSampler(problems, seed=1)
    drawn = [p.id for _ in range(5) for p in sampler.next(4)]
    assert sorted(drawn[:10]) == sorted(p.id for p in problems)
    assert sorted(drawn[10:]) == sorted(p.id for p in problems)
    other = ProblemSampler(problems, seed=1)
    other.next(6)
    resumed = ProblemSampler(problems, seed=1)
    resumed.load_state_dict(other.state_dict())
    assert resumed.next(7) == other.next(7)
    with pytest.raises(UserError, match="cannot resume: num_problems was 10 and is now 9"):
        ProblemSampler(problems[:9], 1).load_state_dict(sampler.state_dict())
    with pytest.raises(UserError, match="cannot resume: seed was 1 and is now 2"):
        ProblemSampler(problems, 2).load_state_dict(sampler.state_dict())
    with pytest.raises(UserError, match="cannot resume: problems was"):
        ProblemSampler(problems[::-1], 1).load_state_dict(sampler.state_dict())


def test_a_second_run_in_the_same_folder_needs_resume(tmp_path) -> None:
    tokenizer, problems = world(8)
    config = settings(tmp_path, iterations=1)
    run(config, learner_for(config, tokenizer), tokenizer, problems)
    with pytest.raises(UserError, match="add --resume or change output_dir"):
        run(config, learner_for(config, tokenizer), tokenizer, problems)


def test_metrics_and_timing_are_apart_and_json(tmp_path) -> None:
    tokenizer, problems = world(8)
    config = settings(tmp_path, iterations=2)
    rows = run(config, learner_for(config, tokenizer), tokenizer, problems)
    assert [row["iteration"] for row in rows] == [1, 2]
    assert not any(key.startswith(("time/", "memory/")) for row in rows for key in row)
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert all(row["time/update_seconds"] > 0 and row["memory/peak_rss_mb"] > 0 for row in timing)
