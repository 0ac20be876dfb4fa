"""Settings of a run: what a preset fills in, and what is refused before any model is loaded."""

import pytest

from data.errors import UserError
from prm.train import PRMConfig
from reasoning_rl.config import PPOConfig
from reasoning_rl.eval_config import EvalConfig, QuickstartConfig
from reasoning_rl.options import describe
from reasoning_rl.presets import PRESETS, merge
from reasoning_rl.sft import SFTConfig

NEEDED = {"policy": "p", "prm": "r"}


def config(**values) -> PPOConfig:
    return PPOConfig.from_preset(NEEDED | values)


def test_presets_are_the_two_papers_and_the_floor() -> None:
    """Starred values of arXiv 2307.04964 and appendix A.2 of arXiv 2404.10719."""
    moss, large, vanilla = (config(preset=name) for name in ("ppo_max", "ppo_large_batch", "vanilla"))
    assert moss == config(), "ppo_max is what a config without a preset gets"
    assert (moss.rollouts_per_iteration, moss.update.minibatch_size) == (128, 32)
    assert (moss.reward.normalise, moss.reward.clip, moss.kl.coef) == ("standardise", 0.8, 0.05)
    assert (moss.critic.init, moss.critic.value_clip_range, moss.update.lam) == ("prm", 0.2, 0.9)
    # Normalised rewards and normalised advantages are rivals: no preset has both.
    assert not moss.update.advantage_norm and not moss.critic.value_norm
    assert (large.rollouts_per_iteration, large.update.minibatch_size) == (512, 128)
    assert large.update.advantage_norm and large.critic.value_norm and large.reward.normalise == "off"
    assert (large.reference_ema, large.reward.clip, large.kl.coef) == (0.001, 20.0, 0.1)
    assert (large.update.gamma, large.update.lam) == (1.0, 1.0)
    assert (vanilla.kl.coef, vanilla.reward.clip, vanilla.critic.value_clip_range) == (0.0, None, None)
    assert (vanilla.reward.normalise, vanilla.critic.pretrain_iterations) == ("off", 0)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_set_wins_over_the_preset_field_by_field(preset) -> None:
    plain = config(preset=preset)
    mine = config(preset=preset, kl={"coef": 0.3}, update={"clip_range": None})
    assert (mine.kl.coef, mine.update.clip_range) == (0.3, None)
    same = mine.model_copy(update={"kl": plain.kl, "update": plain.update})
    assert same == plain
    assert mine.update.model_copy(update={"clip_range": plain.update.clip_range}) == plain.update


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resolved_config_reads_back_equal(preset, tmp_path) -> None:
    mine = config(preset=preset, seed=3, update={"critic_lam": 1.0})
    mine.to_yaml(tmp_path / "config.yaml")
    assert PPOConfig.from_yaml(tmp_path / "config.yaml") == mine


def test_merge_lays_mapping_on_mapping_and_leaves_its_arguments_alone() -> None:
    base = {"a": 1, "b": {"c": 2, "d": 3}}
    assert merge(base, {"b": {"d": 4}, "e": 5}) == {"a": 1, "b": {"c": 2, "d": 4}, "e": 5}
    assert merge(base, {"b": None}) == {"a": 1, "b": None}
    assert base == {"a": 1, "b": {"c": 2, "d": 3}}


