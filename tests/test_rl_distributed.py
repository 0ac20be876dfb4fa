"""Several processes against one, with real collectives (gloo): the same losses, weights, moments and counts.

Each engine runs tests/distributed_run.py once: ten PPO updates with a checkpoint in their middle, an odd last
SFT batch, whole loops with provers, PRIME and VinePPO, learning from pairs and by rejection.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands import launch as launch_command
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data.errors import UserError
from data.schema import Problem
from reasoning_rl.runtime import Request, check, read_request
from reasoning_rl.shares import join, own_problems, shares
from reasoning_rl.types import Rollout

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))},
    "PYTHONPATH": str(ROOT),
    "STEPWELL_DEVICE": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
Start = Callable[[str], tuple[Path, int]]
Launch = Callable[[str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Start]:
    """A function that starts processes once (distributed_launch.py); it returns the folder and exit code."""
    folder = tmp_path_factory.mktemp("engines")
    child = subprocess.Popen(
        [sys.executable, "tests/distributed_launch.py"],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(name: str) -> tuple[Path, int]:
        own = folder / name
        child.stdin.write(f"{name} {own}\n")
        child.stdin.flush()
        return own, int(child.stdout.readline())

    yield run
    child.stdin.close()
    child.terminate()
    child.wait()


@pytest.fixture(scope="module")
def launch(start: Start) -> Launch:
    """A function that runs the script once under an engine; it returns the folder and the numbers."""

    @cache
    def run(engine: str) -> tuple[Path, dict[str, Any]]:
        folder, code = start(engine)
        assert code == 0, (folder / "stderr").read_text()[-3000:]
        return folder, json.loads((folder / "numbers.json").read_text())

    return run


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "silent"])
def test_the_others_stop_and_name_the_process_that_is_gone(how, start) -> None:
    folder, code = start(how)
    said = (folder / "stderr").read_text()
    assert code in (2, 75), said
    assert "process 1 of 2 on" in said and "--resume continues" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_two_processes_give_the_numbers_and_weights_of_one(engine, launch) -> None:
    if engine.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed")
    (folder, one), (there, other) = launch("one"), launch(engine)
    assert other["engine"] == engine
    assert one["moments"]["squares"] > 0, "rewards must differ, or their moments prove nothing"
    assert other["moments"] == pytest.approx(one["moments"], abs=1e-5)
    assert other["value_norm"] == pytest.approx(one["value_norm"], abs=1e-4)
    adapters = ["adapters"] if engine in ("ddp", "zero2") else []
    for stage in ("ppo", "sft", "process", "vine", *adapters, "dpo", "rm", "rft"):
        assert len(other[stage]) == len(one[stage])
        for mine, its in zip(one[stage], other[stage], strict=True):
            assert its == pytest.approx(mine, rel=1e-4, abs=1e-4)
    assert {"implicit/loss", "rollout/value_tokens", "alarm/gap"} <= one["process"][-1].keys()
    for name in ("ppo", "sft_model"):
        # A plain folder, whatever engine it comes from.
        AutoModelForCausalLM.from_pretrained(there / name)
        mine, its = (load_file(run / name / "model.safetensors") for run in (folder, there))
        assert_close(mine, its)
    for name in ("critic", "process", "vine", *adapters, "preferences"):
        mine, its = (torch.load(run / f"{name}.pt", weights_only=True) for run in (folder, there))
        assert_close(mine, its)
        if name == "adapters":  # they begin at 0
            assert all(value.any() for key, value in mine.items() if "lora_B" in key)


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-4)


def test_the_shares_of_the_processes_join_to_what_one_would_have() -> None:
    problems = [Problem(str(i), f"problem {i}", "0") for i in range(6)]

    def rollout(of: list[Problem], width: int) -> Rollout:
        rows = [(p, g) for p in of for g in range(2)]
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for i, (p, g) in enumerate(rows):
            ids[i, :3] = 10 * int(p.id) + g
        flags = torch.ones(len(rows), dtype=torch.bool)
        return Rollout(
            problems=[p for p, _ in rows],
            responses=[f"{p.id}.{g}" for p, g in rows],
            steps=[[f"{p.id}.{g}"] for p, g in rows],
            input_ids=ids,
            lengths=torch.full((len(rows),), 3),
            action_mask=ids > 0,
            behaviour_logprobs=ids.float(),
            complete=flags,
            step_ends=torch.zeros(len(rows), 1, dtype=torch.long),
            step_mask=flags[:, None],
        )

    parts = [rollout(own_problems(problems, rank=rank, world=3), 3 + rank) for rank in range(3)]
    joined, whole = join(parts, 2), rollout(problems, 5)
    assert joined.responses == whole.responses and joined.problems == whole.problems
    assert torch.equal(joined.input_ids, whole.input_ids)
    assert torch.equal(joined.action_mask, whole.action_mask)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_rows_are_shared_out_once_in_equally_many_micro_batches(world) -> None:
    lengths = torch.tensor([90, 3, 3, 80])
    plans = [list(shares(lengths, 100, rank=rank, world=world)) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    rows = [int(row) for plan in plans for group, counts in plan if counts for row in group]
    assert sorted(rows) == [0, 1, 2, 3]


LAUNCHED = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        # What accelerate launch --cpu --num_processes 2 leaves behind: one process, and an address.
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "started one; add --multi_gpu"),
        ({"STEPWELL_NUM_PROCESSES": "4", **LAUNCHED}, "asks for 4 processes and the launcher started 2"),
        ({"STEPWELL_NUM_PROCESSES": "2"}, "asks for 2 processes and the launcher started 1"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed was asked for outside a launcher"),
        ({"ACCELERATE_USE_FSDP": "true", **LAUNCHED}, "set fsdp_version: 2"),
        ({"STEPWELL_ENGINE": "zero4", **LAUNCHED}, "must be one of one, ddp, zero1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a whole number"),
    ],
)
def test_a_launch_that_contradicts_itself_is_refused(environment, message) -> None:
    with pytest.raises(UserError, match=message):
        read_request(environment, has_gpu=False)


@pytest.mark.parametrize(
    "path", sorted(Path(ROOT, "configs", "accelerate").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_ready_made_config_launches_what_it_is_named_after(path, monkeypatch) -> None:
    """accelerate's own code turns the file into the environment of a process, and reads that again."""
    if "zero" in path.name and find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed")
    parser = launch_command.launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(path), "--num_machines", "1", "script.py"])
    arguments, defaults, precision_from_file = launch_command._validate_launch_command(arguments)
    if arguments.use_deepspeed:
        names = [*defaults.deepspeed_config, *(["mixed_precision"] if precision_from_file else [])]
        arguments.deepspeed_fields_from_accelerate_config = ",".join(names)
        _, environment = prepare_deepspeed_cmd_env(arguments)
    else:
        environment = prepare_multi_gpu_env(arguments)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    world = "1" if path.stem == "one" else "8"
    launched = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": world} if world != "1" else {}
    request = read_request(environment | launched, has_gpu=True)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    if "zero" not in path.stem:
        assert request.engine == path.stem
        return
    assert request.engine == "zero"
    plugin = DeepSpeedPlugin()  # refuses settings that its own launcher passed on
    zero = plugin.deepspeed_config["zero_optimization"]
    stage = path.stem.split("_offload")[0][-1]
    assert str(zero["stage"]) == stage
    offloaded = "cpu" if "offload" in path.stem else "none"
    assert zero["offload_optimizer"]["device"] == offloaded
    assert zero["offload_param"]["device"] == (offloaded if stage == "3" else "none")


