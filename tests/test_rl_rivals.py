"""benchmarks/rivals.py: every row's settings are valid and equally expensive, and the area is right."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from rl_world import tiny_policy

from data.schema import Sample
from data.world_tokenizer import word_tokenizer
from reasoning_rl.config import PPOConfig
from reasoning_rl.dpo_iter import DPOIterConfig
from reasoning_rl.presets import merge
from reasoning_rl.rft import RFTConfig


@pytest.fixture
def rivals(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import rivals

    return rivals


def test_every_row_samples_as_many_responses_from_the_same_policy(rivals: ModuleType) -> None:
    for name in rivals.ARMS:
        config, _ = rivals.configure(name, 0, "models", "out")
        rounds = config.iterations if isinstance(config, PPOConfig) else config.rounds
        rollout = config.rollout
        assert rounds * rollout.problems_per_iteration * rollout.samples_per_problem == 4096, name
        assert (rollout.temperature, rollout.top_p, rollout.max_new_tokens) == (1.0, 1.0, 64), name
        assert (config.prm is not None) == ("PRM" in name), name
        assert config.policy == "models/sft/model" and config.seed == 0


def test_a_row_with_the_prm_differs_from_its_twin_in_what_the_prm_does(rivals: ModuleType) -> None:
    for name in rivals.ARMS:
        twin = name.removesuffix(" + PRM")
        if twin == name or twin not in rivals.ARMS:
            continue
        with_prm, without = (rivals.configure(n, 0, "m", "o")[0].model_dump() for n in (name, twin))
        changed = {key for key in with_prm if with_prm[key] != without[key]}
        assert changed <= {"prm", "reward", "score", "min_step_score", "critic"}, name


def test_the_area_of_a_curve_by_hand(rivals: ModuleType) -> None:
    def curve(held: float, *points: tuple[float, float]) -> list[dict[str, float]]:
        return [{"tokens": t, "sampled": v, "held": held} for t, v in points]

    online = curve(0.0, (0, 0.2), (100, 0.4), (200, 0.8))
    assert rivals.area(online, 200) == pytest.approx((0.3 + 0.6) / 2)
    assert rivals.area(online, 150) == pytest.approx((0.3 * 100 + 0.5 * 50) / 150)  # 0.6 is reached at 150
    rounds = curve(1.0, (0, 0.2), (100, 0.4), (200, 0.8))
    assert rivals.area(rounds, 200) == pytest.approx((0.2 + 0.4) / 2)  # the last policy was never held


def test_the_kl_of_a_policy_to_itself_is_0(rivals: ModuleType) -> None:
    tokenizer = word_tokenizer()
    samples = [Sample((5, 6), (7, 8, 2), (), "", "stop"), Sample((5,), (9, 2), (), "", "stop")]
    one, other = (tiny_policy(tokenizer, seed).double() for seed in (0, 1))
    assert rivals.kl_per_response(one, one, samples) == 0
    expected = 0.0
    for sample in samples:
        ids = [*sample.prompt_ids, *sample.token_ids]
        for sign, model in ((1, one), (-1, other)):
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(sample.prompt_ids), len(ids))
            expected += sign * sum(float(logprobs[t - 1, ids[t]].detach()) for t in places) / 2
    assert rivals.kl_per_response(one, other, samples) == pytest.approx(expected, rel=1e-4)


def test_settings_are_laid_over_one_another_without_loss(rivals: ModuleType) -> None:
    config, _ = rivals.configure("PPO-max", 1, "m", "o")
    assert isinstance(config, PPOConfig) and config.reward.form == "none" and config.reward.clip == 5.0
    assert config.critic.init == "policy" and config.critic.pretrain_iterations == 2
    assert isinstance(rivals.configure("DPO", 0, "m", "o")[0], DPOIterConfig)
    assert isinstance(rivals.configure("RFT", 0, "m", "o")[0], RFTConfig)
    assert merge(rivals.ROUND, rivals.IMITATE)["fit"]["epochs"] == 2
