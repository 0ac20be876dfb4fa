"""Sampling ahead of the trainer: order, versions, what a checkpoint holds, faults."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rl_world import taught_policy, world
from torch import nn

from data.settings import read_yaml
from reasoning_rl.config import PPOConfig
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.rollout.pipeline import RolloutPipeline
from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.rollout.vllm_weights import SyncRecord
from reasoning_rl.sampler import ProblemSampler

ROOT = Path(__file__).resolve().parent.parent


class Engine:
    """A generator with weights of its own: it keeps what was pushed, and when."""

    def __init__(self) -> None:
        self.version, self.calls = 0, 0
        self.config = EngineConfig()
        self.sync = type("Sync", (), {"last": SyncRecord(num_bytes=2**20)})()
        self.events: list[str] = []
        self.gate: threading.Event | None = None

    def generate(self) -> int:
        self.events.append(f"begin {self.calls} v{self.version}")
        if self.gate is not None:
            assert self.gate.wait(5)
        self.calls += 1
        self.events.append(f"end {self.calls - 1} v{self.version}")
        return self.calls - 1

    def push(self, weights: Any, version: int) -> None:
        self.events.append(f"push {version}")
        self.version = version

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


def pipeline(engine: Engine, max_ahead: int, count: int = 40) -> tuple[RolloutPipeline[Any], ProblemSampler]:
    sampler = ProblemSampler(world(count)[1], seed=1)

    def sample() -> tuple[list[str], int]:
        return [p.id for p in sampler.next(4)], engine.generate()

    return RolloutPipeline(engine, sampler, sample, max_ahead=max_ahead), sampler


@pytest.mark.parametrize("max_ahead", [0, 1, 3])
def test_batches_come_in_order_and_are_at_most_so_many_updates_old(max_ahead: int) -> None:
    engine = Engine()
    rollouts, _ = pipeline(engine, max_ahead)
    reference = ProblemSampler(world(40)[1], seed=1)
    rollouts.sync(nn.Identity(), 0)
    for iteration in range(1, 9):
        ids, call = rollouts.next()
        assert ids == [p.id for p in reference.next(4)] and call == iteration - 1
        rollouts.sync(nn.Identity(), iteration)
        assert 0 <= rollouts.metrics(iteration)["rollout/updates_behind"] <= max_ahead
    rollouts.close()
    for begin, end in zip(engine.events, engine.events[1:], strict=False):
        if begin.startswith("begin"):  # no push in the middle of a batch
            assert end == begin.replace("begin", "end")


def test_the_next_batch_is_sampled_while_this_one_trains() -> None:
    engine = Engine()
    rollouts, _ = pipeline(engine, 1)
    rollouts.next()
    begun = time.monotonic()
    while not any(e.startswith("end 1") for e in engine.events):
        assert time.monotonic() - begun < 5
    time.sleep(0.2)
    assert "begin 2 v0" not in engine.events  # one batch ahead, not two
    rollouts.close()


def test_a_sync_waits_for_the_batch_in_progress() -> None:
    engine = Engine()
    rollouts, _ = pipeline(engine, 1)
    rollouts.next()
    rollouts._queue[0].done.wait(5)  # sampled before there is a gate
    engine.gate = threading.Event()
    rollouts.next()
    while engine.events[-1] != "begin 2 v0":
        time.sleep(0.01)
    threading.Timer(0.2, engine.gate.set).start()
    rollouts.sync(nn.Identity(), 1)
    assert engine.events[-2:] == ["end 2 v0", "push 1"]
    rollouts.close()


def test_no_batch_is_sampled_that_nobody_will_ask_for() -> None:
    engine = Engine()
    rollouts, _ = pipeline(engine, 3)
    for left in (2, 1, 0):
        rollouts.next(left=left)
    time.sleep(0.1)
    assert engine.calls == 3
    rollouts.close()


def test_overlap_is_the_sampling_during_which_the_trainer_worked() -> None:
    """0.3 s of sampling, 0.1 s of training before a sync that waits for the rest: 0.1 s were hidden."""
    engine = Engine()
    rollouts, _ = pipeline(engine, 1)
    rollouts.next()
    rollouts._queue[0].done.wait(5)
    engine.gate = threading.Event()
    rollouts.next()
    while engine.events[-1] != "begin 2 v0":
        time.sleep(0.001)
    threading.Timer(0.3, engine.gate.set).start()
    time.sleep(0.1)
    rollouts.sync(nn.Identity(), 1)
    rollouts.next()
    assert 0.05 < rollouts.metrics(3)["time/overlap_seconds"] < 0.2
    rollouts.close()


def test_a_checkpoint_forgets_the_batches_ahead() -> None:
    engine = Engine()
    rollouts, sampler = pipeline(engine, 2)
    used = [rollouts.next() for _ in range(3)]
    rollouts.sync(nn.Identity(), 3)
    deadline = time.monotonic() + 5
    while engine.calls < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    states = {name: part.state_dict() for name, part in rollouts.parts().items()}
    rollouts.close()
    assert engine.calls > 3 and sampler.position > 12  # the live ones are further on
    resumed_engine = Engine()
    resumed, _ = pipeline(resumed_engine, 2)
    for name, part in resumed.parts().items():
        part.load_state_dict(states[name])
    problems, call = resumed.next()
    expected = ProblemSampler(world(40)[1], seed=1)
    assert [p.id for p in expected.next(16)][12:] == problems and call == 3 == len(used)
    resumed.close()


def test_what_sampling_raises_reaches_the_trainer() -> None:
    def fails() -> None:
        raise RuntimeError("the engine is gone")

    for max_ahead in (0, 1):
        rollouts = RolloutPipeline(Engine(), ProblemSampler(world(8)[1], 0), fails, max_ahead=max_ahead)
        with pytest.raises(RuntimeError, match="the engine is gone"):
            rollouts.next()
        rollouts.close()


def test_a_generator_that_holds_the_policy_needs_no_push() -> None:
    tokenizer, policy = taught_policy()
    generator = HFGenerator(policy, tokenizer)
    rollouts = RolloutPipeline(generator, ProblemSampler(world(8)[1], 0), lambda: 5)
    rollouts.sync(policy, 7)
    assert generator.version == 7 and rollouts.next() == 5 and rollouts.metrics(8) == {}


def test_settings_that_cannot_work_are_refused() -> None:
    base = {"policy": "x", "reward": {"form": "none"}, "critic": {"init": "policy"}}

    def engine(**over: Any) -> dict[str, Any]:
        return base | {"rollout": {"samples_per_problem": 2, **over}}

    with pytest.raises(ValueError, match="max_ahead 1 needs an engine beside the trainer"):
        PPOConfig.from_preset(engine(engine={"max_ahead": 1}))
    with pytest.raises(ValueError, match="max_ahead samples while the policy trains"):
        PPOConfig.from_preset(engine(engine={"backend": "vllm-server", "max_ahead": 1}, dynamic_rounds=2))
    with pytest.raises(ValueError, match="url is an address for backend vllm-server"):
        EngineConfig(backend="vllm", url="http://127.0.0.1:1")
    with pytest.raises(ValueError, match="is no http address"):
        EngineConfig(backend="vllm-server", url="127.0.0.1:8000")


def test_the_vllm_quickstart_differs_from_the_quickstart_in_its_engine_alone() -> None:
    plain, vllm = (
        PPOConfig.from_preset(read_yaml(ROOT / "configs" / name))
        for name in ("quickstart.yaml", "quickstart-vllm.yaml")
    )
    assert vllm.rollout.engine.backend == "vllm"
    rollout = vllm.rollout.model_copy(update={"engine": EngineConfig()})
    assert vllm.model_copy(update={"rollout": rollout, "output_dir": plain.output_dir}) == plain
