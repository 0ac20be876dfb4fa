"""PPO on adapters: one trunk for policy and reference, small checkpoints, a plain model in the end."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from cli_cases import ppo_settings, save_models
from rl_runs import experience_of, learner_for, rollout_of, run, settings
from rl_world import taught_policy, tiny_policy, world
from transformers import AutoModelForCausalLM

from data.errors import UserError
from prm.lora import LoraSettings, add_adapters, merge
from reasoning_rl.advantages import forward_rollout
from reasoning_rl.compose import train_ppo
from reasoning_rl.config import PPOConfig
from reasoning_rl.telemetry import RunLog, read_metrics
from reasoning_rl.update import ppo_update

pytest.importorskip("peft", reason="LoRA needs the extra 'lora'")
LORA = {"rank": 4, "alpha": 8.0}


def lora_settings(folder: Path, **over: Any) -> PPOConfig:
    critic = {"learning_rate": 1e-2, "lora": LORA}
    update = {"minibatch_size": 8, "learning_rate": 1e-2, "micro_batch_tokens": 400}
    return settings(folder, lora=LORA, critic=critic, update=update, **over)


def stir(model: torch.nn.Module) -> None:
    """Give fresh adapters, which change nothing, a part in what the model says."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.5)


def test_the_reference_is_the_policy_without_its_adapters_to_the_bit(tmp_path) -> None:
    tokenizer, problems = world(8)
    policy = tiny_policy(tokenizer)
    frozen = copy.deepcopy(policy)
    learner = learner_for(lora_settings(tmp_path), tokenizer, policy=policy)
    stir(learner.policy)
    rollout = rollout_of(learner, tokenizer, problems)
    said = forward_rollout(learner, rollout)
    separate = settings(tmp_path, update={"minibatch_size": 8, "micro_batch_tokens": 400})
    expected = forward_rollout(learner_for(separate, tokenizer, policy=frozen), rollout)
    assert torch.equal(said.ref_logprobs, expected.ref_logprobs)
    assert (said.logprobs - said.ref_logprobs).abs().max() > 0.01
    # What was sampled is what the adapted model says, so the adapters are in both, and on again.
    torch.testing.assert_close(said.logprobs, rollout.behaviour_logprobs, rtol=1e-4, atol=1e-5)
    held = {id(p) for model in (learner.actor.module, learner.critic.module) for p in model.parameters()}
    trunk = sum(p.numel() for name, p in learner.policy.named_parameters() if ".lora_" not in name)
    assert trunk == sum(p.numel() for p in frozen.parameters())
    assert {id(p) for p in learner.reference.actor.parameters()} <= held  # no second copy


def test_adapters_and_the_value_head_learn_and_nothing_else(tmp_path) -> None:
    tokenizer, problems = world(8)
    learner = learner_for(lora_settings(tmp_path), tokenizer)
    models = {"policy": learner.policy, "critic": learner.critic_model}
    before = {key: copy.deepcopy(dict(model.named_parameters())) for key, model in models.items()}
    experience, metrics = experience_of(learner, tokenizer, problems)
    assert metrics["policy/kl_per_response"] == 0  # not nearly: it is the same computation
    stats = ppo_update(learner, experience, train_policy=True)
    assert stats["policy/ratio"] == pytest.approx(1.0, abs=0.2) and stats["critic/grad_norm"] > 0
    for key, model in models.items():
        for name, parameter in model.named_parameters():
            moved = not torch.equal(parameter, before[key][name])
            # The second factor starts at 0, so the first of its pair may not have moved yet.
            expected = ".lora_B" in name or name.startswith("score")
            assert moved == expected or ".lora_A" in name, name
    size = sum(p.numel() for group in learner.actor.optimizer.param_groups for p in group["params"])
    assert size == sum(p.numel() for n, p in learner.policy.named_parameters() if ".lora_" in n)


class Stop(Exception):
    pass


class Scorer:
    """Likes short steps, so that there is always something to learn. Dies after so many calls."""

    def __init__(self, lasts: int = 1000) -> None:
        self.lasts = lasts

    def score(self, problems: Any, solutions: Any) -> list[list[float]]:
        self.lasts -= 1
        if self.lasts < 0:
            raise Stop
        return [[1 / (1 + len(step)) for step in steps] for steps in solutions]


