"""A real vLLM engine in this process against transformers: samples, weight sync, faults, a PPO run."""

import copy
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from vllm_cases import mismatch, perturb, prompts_of, saved_policy

from data.errors import UserError
from data.schema import Sampling
from data.steps import decode
from prm.lora import LoraSettings, add_adapters
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.rollout.vllm_weights import ActorWeights

pytest.importorskip("vllm", reason="the engine is not installed")
pytestmark = pytest.mark.vllm
GREEDY = Sampling(max_new_tokens=12, temperature=0)
GROUPS = (
    *("embed_tokens", "norm", "q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj"),
    *("gate_proj", "up_proj", "down_proj", "bias"),
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(generator, model, tokenizer); tests leave the two with the same weights."""
    yield from started(tmp_path_factory.mktemp("tied"), tied=True)


def started(folder: Any, *, tied: bool) -> Iterator[tuple[Any, Any, Any]]:
    from reasoning_rl.rollout.vllm_local import VLLMGenerator

    tokenizer, model, path = saved_policy(folder, tied=tied)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    threads = torch.get_num_threads()
    generator = VLLMGenerator(path, tokenizer, EngineConfig(backend="vllm", kv_gib=0.25), seed=3)
    after = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    assert torch.equal(before[0], after[0]) and (before[1] == after[1]).all() and before[2] == after[2]
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()
    yield generator, model, tokenizer
    generator.close()


def test_greedy_tokens_and_samples_are_those_of_transformers(engine: Any) -> None:
    generator, model, tokenizer = engine
    ours = generator.generate(prompts_of(64), GREEDY)
    theirs = HFGenerator(model, tokenizer).generate(prompts_of(64), GREEDY)
    for (a,), (b,) in zip(ours, theirs, strict=True):
        assert replace(a, logprobs=()) == replace(b, logprobs=(), version=a.version)
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=1e-4, atol=1e-4)


def test_logprobs_are_those_of_the_distribution_sampled_from(engine: Any) -> None:
    generator, model, _ = engine
    groups = generator.generate(prompts_of(16), Sampling(max_new_tokens=12, temperature=1.5, n=4))
    assert all(len({s.token_ids for s in group}) > 1 for group in groups)
    assert mismatch(model, [s for group in groups for s in group], temperature=1.5) < 1e-4
    for (sample,) in generator.generate(prompts_of(8), Sampling(max_new_tokens=8, temperature=1.5, top_k=1)):
        assert max(map(abs, sample.logprobs)) < 1e-6  # one token is left, and it is certain


def test_greedy_samples_of_one_prompt_are_alike(engine: Any) -> None:
    generator, _, _ = engine
    ((a, b),) = generator.generate(prompts_of(1), replace(GREEDY, n=2))
    assert a == b


def test_stop_strings_cut_the_text_and_not_the_tokens(engine: Any) -> None:
    generator, model, tokenizer = engine
    free = HFGenerator(model, tokenizer).generate(prompts_of(8), replace(GREEDY, max_new_tokens=30))
    word = f" {free[0][0].text.split()[3]}"
    sampling = replace(GREEDY, max_new_tokens=30, stop=(word,))
    stopped = generator.generate(prompts_of(8), sampling)
    expected = HFGenerator(model, tokenizer).generate(prompts_of(8), sampling)
    for (a,), (b,) in zip(stopped, expected, strict=True):
        assert (a.text, a.token_ids, a.finish_reason) == (b.text, b.token_ids, b.finish_reason)
    assert word not in stopped[0][0].text and word in decode(tokenizer, stopped[0][0].token_ids)


def test_a_prompt_beyond_the_context_is_marked_and_the_others_answered(engine: Any) -> None:
    generator, _, _ = engine
    long = "Ann has 12. " * 100
    (short,), cut, (other,) = generator.generate(
        [prompts_of(2)[0], long, prompts_of(2)[1]], Sampling(max_new_tokens=4, seed=0)
    )
    assert [(s.token_ids, s.text, s.finish_reason) for s in cut] == [((), "", "length")]
    assert len(cut[0].prompt_ids) > generator.context and short.token_ids and other.token_ids
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generator.generate(["Ann", ""], GREEDY)


def test_a_restored_generator_continues_its_random_stream(engine: Any) -> None:
    generator, _, _ = engine
    sampling = Sampling(max_new_tokens=8, temperature=1.5)
    state = generator.state_dict()
    first, second = (generator.generate(prompts_of(8), sampling) for _ in range(2))
    assert first != second
    generator.load_state_dict(state)
    assert generator.generate(prompts_of(8), sampling) == first
    seeded = replace(sampling, seed=1)
    assert generator.generate(prompts_of(8), seeded) == generator.generate(prompts_of(8), seeded)
    assert generator.generate(prompts_of(8), sampling) == second  # seeded calls do not advance the stream


def test_every_weight_group_arrives(engine: Any) -> None:
    generator, model, _ = engine
    follow_each_group(generator, model, GROUPS)


def follow_each_group(generator: Any, model: Any, groups: tuple[str, ...]) -> None:
    sampling = Sampling(max_new_tokens=8, seed=1)
    for version, group in enumerate(groups, 1):
        assert perturb(model, group)
        stale = [s for (s,) in generator.generate(prompts_of(6), sampling)]
        assert mismatch(model, stale) > 0.01, group  # else this group would not be tested
        generator.push(ActorWeights(model), version)
        fresh = [s for (s,) in generator.generate(prompts_of(6), sampling)]
        assert mismatch(model, fresh) < 1e-4, group
        assert {s.version for s in fresh} == {version}
    assert generator.sync.last.num_bytes == sum(4 * p.numel() for p in model.parameters())


def test_an_adapted_policy_arrives_merged(engine: Any) -> None:
    pytest.importorskip("peft", reason="LoRA needs the extra 'lora'")
    generator, model, _ = engine
    version, sampling = generator.version, Sampling(max_new_tokens=8, seed=1)
    adapted = copy.deepcopy(model)
    add_adapters(adapted, LoraSettings(rank=4))
    assert perturb(adapted, ".lora_B")
    generator.push(ActorWeights(adapted), version + 1)
    fresh = [s for (s,) in generator.generate(prompts_of(6), sampling)]
    assert mismatch(adapted, fresh) < 1e-4
    assert mismatch(model, fresh) > 0.01
    generator.push(ActorWeights(model), version + 2)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "trainer"])
def test_a_failed_sync_is_an_error_and_leaves_the_old_weights(engine: Any, fault: str) -> None:
    generator, model, _ = engine
    good = list(ActorWeights(model))
    version = generator.version

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        other = [(name, torch.zeros_like(t)) for name, t in good]
        if fault == "trainer":
            yield from other[:3]
            raise RuntimeError("lost a worker")
        if fault == "missing":
            yield from other[1:]
        elif fault == "unknown":
            yield from [*other, ("model.layers.9.extra", torch.zeros(3))]
        else:
            yield from [*other[:-1], (other[-1][0], torch.zeros(3))]

    with pytest.raises((UserError, RuntimeError), match=f"version {version + 1}|lost a worker"):
        generator.push(broken(), version + 1)
    samples = [s for (s,) in generator.generate(prompts_of(4), Sampling(max_new_tokens=8, seed=1))]
    assert {s.version for s in samples} == {version} and mismatch(model, samples) < 1e-4
    generator.push(good, version + 1)
    assert generator.version == version + 1


def test_training_works_beside_the_engine(engine: Any) -> None:
    generator, model, _ = engine
    generator.generate(prompts_of(2), GREEDY)
    loss = model(torch.tensor([[1, 2, 3]])).logits.square().mean()
    loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    model.zero_grad()


def test_an_untied_head_arrives_too(tmp_path: Any) -> None:
    for generator, model, _ in started(tmp_path, tied=False):
        follow_each_group(generator, model, ("embed_tokens", "lm_head"))


def test_an_engine_without_room_says_what_to_lower(tmp_path: Any) -> None:
    from reasoning_rl.rollout.vllm_local import VLLMGenerator

    tokenizer, _, path = saved_policy(tmp_path, tied=True)
    with pytest.raises(UserError, match="out of memory while starting.*\n.*max_model_len.*kv_gib"):
        VLLMGenerator(path, tokenizer, EngineConfig(backend="vllm", kv_gib=100_000))
    with pytest.raises(UserError, match="max_model_len 512 is beyond the model's context of 256"):
        VLLMGenerator(path, tokenizer, EngineConfig(backend="vllm", max_model_len=512))
