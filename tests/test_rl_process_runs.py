"""Whole runs, from settings: provers, PRIME and VinePPO in the loop; what the hack gauge's alarms set off."""

import shutil
import warnings
from pathlib import Path

import pytest
from accelerate import Accelerator
from rl_world import taught_policy, tiny_policy

from data.errors import UserError
from prm.checkpoint import list_checkpoints, save_model
from prm.model import load_backbone
from reasoning_rl.compose import train_ppo
from reasoning_rl.config import PPOConfig
from reasoning_rl.indicators import BY_NAME
from reasoning_rl.presets import merge
from reasoning_rl.telemetry import RunLog, read_metrics

TINY = {
    "num_problems": 64,
    "num_validation": 0,
    "iterations": 3,
    "save_every": 1,
    "rollout": {"problems_per_iteration": 4, "samples_per_problem": 2, "max_new_tokens": 24},
    "reward": {"form": "none", "normalise": "off", "clip": None},
    "kl": {"coef": 0.05, "place": "reward", "estimator": "k1"},
    "update": {"minibatch_size": 8, "learning_rate": 1e-3, "epochs": 1},
    "hack": {"action": "warn"},
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    tokenizer, model = taught_policy()
    folder = tmp_path_factory.mktemp("policy")
    save_model(folder, model, tokenizer)
    return str(folder)


def train(policy: str, out: Path, over: dict, *, resume: bool = False) -> list[dict]:
    own = {"policy": policy, "output_dir": str(out), "preset": "vanilla"}
    config = PPOConfig.from_preset(merge(merge(TINY, own), over))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_ppo(config, accelerator=Accelerator(cpu=True), log=RunLog(out), resume=resume)
    return read_metrics(out)


def same_policy(a: Path, b: Path) -> bool:
    first, second = (load_backbone(folder / "model").state_dict() for folder in (a, b))
    return all(bool((first[name] == second[name]).all()) for name in first)


def interrupt(run: Path, iteration: int) -> Path:
    """A copy of a run as a crash after `iteration` would have left it."""
    copy = run.parent / f"{run.name}_again"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model")
    for folder in list_checkpoints(copy):
        if int(folder.name) > iteration:
            shutil.rmtree(folder)
    return copy


def test_prover_and_prime_together_resume_to_the_same_run_bit_for_bit(policy, tmp_path) -> None:
    over = {
        "keep_checkpoints": 3,
        "reward": {
            "form": "progress",
            "step_weight": 0.5,
            "prover": {"model": policy, "samples": 4, "best_of": 2},
            "implicit": {"weight": 1.0, "learning_rate": 1e-4, "minibatch_size": 4},
        },
    }
    rows = train(policy, tmp_path / "run", over)
    assert len(rows) == 3
    assert all(row["rollout/value_tokens"] > row["rollout/tokens"] for row in rows)
    assert all(row["implicit/skipped"] == 0 for row in rows)
    losses = [row["implicit/loss"] for row in rows]
    assert losses[0] == pytest.approx(0.6931, abs=0.02) and losses[2] != losses[0]  # starts as its reference
    undocumented = {name for row in rows for name in row if name not in BY_NAME} - {"iteration"}
    assert undocumented == set()
    copy = interrupt(tmp_path / "run", 1)
    assert train(policy, copy, over | {"output_dir": str(copy)}, resume=True) == rows
    assert same_policy(tmp_path / "run", copy)


def test_vine_goes_without_a_critic_and_resumes_to_the_same_run(policy, tmp_path) -> None:
    over = {"algorithm": "vine", "preset": "vine", "group": {"vine_samples": 3}, "keep_checkpoints": 3}
    rows = train(policy, tmp_path / "run", over)
    assert all("critic/loss" not in row and 0 <= row["vine/start_value"] <= 1 for row in rows)
    assert {name for row in rows for name in row if name not in BY_NAME} - {"iteration"} == set()
    assert not (list_checkpoints(tmp_path / "run")[-1] / "critic.pt").exists()
    copy = interrupt(tmp_path / "run", 2)
    assert train(policy, copy, over | {"output_dir": str(copy)}, resume=True) == rows
    assert same_policy(tmp_path / "run", copy)


def test_each_step_gets_as_many_completions_as_are_set(policy, tmp_path) -> None:
    spent = []
    for samples in (1, 4):
        over = {"algorithm": "vine", "preset": "vine", "group": {"vine_samples": samples}, "iterations": 1}
        spent.append(train(policy, tmp_path / str(samples), over)[-1]["rollout/value_tokens"])
    assert 2.5 < spent[1] / spent[0] < 6


HACKED = {"baseline_iterations": 1, "patience": 1, "max_drift": 1.0001}
"""Any change of length is called a drift: an alarm is sure to come in iteration 2."""


def test_an_alarm_may_stop_the_run_with_a_checkpoint_and_a_model(policy, tmp_path) -> None:
    over = {"iterations": 6, "save_every": 0, "hack": HACKED | {"action": "stop"}}
    rows = train(policy, tmp_path, over)
    assert len(rows) == 2 and any(value for name, value in rows[1].items() if name.startswith("alarm/"))
    assert [int(folder.name) for folder in list_checkpoints(tmp_path)] == [2]
    assert (tmp_path / "model" / "config.json").exists()


def test_an_alarm_may_raise_the_kl_coefficient_which_a_resumed_run_keeps(policy, tmp_path) -> None:
    over = {"keep_checkpoints": 3, "hack": HACKED | {"action": "raise_kl", "kl_factor": 3.0}}
    rows = train(policy, tmp_path / "run", over)
    coefs = [row["kl/coef"] for row in rows]
    assert coefs[:2] == [0.05, 0.05] and coefs[2] == pytest.approx(0.15)
    copy = interrupt(tmp_path / "run", 2)
    assert train(policy, copy, over | {"output_dir": str(copy)}, resume=True) == rows


def test_a_warning_names_what_was_seen(policy, tmp_path) -> None:
    config = PPOConfig.from_preset(
        merge(TINY, {"policy": policy, "output_dir": str(tmp_path), "preset": "vanilla", "hack": HACKED})
    )
    with pytest.warns(
        UserWarning, match=r"hack gauge, iteration 2: [\d.]+ (steps|tokens) a response, [\d.]+ at first"
    ):
        train_ppo(config, accelerator=Accelerator(cpu=True), log=RunLog(tmp_path))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"reward": {"prover": {"model": "x"}}}, "prover scores steps for form progress, not none"),
        (
            {"reward": {"form": "progress", "prover": {"model": "x", "samples": 2}}},
            "best_of 4 cannot be estimated from samples 2",
        ),
        ({"reward": {"form": "progress"}}, "needs a reward model"),
        ({"kl": {"coef": 0.0}, "hack": {"action": "raise_kl"}}, "set kl.coef above 0"),
        ({"algorithm": "vine", "reward": {"normalise": "scale"}}, "set reward.normalise to off"),
    ],
)
def test_settings_that_cannot_work_are_refused(over, message) -> None:
    with pytest.raises(UserError, match=message):
        PPOConfig.from_preset(merge(merge(TINY, {"policy": "p", "preset": "vanilla"}), over))


def test_an_implicit_model_of_other_tokens_is_refused(policy, tmp_path) -> None:
    from data.world_tokenizer import character_tokenizer

    tokenizer = character_tokenizer()
    save_model(tmp_path / "other", tiny_policy(tokenizer), tokenizer)
    with pytest.raises(UserError, match="must share the policy's tokenizer"):
        over = {"reward": {"implicit": {"weight": 1.0, "model": str(tmp_path / "other")}}}
        train(policy, tmp_path / "run", over)