def test_a_checkpoint_holds_adapters_and_resumes_to_the_same_bits(tmp_path) -> None:
    _, problems = world(16)
    runs = {}
    for name in ("whole", "stopped"):
        config = lora_settings(tmp_path / name, iterations=4)
        tokenizer, policy = taught_policy()
        learner = learner_for(config, tokenizer, policy=policy)
        if name == "stopped":
            with pytest.raises(Stop):
                run(config, learner, tokenizer, problems, scorer=Scorer(lasts=2))
            learner = learner_for(config, tokenizer, policy=taught_policy()[1])
        rows = run(config, learner, tokenizer, problems, scorer=Scorer(), resume=name == "stopped")
        runs[name] = ((tmp_path / name / "metrics.jsonl").read_bytes(), learner)
    assert runs["stopped"][0] == runs["whole"][0]
    policies = [runs[name][1].policy.state_dict() for name in ("whole", "stopped")]
    assert all(torch.equal(value, policies[1][name]) for name, value in policies[0].items())
    # Each iteration's samples come from the adapters of the last one.
    assert all(row["rollout/mismatch_max"] < 1e-4 for row in rows)
    assert rows[-1]["policy/kl_per_response"] != 0
    checkpoint = sorted((tmp_path / "whole" / "checkpoints").iterdir())[-1]
    assert not (checkpoint / "reference.pt").exists()
    for part, optimizer in (("policy", "actor"), ("critic", "critic")):
        names = torch.load(checkpoint / f"{part}.pt", weights_only=True)
        rest = [name for name in names if ".lora_" not in name]
        assert len(names) > len(rest) and rest == (["score.weight", "score.bias"] if part == "critic" else [])
        moments = torch.load(checkpoint / f"{optimizer}_optimizer.pt", weights_only=True)
        assert len(moments["state"]) == len(names)


def test_adapters_do_not_go_back_onto_other_weights(tmp_path) -> None:
    tokenizer, problems = world(16)
    config = lora_settings(tmp_path, iterations=1)
    run(config, learner_for(config, tokenizer), tokenizer, problems)
    config = lora_settings(tmp_path, iterations=2)
    with pytest.raises(UserError, match="trained on other weights.*model that the run started from"):
        run(config, learner_for(config, tokenizer, seed=5), tokenizer, problems, resume=True)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_the_command_leaves_a_plain_model_that_is_base_plus_adapters(tmp_path, quantize) -> None:
    if quantize:
        pytest.importorskip("bitsandbytes", reason="a 4-bit base needs the extra 'qlora'")
    lora = LORA | {"quantize": quantize}
    from peft import PeftModel

    tokenizer, policy = taught_policy(64)
    save_models(tmp_path, tokenizer, policy)
    update = {"minibatch_size": 8, "learning_rate": 1e-2}
    config = PPOConfig.from_preset(
        ppo_settings(
            tmp_path,
            tmp_path / "run",
            lora=lora,
            update=update,
            critic={"lora": lora, "pretrain_iterations": 0},
        )
    )
    folder = train_ppo(config, accelerator=Accelerator(cpu=True), log=RunLog(tmp_path / "run"))
    trained = AutoModelForCausalLM.from_pretrained(folder)
    assert set(trained.state_dict()) == set(policy.state_dict())
    checkpoint = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    adapters = torch.load(checkpoint / "policy.pt", weights_only=True)
    text = torch.tensor([tokenizer("Ann has 12. Bob has 5 fewer than Ann.")["input_ids"]])
    if not quantize:  # the adapters by themselves are what peft reads
        beside = PeftModel.from_pretrained(copy.deepcopy(policy), folder.with_name("adapter"))
        torch.testing.assert_close(beside(text).logits, trained(text).logits, rtol=1e-4, atol=1e-5)
        assert (policy(text).logits - trained(text).logits).abs().max() > 1e-3
        assert beside.peft_config["default"].base_model_name_or_path == str(tmp_path / "policy")
    rows = read_metrics(tmp_path / "run")
    assert all(row["rollout/mismatch_max"] < 1e-4 for row in rows if "rollout/mismatch_max" in row)
    names = [name for name, _ in policy.named_parameters()]
    if quantize:  # the base is what four bits make of the policy
        add_adapters(policy, LoraSettings(**lora))
        merge(policy)
    for name in names:
        start, end = policy.get_parameter(name), trained.get_parameter(name)
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_A.default.weight" not in adapters:
            assert torch.equal(end, start), name
            continue
        a, b = (adapters[f"{stem}.lora_{k}.default.weight"] for k in "AB")
        assert b.abs().max() > 0
        torch.testing.assert_close(end, start + 8.0 / 4 * b @ a, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reference_ema": 0.1}, "cannot follow it: set reference_ema to 0"),
        ({"lora": {"rank": 4, "dropout": 0.1}}, "lora.dropout.*set it to 0"),
        ({"critic": {"lora": {"rank": 4, "dropout": 0.1}}}, "critic.lora.dropout.*set it to 0"),
        ({"lora": {"quantize": "nf4"}}, "nothing would learn: set lora.rank"),
    ],
)
def test_settings_that_adapters_cannot_serve(tmp_path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(tmp_path, **{"lora": LORA, **values})