def test_what_is_asked_for_is_read_from_the_launcher() -> None:
    assert read_request({}, has_gpu=True) == Request(1, "one", on_cpu=False)
    assert read_request({"STEPWELL_DEVICE": "cpu"}, has_gpu=True) == Request(1, "one", on_cpu=True)
    assert read_request(LAUNCHED, has_gpu=False) == Request(2, "ddp", on_cpu=True)
    zero = {"ACCELERATE_USE_DEEPSPEED": "true", **LAUNCHED}
    assert read_request(zero, has_gpu=True) == Request(2, "zero", on_cpu=False)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        read_request(zero | {"STEPWELL_DEVICE": "cpu"}, has_gpu=True)


def test_an_accelerator_that_is_not_what_was_asked_for_is_refused(monkeypatch) -> None:
    """The accelerator of a launcher that quietly ran one process, or skipped DeepSpeed."""
    from accelerate import Accelerator

    alone = Accelerator(cpu=True)
    check(alone, Request(1, "one", on_cpu=True))
    with pytest.raises(UserError, match="asked for 2 processes and this run has 1"):
        check(alone, Request(2, "ddp", on_cpu=True))
    with pytest.raises(UserError, match="asked for zero and this run got one"):
        check(alone, Request(1, "zero", on_cpu=True))
    monkeypatch.setenv("STEPWELL_ENGINE", "ddp")
    with pytest.raises(UserError, match="STEPWELL_ENGINE asks for ddp and this run got one"):
        check(alone, Request(1, "one", on_cpu=True))
