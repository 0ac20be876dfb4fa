"""Weights out of an actor: names, whole tensors, bounded buckets. No engine starts here."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_world import tiny_policy, world
from torch import nn

from data.errors import UserError
from reasoning_rl.rollout.make import make_generator
from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.rollout.vllm_engine import fingerprint, start_error
from reasoning_rl.rollout.vllm_weights import ActorWeights, WeightSync, gather_weights

ROOT = Path(__file__).resolve().parent.parent


def test_a_plain_actor_gives_its_parameters_themselves_in_bounded_buckets() -> None:
    model = tiny_policy(world(1)[0])
    buckets = list(gather_weights(model, 20_000))
    sizes = [sum(t.numel() * 4 for _, t in bucket) for bucket in buckets]
    assert len(buckets) > 3
    assert all(size <= 20_000 or len(bucket) == 1 for size, bucket in zip(sizes, buckets, strict=True))
    sent = dict(pair for bucket in buckets for pair in bucket)
    assert sent.keys() == dict(model.named_parameters()).keys()  # the tied head comes once
    assert all(sent[name].data_ptr() == p.data_ptr() for name, p in model.named_parameters())
    source = ActorWeights(model)
    assert source.live
    assert [(m.name, m.shape) for m in source.metadata()] == [(n, tuple(t.shape)) for n, t in source]


def test_wrappers_do_not_show_in_the_names() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = tiny_policy(world(1)[0])
    assert [n for n, _ in ActorWeights(Wrapper(Wrapper(model)))] == [n for n, _ in ActorWeights(model)]


def test_lora_adapters_are_merged_under_the_checkpoints_names() -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_policy(world(1)[0])
    names = {name for name, _ in base.named_parameters()}
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["norm"])
    actor = get_peft_model(base, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in actor.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_()
    before = {name: p.clone() for name, p in actor.named_parameters()}
    source = ActorWeights(actor, bucket_bytes=30_000)
    sent = {name: tensor.clone() for name, tensor in source}
    assert not source.live and sent.keys() == names
    assert all(torch.equal(p, before[name]) for name, p in actor.named_parameters())  # training goes on
    merged = dict(copy.deepcopy(actor).merge_and_unload().named_parameters())
    for name, tensor in sent.items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-6, atol=1e-6)


def test_dora_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    actor = get_peft_model(
        tiny_policy(world(1)[0]), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    )
    with pytest.raises(UserError, match="DoRA adapter cannot be merged"):
        list(ActorWeights(actor))


ZERO3 = """
import sys, torch, deepspeed
sys.path.insert(0, "tests")
from rl_world import tiny_policy, world
from reasoning_rl.rollout.vllm_weights import ActorWeights

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled, behind a lock
deepspeed.init_distributed("gloo")
expected = dict(tiny_policy(world(1)[0]).named_parameters())
settings = {"train_batch_size": 2, "zero_optimization": {"stage": 3}}
engine, *_ = deepspeed.initialize(model=tiny_policy(world(1)[0]), config=settings)
assert all(p.numel() < p.ds_numel for p in engine.module.parameters())
source = ActorWeights(engine, bucket_bytes=20_000)
assert not source.live
assert {m.name: m.shape for m in source.metadata()} == {n: tuple(p.shape) for n, p in expected.items()}
sent = dict(source)
assert sent.keys() == expected.keys()
assert all(torch.equal(tensor, expected[name].data) for name, tensor in sent.items())
assert all(p.numel() < p.ds_numel for p in engine.module.parameters())  # sharded again
print("whole")
"""


class Client:
    """An engine's end of a weight update, which can die at any message."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.dies_at: str | None = None

    def __getattr__(self, name: str) -> Any:
        def take(*arguments: Any) -> None:
            self.messages.append((name, *arguments))
            if name == self.dies_at:
                raise ConnectionError("the engine is gone")

        return take


@pytest.mark.parametrize("dies_at", ["start_weight_update", "update_weights", "finish_weight_update"])
def test_an_engine_that_dies_in_an_update_can_be_given_the_old_weights(tmp_path: Path, dies_at: str) -> None:
    pytest.importorskip("vllm", reason="the engine is not installed")
    client = Client()
    sync = WeightSync(client, EngineConfig(backend="vllm", sync_dir=str(tmp_path)), in_process=False)
    sync.push([("w", torch.ones(3))], 1)
    name, (first, _) = sync.last.name, sync.last.files[0]
    client.dies_at = dies_at
    with pytest.raises(UserError, match="did not take the weights of version 2.*the engine is gone"):
        sync.push([("w", torch.zeros(3))], 2)
    client.dies_at, client.messages = None, []
    sync.send_again(1)
    assert ("finish_weight_update", name) in client.messages
    assert list(tmp_path.rglob("*.safetensors")) == [Path(first)]
    sync.push([("w", torch.zeros(3))], 2)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1 and sync.last.name != name
    sync.close()
    assert not list(tmp_path.iterdir())


def test_weights_of_a_trainer_that_was_killed_are_removed_and_room_is_asked_for(
    tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("vllm", reason="the engine is not installed")
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for pid in (child.pid, os.getpid()):
        (tmp_path / f"stepwell-weights-{pid}-x").mkdir()
    sync = WeightSync(Client(), EngineConfig(backend="vllm", sync_dir=str(tmp_path)), in_process=False)
    sync.push([("w", torch.ones(3))], 1)
    assert not (tmp_path / f"stepwell-weights-{child.pid}-x").exists()
    assert (tmp_path / f"stepwell-weights-{os.getpid()}-x").exists()
    sync.close()
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 20})())
    with pytest.raises(UserError, match="two copies of the weights .* set sync_dir"):
        WeightSync(Client(), EngineConfig(backend="vllm", sync_dir=str(tmp_path)), in_process=False).push(
            [("w", torch.ones(3))], 1
        )


@pytest.mark.slow
def test_shards_of_zero_3_arrive_whole(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    script = tmp_path / "zero3.py"
    script.write_text(ZERO3)
    child = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.stdout.count("whole") == 2, child.stderr[-2000:]


def test_without_vllm_one_line_names_the_extra(monkeypatch: Any) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name))
    tokenizer, _ = world(1)
    for backend in ("vllm", "vllm-server"):
        with pytest.raises(UserError, match=r"not installed: pip install 'stepwell\[vllm\]'"):
            make_generator(EngineConfig(backend=backend), path="nowhere", tokenizer=tokenizer)


def test_what_stops_an_engine_is_said_in_one_message() -> None:
    log = (
        "INFO fine\n(Core pid=7) ERROR 11-21 [core.py:1] ValueError: No available memory for the cache blocks"
    )
    assert "gpu_memory_utilization" in str(start_error(log, "m"))
    other = "Traceback\n  File x\nKeyError: 'rope'\nsome warning about semaphores"
    assert str(start_error(other, "m")) == "vLLM did not start m: KeyError: 'rope'"


def test_fingerprints_tell_weights_apart(tmp_path: Path) -> None:
    from prm.checkpoint import save_model

    tokenizer, _ = world(1)
    for name, seed in (("a", 0), ("same", 0), ("b", 1)):
        save_model(tmp_path / name, tiny_policy(tokenizer, seed), tokenizer)
    a, same, b = (fingerprint(str(tmp_path / name)) for name in ("a", "same", "b"))
    assert a == same != b and fingerprint(str(tmp_path)) == ""
