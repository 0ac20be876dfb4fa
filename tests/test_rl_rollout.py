"""The transformers generator against transformers' own generate and against teacher-forced logprobs."""

import math
from dataclasses import replace

import pytest
import torch
from rl_world import tiny_policy, world
from transformers import DynamicCache

from data.errors import UserError
from data.schema import Sampling
from data.steps import decode
from reasoning_rl.rollout.hf import ROOM, HFGenerator, RoomyLayer, draw, roomy_cache, truncate


def prompts_of(problems) -> list[str]:
    return [f"{p.text}\n" for p in problems]


def test_greedy_equals_transformers_generate_for_ragged_prompts() -> None:
    tokenizer, problems = world(24)
    model = tiny_policy(tokenizer)
    ours = HFGenerator(model, tokenizer).generate(
        prompts_of(problems), Sampling(max_new_tokens=16, temperature=0)
    )
    for prompt, (sample,) in zip(prompts_of(problems), ours, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)[
            0, ids.shape[1] :
        ].tolist()
        assert list(sample.token_ids) == theirs
        assert sample.prompt_ids == tuple(ids[0].tolist())
        assert sample.text == decode(tokenizer, theirs)


@pytest.mark.parametrize(("temperature", "n"), [(1.0, 1), (0.7, 3)])
def test_sampled_logprobs_equal_a_forward_over_the_whole_text(temperature: float, n: int) -> None:
    tokenizer, problems = world(12)
    model = tiny_policy(tokenizer)
    groups = HFGenerator(model, tokenizer, seed=1).generate(
        prompts_of(problems), Sampling(max_new_tokens=20, temperature=temperature, n=n)
    )
    assert all(len(group) == n for group in groups)
    for sample in (s for group in groups for s in group):
        ids = torch.tensor([[*sample.prompt_ids, *sample.token_ids]])
        with torch.no_grad():
            logprobs = (model(ids).logits[0, :-1].double() / temperature).log_softmax(-1)
        begin = len(sample.prompt_ids)
        expected = logprobs[begin - 1 :].gather(1, ids[0, begin:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(sample.logprobs).double(), expected, rtol=1e-4, atol=1e-5)


def test_samples_end_at_eos_or_are_marked_as_cut() -> None:
    tokenizer, problems = world(64)
    model = tiny_policy(tokenizer)
    with torch.no_grad():  # a model that ends often: raise the end token's logit through the tied embedding
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 3
    samples = HFGenerator(model, tokenizer).generate(prompts_of(problems), Sampling(max_new_tokens=12))
    kinds = set()
    for (sample,) in samples:
        ends = [i for i, t in enumerate(sample.token_ids) if t == tokenizer.eos_token_id]
        kinds.add(sample.finish_reason)
        if sample.finish_reason == "stop":
            assert ends == [len(sample.token_ids) - 1]
        else:
            assert not ends and len(sample.token_ids) == 12
    assert kinds == {"stop", "length"}


def test_a_batch_in_pieces_is_the_same_batch_when_greedy() -> None:
    tokenizer, problems = world(20)
    model = tiny_policy(tokenizer)
    sampling = Sampling(max_new_tokens=10, temperature=0)
    whole = HFGenerator(model, tokenizer, max_batch=64).generate(prompts_of(problems), sampling)
    pieces = HFGenerator(model, tokenizer, max_batch=3).generate(prompts_of(problems), sampling)
    assert [s.token_ids for (s,) in whole] == [s.token_ids for (s,) in pieces]


def test_a_restored_generator_continues_its_random_stream() -> None:
    tokenizer, problems = world(4)
    model = tiny_policy(tokenizer)
    first = HFGenerator(model, tokenizer, seed=5)
    sampling = Sampling(max_new_tokens=8)
    first.generate(prompts_of(problems), sampling)
    state = first.state_dict()
    expected = first.generate(prompts_of(problems), sampling)
    second = HFGenerator(model, tokenizer, seed=99)
    second.load_state_dict(state)
    assert second.generate(prompts_of(problems), sampling) == expected
    assert second.generate(prompts_of(problems), sampling) != expected


def test_stop_strings_end_and_cut_the_text() -> None:
    tokenizer, problems = world(8)
    free = Sampling(max_new_tokens=30, temperature=1.5, seed=0)
    generator = HFGenerator(tiny_policy(tokenizer), tokenizer)
    unstopped = [sample.text for (sample,) in generator.generate(prompts_of(problems), free)]
    stop = unstopped[0].split()[3]  # a word in the middle of what the first one says
    sampling = replace(free, stop=(f" {stop}",))
    stopped = generator.generate(prompts_of(problems), sampling)
    assert stopped[0][0].text == unstopped[0].split(f" {stop}")[0]
    for (sample,) in stopped:
        assert f" {stop}" not in sample.text
        full = decode(tokenizer, sample.token_ids)
        assert full.startswith(sample.text)
        assert full.count(f" {stop}") == (1 if sample.finish_reason == "stop" and f" {stop}" in full else 0)


def test_truncation_keeps_exactly_the_top_k_and_the_nucleus() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert torch.isfinite(truncate(logits, top_k=2, top_p=1.0)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(truncate(logits, top_k=0, top_p=0.7)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(truncate(logits, top_k=0, top_p=0.5)).tolist() == [[True, False, False, False]]
    assert torch.isfinite(truncate(logits, top_k=0, top_p=0.0001)).sum() == 1


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log().expand(20_000, 3)
    token_ids, logprobs = draw(logits, Sampling(temperature=0.5), torch.Generator().manual_seed(0))
    expected = torch.tensor([0.36, 0.09, 0.01]) / 0.46
    torch.testing.assert_close(torch.bincount(token_ids) / 20_000, expected, rtol=0, atol=0.015)
    torch.testing.assert_close(logprobs.exp(), expected[token_ids], rtol=1e-4, atol=1e-6)


def test_tokens_of_no_mass_are_never_drawn_and_rare_ones_keep_their_share() -> None:
    logits = torch.full((50_000, 40), float("-inf"))
    logits[:, 7], logits[:, 21] = math.log(0.999), math.log(0.001)
    token_ids, logprobs = draw(logits, Sampling(), torch.Generator().manual_seed(1))
    assert set(token_ids.tolist()) == {7, 21}
    assert 25 < int((token_ids == 21).sum()) < 80  # 50 expected, deviation 7
    torch.testing.assert_close(logprobs.exp(), logits[0].exp()[token_ids], rtol=1e-4, atol=0)


def test_a_cache_that_grows_in_place_holds_what_transformers_own_holds() -> None:
    """Through growth beyond its room, repetition and the removal of rows."""
    torch.manual_seed(0)
    tokenizer, _ = world(1)
    config = tiny_policy(tokenizer).config
    ours, theirs = roomy_cache(config), DynamicCache(config=config)
    assert {type(layer) for layer in ours.layers} == {RoomyLayer}

    def both(work) -> None:
        for cache in (ours, theirs):
            work(cache)

    rows = 2
    for tokens in (5, 1, 1, ROOM, 1, 2 * ROOM, 1):
        keys, values = torch.randn(2, rows, 1, tokens, 16)
        for layer in range(2):
            shown = ours.update(keys, values, layer)
            expected = theirs.update(keys, values, layer)
            assert all(torch.equal(a, b) for a, b in zip(shown, expected, strict=True))
        if tokens == 5:
            both(lambda cache: cache.batch_repeat_interleave(3))
            rows = 6
        if tokens == ROOM:
            both(lambda cache: cache.batch_select_indices(torch.tensor([0, 2, 5])))
            rows = 3
    assert ours.get_seq_length() == theirs.get_seq_length()


def test_training_mode_and_autograd_are_left_as_they_were() -> None:
    tokenizer, problems = world(2)
    model = tiny_policy(tokenizer).train()
    HFGenerator(model, tokenizer).generate(prompts_of(problems), Sampling(max_new_tokens=2))
    assert model.training and torch.is_grad_enabled()


def test_a_prompt_gets_one_bos_and_no_eos() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer, problems = world(1)
    tokenizer.bos_token = "Ann"
    special = [("Ann", tokenizer.convert_tokens_to_ids("Ann")), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="Ann $A <eos>", special_tokens=special
    )
    generator = HFGenerator(tiny_policy(tokenizer), tokenizer)
    for text in ("Bob has 3", "Ann Bob has 3"):  # bare, and as a chat template renders it
        ((sample,),) = generator.generate([text], Sampling(max_new_tokens=1))
        words = [tokenizer.decode([i]) for i in sample.prompt_ids]
        assert words[0] == "Ann" and [w.strip() for w in words].count("Ann") == 1
        assert tokenizer.eos_token_id not in sample.prompt_ids


def test_impossible_prompts_and_tokenizers_are_named() -> None:
    tokenizer, _ = world(1)
    model = tiny_policy(tokenizer)
    with pytest.raises(UserError, match="prompt 1 is empty"):
        HFGenerator(model, tokenizer).generate(["Ann", ""], Sampling())
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        HFGenerator(model, tokenizer)


def test_every_prompt_has_the_room_that_the_context_leaves_it() -> None:
    """Also beside a longer prompt, and beside one that fills the context."""
    tokenizer, _ = world(2)
    model = tiny_policy(tokenizer)
    context = model.config.max_position_embeddings
    lengths = (4, context - 2, context, context + 5)
    prompts = ["\n" * length for length in lengths]
    assert [len(ids) for ids in tokenizer(prompts)["input_ids"]] == list(lengths)
    drawn = HFGenerator(model, tokenizer).generate(prompts, Sampling(max_new_tokens=20, n=2, temperature=0))
    alone = HFGenerator(model, tokenizer).generate(
        prompts[:1], Sampling(max_new_tokens=20, n=2, temperature=0)
    )
    assert [s.token_ids for s in drawn[0]] == [s.token_ids for s in alone[0]] and drawn[0][0].token_ids
    assert {len(s.token_ids) for s in drawn[1]} <= {1, 2}
    for group in drawn[2:]:
        assert [(s.token_ids, s.finish_reason) for s in group] == [((), "length")] * 2
