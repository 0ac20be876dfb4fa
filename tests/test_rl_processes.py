"""What several processes of a run share, and what they refuse: without starting any."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_cases import failure
from torch import nn

from data.errors import UserError
from data.schema import Problem
from prm.best import BestWeights
from prm.sharding import require_whole_weights
from reasoning_rl.cli import SHARED, VERBS
from reasoning_rl.config import PPOConfig
from reasoning_rl.presets import merge
from reasoning_rl.rollout.pipeline import RolloutPipeline
from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.rollout.vllm_weights import SyncRecord
from reasoning_rl.shares import estimate_together, refuse_what_needs_one_process
from reasoning_rl.types import Rollout

BASE = {
    "policy": "p",
    "prm": "q",
    "rollout": {"problems_per_iteration": 8, "samples_per_problem": 4},
    "update": {"minibatch_size": 8},
}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"rollout": {"problems_per_iteration": 6}}, "problems_per_iteration 6 must be divisible by 4"),
        ({"rollout": {"engine": {"backend": "vllm"}}}, "backend vllm is an engine of one process"),
        ({"rollout": {"engine": {"backend": "vllm-server"}}}, "`stepwell serve` and set rollout.engine.url"),
        ({"prm_backend": "vllm"}, "prm_backend vllm is an engine of one process: take local"),
    ],
)
def test_what_several_processes_cannot_share_is_refused_at_the_start(over, message) -> None:
    config = PPOConfig.from_preset(merge(BASE, over))
    with pytest.raises(UserError, match=message):
        refuse_what_needs_one_process(config, 4)
    refuse_what_needs_one_process(config, 1)


def test_all_that_cannot_be_shared_is_said_at_once() -> None:
    over = {"rollout": {"problems_per_iteration": 6, "engine": {"backend": "vllm"}}, "prm_backend": "vllm"}
    with pytest.raises(UserError, match=r"has 4 processes\n.*divisible.*\n.*backend vllm.*\nprm_backend"):
        refuse_what_needs_one_process(PPOConfig.from_preset(merge(BASE, over)), 4)


def test_a_server_elsewhere_is_shared() -> None:
    engine = {"backend": "vllm-server", "url": "http://127.0.0.1:8000", "max_ahead": 1}
    refuse_what_needs_one_process(PPOConfig.from_preset(merge(BASE, {"rollout": {"engine": engine}})), 4)


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - set(SHARED)))
def test_verbs_for_one_process_say_so_under_a_launcher(verb, monkeypatch, capsys) -> None:
    """Otherwise every process would write the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    said = failure(capsys, verb)
    assert f"{verb} is for one process and the launcher started 2" in said


def cut_up(stage: int) -> Any:
    """The accelerator of a run under ZeRO."""
    return SimpleNamespace(
        distributed_type=SimpleNamespace(value="DEEPSPEED"),
        deepspeed_plugin=SimpleNamespace(zero_stage=stage),
        is_main_process=True,
    )


def test_what_needs_whole_weights_is_refused_where_they_are_cut_up(tmp_path) -> None:
    require_whole_weights(cut_up(2), "adapters")
    with pytest.raises(UserError, match="adapters need whole weights on every process: take zero2 or ddp"):
        require_whole_weights(cut_up(3), "adapters")
    BestWeights(tmp_path, None, cut_up(3))
    with pytest.raises(UserError, match="keep_best.*need whole weights"):
        BestWeights(tmp_path, "valid/step_auc", cut_up(3))


class Engine:
    """One process's end of a server; `log` is what the server sees of all of them."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.version, self.config = log, 0, EngineConfig()
        self.sync = SimpleNamespace(last=SyncRecord())

    def generate(self, seconds: float) -> int:
        self.log.append("begin")
        time.sleep(seconds)
        self.log.append("end")
        return self.version

    def push(self, weights: Any, version: int) -> None:
        self.log.append(f"push {version}")
        self.version = version

    def follow(self, version: int) -> None:
        self.version = version

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("max_ahead", [0, 1])
def test_weights_come_once_and_between_the_batches_of_all_processes(max_ahead) -> None:
    log: list[str] = []
    everyone = threading.Barrier(2)
    versions: list[list[int]] = [[], []]

    def process(rank: int) -> None:
        engine = Engine(log)
        alike = SimpleNamespace(is_main_process=rank == 0, wait_for_everyone=everyone.wait)
        # The second process takes longer to sample: the first must not change its weights meanwhile.
        pipe = RolloutPipeline(
            engine,
            engine,
            lambda: engine.generate(0.002 + 0.02 * rank),
            max_ahead=max_ahead,
            accelerator=alike,
        )
        pipe.sync(nn.Linear(1, 1), 0)
        for version in range(1, 6):
            versions[rank].append(pipe.next())
            everyone.wait()  # stands for the gathering of the batch
            pipe.sync(nn.Linear(1, 1), version)
        pipe.close()

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    open_batches = 0
    for event in log:
        open_batches += (event == "begin") - (event == "end")
        assert open_batches == 0 or not event.startswith("push")
    assert [event for event in log if event.startswith("push")] == [f"push {i}" for i in range(6)]
    assert len(versions[0]) == len(versions[1]) == 5
    if not max_ahead:
        assert versions == [[0, 1, 2, 3, 4]] * 2


class Lengths:
    """Values that tell which rows they are of; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def estimate(self, rollout: Rollout, outcomes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        self.asked += [p.text for p in rollout.problems]
        values = rollout.lengths[:, None] * rollout.step_mask + outcomes[:, None]
        return values.float(), rollout.lengths.float(), len(outcomes)


def test_completions_are_shared_out_by_problem_and_all_processes_get_all() -> None:
    texts = ["a", "a", "b", "b", "c", "c"]
    rows = torch.arange(len(texts))
    rollout = Rollout(
        problems=[Problem(str(i), text, "0") for i, text in enumerate(texts)],
        responses=texts,
        steps=[[text] for text in texts],
        input_ids=rows[:, None],
        lengths=rows + 1,
        action_mask=rows[:, None] > 0,
        behaviour_logprobs=rows[:, None].float(),
        complete=rows >= 0,
        step_ends=rows[:, None],
        step_mask=torch.ones(len(texts), 2, dtype=torch.bool),
    )
    outcomes = torch.tensor([1.0, 0, 1, 0, 1, 0])
    alone = Lengths()
    whole = estimate_together(alone, rollout, outcomes)
    parts: list[torch.Tensor] = []
    found = []
    for summed in (False, True):  # twice: the second time every process is given the sum of the first
        for rank in range(2):
            own = Lengths()

            def reduce(part: torch.Tensor, _: str, last: bool = summed) -> torch.Tensor:
                parts.append(part)
                return parts[0] + parts[1] if last else part

            here = SimpleNamespace(num_processes=2, process_index=rank, device="cpu", reduce=reduce)
            result = estimate_together(own, rollout, outcomes, here)
            assert own.asked == (["a", "a", "c", "c"] if rank == 0 else ["b", "b"])
            if summed:
                found.append(result)
    for after, start, tokens in found:
        assert torch.equal(after, whole[0]) and torch.equal(start, whole[1]) and tokens == whole[2] == 6
