"""Adapters over a 4-bit base: it learns, the base stays, and what is saved is a plain model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_world import tiny_policy, world
from transformers import AutoModelForCausalLM
from vllm_cases import sharp_policy

from data.errors import UserError
from prm.checkpoint import save_model
from prm.lora import LoraSettings, adapters_off, add_adapters, base_weight, merge
from reasoning_rl.rollout.vllm_weights import ActorWeights

pytest.importorskip("peft", reason="adapters need the extra 'lora'")
bitsandbytes = pytest.importorskip("bitsandbytes", reason="a 4-bit base needs the extra 'qlora'")
QLORA = LoraSettings(rank=4, alpha=8.0, quantize="nf4")


def text(tokenizer: Any) -> torch.Tensor:
    return torch.randint(len(tokenizer), (4, 24), generator=torch.Generator().manual_seed(0))


def packed(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}


def test_the_loss_falls_on_a_4_bit_base_that_stays_as_it_is(tmp_path: Path) -> None:
    tokenizer = world(1)[0]
    start = sharp_policy(tokenizer, tied=True)
    model = copy.deepcopy(start)
    whole = sum(p.numel() * p.element_size() for p in model.base_model.layers.parameters())
    add_adapters(model, QLORA)
    held = packed(model)
    assert len(held) == 14  # seven matrices in each of two layers
    assert sum(v.numel() for v in held.values()) < whole / 7
    few = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert few and all(".lora_" in name for name in few)
    ids, optimizer, losses = text(tokenizer), torch.optim.AdamW(few.values(), lr=1e-2), []
    with torch.no_grad():
        before = model(ids).logits
    for _ in range(20):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, packed(model)[name]) for name, value in held.items())
    with torch.no_grad(), adapters_off(model):
        assert torch.equal(model(ids).logits, before)
    with torch.no_grad():
        adapted = model.eval()(ids).logits
        assert torch.equal(model(ids).logits, adapted)  # an eval forward does not repack what it reads
    assert all(torch.equal(value, packed(model)[name]) for name, value in held.items())
    merge(model)
    save_model(tmp_path / "model", model)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert set(plain.state_dict()) == set(start.state_dict())
    assert all(p.dtype == torch.float32 for p in plain.parameters())
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, adapted, rtol=1e-4, atol=1e-4)


def test_four_bits_are_close_to_the_weights_and_the_bias_is_exact() -> None:
    model = tiny_policy(world(1)[0], hidden=64)
    weight = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    bias = model.model.layers[0].self_attn.q_proj.bias.detach().clone()
    add_adapters(model, QLORA)
    layer = model.model.layers[0].mlp.up_proj.get_base_layer()
    found = base_weight(layer.weight)
    assert found.shape == weight.shape and found.dtype == torch.float32
    # NormalFloat's widest gap is 0.3 of a block's largest value.
    assert float((found - weight).abs().max()) <= 0.16 * float(weight.abs().max())
    assert not torch.equal(found, weight)
    assert torch.equal(model.model.layers[0].self_attn.q_proj.bias, bias)


def test_an_engine_is_sent_whole_merged_weights() -> None:
    model = tiny_policy(world(1)[0], hidden=64)
    add_adapters(model, QLORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.2)
    weights = ActorWeights(model, bucket_bytes=10_000)
    sent, announced = dict(weights), weights.metadata()
    assert not weights.live
    merge(model)
    expected = dict(model.named_parameters())
    assert [m.name for m in announced] == list(sent) and set(sent) == set(expected)
    for meta in announced:
        assert meta.shape == tuple(expected[meta.name].shape) and meta.dtype == torch.float32
        torch.testing.assert_close(sent[meta.name], expected[meta.name].detach(), rtol=0, atol=0)


def test_a_copy_of_a_4_bit_model_is_its_own() -> None:
    """What keeps the best weights merges a copy in the middle of the training."""
    tokenizer = world(1)[0]
    model = tiny_policy(tokenizer, hidden=64)
    add_adapters(model, QLORA)
    held, ids = packed(model), text(tokenizer)
    with torch.no_grad():
        before = model(ids).logits
        merge(copy.deepcopy(model))
        assert torch.equal(model(ids).logits, before)
    assert all(torch.equal(value, packed(model)[name]) for name, value in held.items())


def test_without_the_package_one_line_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.nn", None)
    with pytest.raises(UserError, match=r"lora.quantize needs .*pip install 'stepwell\[qlora\]'"):
        add_adapters(tiny_policy(world(1)[0]), QLORA)
