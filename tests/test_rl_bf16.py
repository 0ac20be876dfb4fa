"""PPO in bfloat16: what is frozen is held in it, what learns stays float32, and the numbers stay close."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from cli_cases import ppo_settings, save_models
from rl_runs import learner_for, run, settings
from rl_world import taught_policy, world

from prm.scorer import LocalScorer
from reasoning_rl import compose
from reasoning_rl.config import PPOConfig
from reasoning_rl.learner import Learner
from reasoning_rl.telemetry import RunLog, read_metrics


@pytest.fixture
def in_bf16() -> Iterator[None]:
    """accelerate keeps one precision a process: every Accelerator made inside has this one."""
    AcceleratorState._reset_state(True)
    Accelerator(cpu=True, mixed_precision="bf16")
    yield
    AcceleratorState._reset_state(True)


class ShortSteps:
    def score(self, problems: Any, solutions: Any) -> list[list[float]]:
        return [[1 / (1 + len(step)) for step in steps] for steps in solutions]


def train(folder: Path, **over: Any) -> tuple[list[dict[str, float]], Learner]:
    tokenizer, policy = taught_policy(64)
    critic = {"learning_rate": 1e-3, "pretrain_iterations": 0, "lora": over.get("lora", {})}
    config = settings(folder, critic=critic, update={"minibatch_size": 8, "learning_rate": 1e-3}, **over)
    learner = learner_for(config, tokenizer, policy=policy)
    return run(config, learner, tokenizer, world(16)[1], scorer=ShortSteps()), learner


def test_a_bf16_iteration_is_close_to_a_float32_one(tmp_path, in_bf16) -> None:
    rows, learner = train(tmp_path / "bf16")
    assert {p.dtype for p in learner.reference.parameters.values()} == {torch.bfloat16}
    assert {p.dtype for p in learner.policy.parameters()} == {torch.float32}
    AcceleratorState._reset_state(True)
    expected, plain = train(tmp_path / "float32")
    assert {p.dtype for p in plain.reference.parameters.values()} == {torch.float32}
    assert all(math.isfinite(value) for row in rows for value in row.values())
    # The first samples are the same, so all that differs is how the forwards were computed.
    first, other = rows[0], expected[0]
    assert first["rollout/tokens"] == other["rollout/tokens"]
    for name in (
        "policy/entropy",
        "policy/perplexity",
        "policy/grad_norm",
        "critic/loss",
        "critic/grad_norm",
    ):
        assert first[name] == pytest.approx(other[name], rel=0.03), name
    assert first["policy/entropy"] != other["policy/entropy"]  # it was bf16


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_adapters_stay_float32_on_a_bf16_base(tmp_path, in_bf16, quantize) -> None:
    pytest.importorskip("peft", reason="LoRA needs the extra 'lora'")
    if quantize:
        pytest.importorskip("bitsandbytes", reason="a 4-bit base needs the extra 'qlora'")
    rows, learner = train(tmp_path, lora={"rank": 4, "quantize": quantize})
    frozen = {torch.bfloat16} | ({torch.uint8} if quantize else set())
    for model in (learner.policy, learner.critic_model):
        kinds = {p.requires_grad: set() for p in model.parameters()}
        for parameter in model.parameters():
            kinds[parameter.requires_grad].add(parameter.dtype)
        assert kinds == {True: {torch.float32}, False: frozen}
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["policy/kl_per_response"] == 0 and rows[0]["policy/grad_norm"] > 0
    assert rows[0]["policy/entropy"] == pytest.approx(rows[1]["policy/entropy"], rel=0.3)


def test_the_reward_model_is_frozen_in_bf16_too(tmp_path, in_bf16, monkeypatch) -> None:
    tokenizer, policy = taught_policy(64)
    save_models(tmp_path, tokenizer, policy)
    scorers = []
    load = LocalScorer.__init__

    def note(self: LocalScorer, *args: Any, **options: Any) -> None:
        load(self, *args, **options)
        scorers.append(self)

    monkeypatch.setattr(LocalScorer, "__init__", note)
    config = PPOConfig.from_preset(ppo_settings(tmp_path, tmp_path / "run"))
    compose.train_ppo(config, accelerator=Accelerator(cpu=True), log=RunLog(tmp_path / "run"))
    assert [{p.dtype for p in scorer.model.parameters()} for scorer in scorers] == [{torch.bfloat16}]
    rows = read_metrics(tmp_path / "run")
    assert all(math.isfinite(value) for row in rows for value in row.values() if value is not None)
    assert 0 < rows[-1]["reward/step_score"] < 1
