"""Killed and resumed over the command line: real processes, real SIGKILL, the same bytes at the end."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_cases import ENVIRONMENT, ppo_settings, save_models, write_yaml
from rl_world import taught_policy, world
from safetensors.torch import load_file

from data.arithmetic import label_solution
from data.files import write_atomically
from data.step_readers import write_steps
from reasoning_rl.cli import main

ITERATIONS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"), *taught_policy())


def start(config: str, output_dir: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "reasoning_rl.cli", "ppo", "--config", config]
    return subprocess.Popen(
        [*command, "--output-dir", str(output_dir), *flags],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when(process: subprocess.Popen[str], due: Callable[[], bool]) -> None:
    while not due():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def finish(process: subprocess.Popen[str]) -> None:
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text


def records(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(run_dir: Path) -> bool:
    """Whether a checkpoint is half-written at this moment."""
    return any((run_dir / "checkpoints").glob(".*.tmp/*.pt"))


@pytest.mark.slow
def test_ppo_killed_three_times_ends_with_the_bytes_of_the_uninterrupted_run(models, tmp_path) -> None:
    config = write_yaml(
        tmp_path / "ppo.yaml", ppo_settings(models, tmp_path / "unused", iterations=ITERATIONS)
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(config, whole))

    kill_when(start(config, killed), lambda: records(killed) >= 3)  # between its record and its checkpoint
    kill_when(start(config, killed, "--resume"), lambda: records(killed) >= 6 and saving(killed))
    assert saving(killed)
    # In the middle of an iteration, with the last record torn as by a power cut.
    third = start(config, killed, "--resume")
    kill_when(third, lambda: records(killed) >= 10 and not saving(killed))
    with (killed / "metrics.jsonl").open("ab") as file:
        file.write(b'{"iteration": 11, "cri')
    finish(start(config, killed, "--resume"))

    assert records(whole) == ITERATIONS + 1  # the validation before training is record 0
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_weights(whole, killed)
    assert not saving(killed), "an unfinished checkpoint was left lying about"


def assert_same_weights(one: Path, other: Path) -> None:
    mine, its = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert mine.keys() == its.keys()
    assert all(bool((mine[name] == its[name]).all()) for name in mine)


@pytest.mark.parametrize("verb", ["sft", "prm"])
def test_supervised_runs_resume_over_the_command_line(verb, models, tmp_path, monkeypatch) -> None:
    """The loop's own SIGKILL test is in test_prm_fit; here the verbs carry --resume to it."""
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    _, problems = world(24)
    if verb == "sft":
        rows = [{"prompt": f"{p.text}\n", "response": p.solution} for p in problems]
        write_atomically(tmp_path / "data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    else:
        write_steps(tmp_path / "data.jsonl", [label_solution(p, p.solution) for p in problems])
    run = tmp_path / "run"
    args = [verb, "--model", models / "policy", "--data", tmp_path / "data.jsonl", "--output-dir", run]
    args += ["--fit.batch-size", 4, "--fit.epochs", 2, "--fit.save-every", 3, "--fit.learning-rate", "1e-3"]
    words = [str(arg) for arg in args]
    main(words)
    metrics, weights = (run / "metrics.jsonl").read_bytes(), run / "model" / "model.safetensors"
    before = load_file(weights)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    shutil.rmtree(run / "model")
    main([*words, "--resume"])
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert newest.exists(), "the updates after the older checkpoint were not repeated"
    after = load_file(weights)
    assert all(bool((before[name] == after[name]).all()) for name in before)
