"""What a run survives. The long drills, with counts, are in benchmarks/faults.py."""

import copy
import itertools
import json
import math
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate import Accelerator
from cli_cases import ENVIRONMENT, ppo_settings, save_models, write_yaml
from rl_runs import learner_for, run, settings
from rl_world import OracleScorer, world

from data.errors import UserError
from prm.checkpoint import list_checkpoints, save_together
from reasoning_rl.runtime import be_deterministic
from reasoning_rl.telemetry import read_metrics


class Poisoned(OracleScorer):
    """Gives NaN in the iterations named."""

    def __init__(self, problems, iterations) -> None:
        super().__init__(problems)
        self.iterations = iterations
        self.calls = 0

    def score(self, problems, solutions):
        self.calls += 1
        scores = super().score(problems, solutions)
        if self.calls in self.iterations:
            scores[0] = [math.nan] * len(scores[0])
        return scores


def test_a_nan_reward_skips_its_iteration_is_counted_and_spoils_nothing(tmp_path) -> None:
    tokenizer, problems = world(16)
    config = settings(tmp_path, iterations=3)
    learner = learner_for(config, tokenizer)
    rows = run(config, learner, tokenizer, problems, scorer=Poisoned(problems, {2}))
    assert [row["update/skipped"] for row in rows] == [0, 1, 0]
    assert "policy/loss" in rows[2] and "policy/loss" not in rows[1]
    assert all(bool(torch.isfinite(p).all()) for p in learner.policy.parameters())
    assert math.isfinite(learner.moments.mean)


def test_nan_rewards_without_end_stop_the_run_with_the_last_checkpoint_good(tmp_path) -> None:
    tokenizer, problems = world(16)
    config = settings(tmp_path, iterations=9)
    with pytest.raises(UserError, match="step scores were not finite in 5 updates in a row"):
        run(
            config,
            learner_for(config, tokenizer),
            tokenizer,
            problems,
            scorer=Poisoned(problems, range(2, 99)),
        )
    assert len(read_metrics(tmp_path)) == 5  # the first, and four that were skipped
    clean = learner_for(config, tokenizer)
    rows = run(config, clean, tokenizer, problems, resume=True)
    assert [row["iteration"] for row in rows] == list(range(1, 10)), "a sample was lost or taken twice"


def test_a_nan_logprob_skips_the_update_and_leaves_the_weights_alone(tmp_path) -> None:
    tokenizer, problems = world(16)
    config = settings(tmp_path, iterations=1)
    learner = learner_for(config, tokenizer)
    before = copy.deepcopy(learner.critic.model.state_dict())
    with torch.no_grad():
        learner.reference.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match="reference.*holds NaN"):  # nor may it reach a checkpoint
        run(config, learner, tokenizer, problems)
    (row,) = read_metrics(tmp_path)
    assert row["update/skipped"] == 1
    assert all(torch.equal(v, before[k]) for k, v in learner.critic.model.state_dict().items())
    assert list_checkpoints(tmp_path) == []


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


def start(config: str, output_dir, *flags: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "reasoning_rl.cli",
        "ppo",
        "--config",
        config,
        "--output-dir",
        str(output_dir),
    ]
    return subprocess.Popen(
        [*command, *flags], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_sigterm_saves_and_the_resumed_run_ends_with_the_same_bytes(models, tmp_path) -> None:
    values = ppo_settings(models, tmp_path / "unused", iterations=6, save_every=0, num_validation=0)
    config = write_yaml(tmp_path / "ppo.yaml", values)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    one = start(config, whole)
    other = start(config, stopped)
    metrics = stopped / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
        assert other.poll() is None, other.communicate()[0]
        time.sleep(0.005)
    other.send_signal(signal.SIGTERM)
    text = other.communicate(timeout=300)[0]
    assert other.returncode == 143, text
    assert "is saved, --resume continues after it" in text and "Traceback" not in text
    assert len(list_checkpoints(stopped)) == 1
    resumed = start(config, stopped, "--resume")
    assert resumed.communicate(timeout=300)[0] and resumed.returncode == 0
    one.communicate(timeout=300)
    assert metrics.read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_clock_changes_do_not_touch_a_run(tmp_path, monkeypatch) -> None:
    """The wall clock jumps by days, forwards and back, at every look at it."""
    tokenizer, problems = world(16)
    records, jumps = [], itertools.count()
    for name in ("steady", "jumping"):
        if name == "jumping":
            monkeypatch.setattr(time, "time", lambda: 1.7e9 + 1e5 * (-1) ** next(jumps))
        config = settings(tmp_path / name, iterations=2)
        run(config, learner_for(config, tokenizer), tokenizer, problems)
        records.append((tmp_path / name / "metrics.jsonl").read_bytes())
    assert records[0] == records[1]
    timing = [json.loads(line) for line in (tmp_path / "jumping" / "timing.jsonl").read_text().splitlines()]
    assert all(0 <= v < 600 for row in timing for k, v in row.items() if k.startswith("time/"))


def test_deterministic_runs_are_equal_bit_for_bit(tmp_path) -> None:
    tokenizer, problems = world(16)
    weights = []
    try:
        be_deterministic()
        for name in ("one", "two"):
            config = settings(tmp_path / name, iterations=2)
            learner = learner_for(config, tokenizer)
            run(config, learner, tokenizer, problems)
            weights.append([p.clone() for p in learner.policy.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    one, two = (tmp_path / name / "metrics.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_save_that_fails_fails_on_every_process_alike(tmp_path) -> None:
    """Parts whose state takes all processes are asked for it even when the main one cannot write."""

    class Part:
        asked = 0

        def state_dict(self):
            self.asked += 1
            return {"x": torch.zeros(3)}

        def load_state_dict(self, state) -> None:
            raise AssertionError

    (tmp_path / "checkpoints").write_text("a file where a folder must be")
    parts = {"one": Part(), "two": Part()}
    with pytest.raises(UserError, match="cannot save"):
        save_together(tmp_path, 1, parts, accelerator=Accelerator(cpu=True))
    assert [part.asked for part in parts.values()] == [1, 1]