@pytest.mark.parametrize(
    ("problems", "samples", "minibatch", "remedy"),
    [
        (48, 2, 40, "use 32 or 48"),  # the divisors of 96 nearest to 40
        (7, 1, 3, "use 1 or 7"),
        (4, 2, 16, "use 8 or 4"),  # a minibatch larger than the batch
    ],
)
def test_an_indivisible_batch_names_the_nearest_sizes_that_divide_it(
    problems, samples, minibatch, remedy
) -> None:
    with pytest.raises(
        UserError, match=f"rollout batch {problems * samples} .*{minibatch}; {remedy}"
    ) as info:
        config(
            rollout={"problems_per_iteration": problems, "samples_per_problem": samples},
            update={"minibatch_size": minibatch},
        )
    for size in remedy.removeprefix("use ").split(" or "):
        config(
            rollout={"problems_per_iteration": problems, "samples_per_problem": samples},
            update={"minibatch_size": int(size)},
        )
    assert len(str(info.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "unknown key 'learning_rat'"),
        ({"update": {"learning_rat": 1}}, r"'update\.learning_rat'; did you mean 'learning_rate'\?"),
        ({"preset": "ppo_mx"}, r"unknown preset 'ppo_mx'; did you mean 'ppo_max'\?"),
        ({"preset": ["ppo_max"]}, "unknown preset"),
        ({"kl": {"estimator": "k4"}}, r"kl\.estimator: .*'k1', 'k2' or 'k3', got 'k4'"),
        ({"kl": 0.1}, "kl: .*dictionary"),
        ({"rollout": {"temperature": 0}}, r"rollout\.temperature: .*greater than 0, got 0"),
        ({"update": {"gamma": 1.5}}, r"update\.gamma"),
        ({"prm": None}, "reward.form needs a reward model: set prm, or reward.form to none"),
        ({"update": {"ptx_coef": 0.1}}, "set demonstrations, or ptx_coef to 0"),
        (
            {"reward_model": "m", "reward": {"implicit": {"weight": 1}}},
            "set reward_model to none, or reward.imp",
        ),
        (
            {"reward": {"implicit": {"weight": 1}, "partial_credit": "errors"}},
            "set reward.partial_credit to tes",
        ),
        ({"reward_model": "m", "reward": {"partial_credit": "tests"}}, "pays in its place: set it to off"),
        ({"algorithm": "vine", "reward_model": "m"}, "vine estimates .*: set reward_model to none"),
        (
            {"algorithm": "vine", "reward": {"partial_credit": "tests"}},
            "vine .*: set reward.partial_credit to o",
        ),
        ({"algorithm": "vine", "update": {"gamma": 0.9}}, "update.gamma discounts .*: set it to 1"),
        ({"preset": "dapo", "reward_model": "m"}, "dynamic_rounds looks for right .*: set it to 0"),
        ({"group": {"baseline": "token"}}, "group.baseline token is of rloo and reinforce_pp, and .* is ppo"),
        ({"algorithm": "grpo", "group": {"baseline": "none"}}, "group.baseline none is of rloo"),
        ({"critic": {"init": "reward_model"}}, "init: reward_model needs critic.reward_model"),
        (
            {"preset": "grpo", "rollout": {"samples_per_problem": 1}},
            "compares answers .*samples_per_problem above 1$",
        ),
        (
            {"algorithm": "rloo", "group": {"baseline": "token"}, "rollout": {"samples_per_problem": 1}},
            "or group.baseline to none",
        ),
        (
            {"preset": "grpo", "reward": {"normalise": "scale"}},
            "set reward.normalise to off .--preset grpo",
        ),
        (
            {"preset": "grpo", "kl": {"place": "reward", "coef": 0.1}},
            "grpo has its KL in the loss: set kl.place",
        ),
        ({"lora": {"rank": 4, "dropout": 0.1}}, "lora.dropout: PPO compares .*; set it to 0"),
        ({"offload": "frozen", "prm_backend": "vllm"}, "set prm_backend to local"),
        ({"lora": {"rank": 4}, "reference_ema": 0.1}, "without its adapters.*: set reference_ema to 0"),
        ({"reward": {"prover": {"model": "m"}}}, "reward.prover scores steps for form progress, not"),
        ({"preset": "grpo", "reward": {"implicit": {"weight": 1}}}, "take rloo or ppo"),
        (
            {"reward": {"overlong_buffer": 4, "outcome_weight": 0}},
            "lowers the outcome: set reward.outcome_weight above 0",
        ),
        (
            {"reward": {"overlong_buffer": 10_000, "outcome_weight": 1}},
            "10000 is longer than rollout.max_new",
        ),
        (
            {"rollout": {"dynamic_rounds": 2, "samples_per_problem": 1}},
            "dynamic_rounds compares answers: set samples_per_problem above 1",
        ),
        ({"rollout": {"old_logprobs": "sampled", "top_p": 0.9}}, "sampled needs rollout.top_p 1 and top_k 0"),
        (
            {"rollout": {"old_logprobs": "sampled", "truncated_is": "token", "top_p": 1, "top_k": 0}},
            "set rollout.old_logprobs to recomputed",
        ),
        (
            {"algorithm": "vine", "rollout": {"engine": {"backend": "vllm-server", "max_ahead": 1}}},
            "in between: set max_ahead to 0",
        ),
        ({"kl": {"place": "loss", "estimator": "k1", "coef": 0.1}}, "needs kl.estimator k2 or k3"),
        ({"kl": {"target": 6, "coef": 0}}, "set kl.coef above 0"),
        ({"hack": {"action": "raise_kl"}, "kl": {"coef": 0}}, "raise_kl multiplies kl.coef, which is 0"),
        ({"rollout": {"is_cap": 5}}, "is_cap bounds the weights of truncated_is: set that"),
    ],
)
def test_a_wrong_setting_says_which_and_how_to_mend_it(values, message) -> None:
    with pytest.raises(UserError, match=message):
        config(**values)


def test_what_needs_right_or_wrong_takes_shares_of_tests_where_it_can() -> None:
    config(reward={"implicit": {"weight": 1}, "partial_credit": "tests"})
    config(rollout={"is_cap": 5, "truncated_is": "token"})
    config(algorithm="rloo", group={"baseline": "token"})


def test_a_run_on_the_outcome_alone_needs_no_reward_model() -> None:
    assert PPOConfig.from_preset({"policy": "p", "reward": {"form": "none"}}).prm is None
    assert PPOConfig.from_preset({"policy": "p", "reward": {"step_weight": 0}}).prm is None


def test_a_missing_policy_is_named() -> None:
    with pytest.raises(UserError, match="policy: Field required"):
        PPOConfig.from_preset({"prm": "r"})


@pytest.mark.parametrize("values", [{}, {"model": "m", "samples": "s"}])
def test_an_evaluation_takes_exactly_one_of_model_and_samples(values) -> None:
    with pytest.raises(UserError, match="exactly one of --model .* and --samples"):
        EvalConfig.from_dict(values)


@pytest.mark.parametrize("model", [PPOConfig, EvalConfig, QuickstartConfig, SFTConfig, PRMConfig])
def test_every_setting_is_documented(model) -> None:
    assert [option for option, text in describe(model) if not text] == []
