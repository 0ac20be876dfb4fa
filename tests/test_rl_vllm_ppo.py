"""Training with rollouts from a real vLLM engine: the weights follow, and a resumed run is the whole one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_runs import learner_for, settings
from rl_world import OracleScorer, oracle_grader, taught_policy, world
from vllm_cases import perturb

from data.schema import Sampling
from prm.checkpoint import save_model
from reasoning_rl.ppo import run_ppo
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.rollout.make import PolicyEngine, make_generator
from reasoning_rl.rollout.settings import EngineConfig
from reasoning_rl.telemetry import RunLog, read_metrics

pytest.importorskip("vllm", reason="the engine is not installed")
pytestmark = pytest.mark.vllm


WIDTH = 64
"""Of the policy, with two heads: the CPU engine has kernels for heads of 32, none for 24."""


class Stop(Exception):
    pass


def run(folder: Path, model: Path, *, stop_after: int | None = None, resume: bool = False) -> Any:
    """Three iterations with the engine; return (metrics, policy)."""
    engine = {"backend": "vllm", "kv_gib": 0.25, "max_num_seqs": 16}
    rollout = {"problems_per_iteration": 8, "samples_per_problem": 2, "max_new_tokens": 60, "engine": engine}
    config = settings(folder, policy=str(model), rollout=rollout)
    tokenizer, policy = taught_policy(WIDTH)
    _, problems = world(32)
    learner = learner_for(config, tokenizer, policy=policy)
    generator = make_generator(config.rollout.engine, path=str(model), tokenizer=tokenizer, trains=True)

    class Scorer(OracleScorer):
        calls = 0

        def score(self, *args: Any) -> Any:
            self.calls += 1
            if stop_after is not None and self.calls > stop_after:
                raise Stop
            return super().score(*args)

    try:
        run_ppo(
            config,
            learner=learner,
            tokenizer=tokenizer,
            problems=problems,
            generator=generator,
            render=lambda text: f"{text}\n",
            scorer=Scorer(problems),
            grader=oracle_grader,
            log=RunLog(folder),
            resume=resume,
        )
    except Stop:
        pass
    finally:
        generator.close()
    return read_metrics(folder), learner.policy


def test_weights_follow_and_a_resumed_run_is_the_whole_one(tmp_path: Path) -> None:
    tokenizer, policy = taught_policy(WIDTH)
    save_model(tmp_path / "model", policy, tokenizer)
    rows, trained = run(tmp_path / "whole", tmp_path / "model")
    assert len(rows) == 3
    # Were the engine's weights those of the first iteration, the third's samples would differ from them.
    assert all(row["rollout/mismatch_max"] < 1e-4 and row["rollout/updates_behind"] == 0 for row in rows)
    start = dict(policy.named_parameters())
    assert any(not torch.equal(p, start[name]) for name, p in trained.named_parameters())
    run(tmp_path / "stopped", tmp_path / "model", stop_after=2)
    again, resumed = run(tmp_path / "stopped", tmp_path / "model", resume=True)
    assert again == rows
    for a, b in zip(trained.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_engine_of_rounds_samples_from_each_policy_in_turn(tmp_path: Path) -> None:
    tokenizer, first = taught_policy(WIDTH)
    save_model(tmp_path / "model", first, tokenizer)
    second = copy.deepcopy(first)
    perturb(second, "norm")
    config = EngineConfig(backend="vllm", kv_gib=0.25, max_num_seqs=16)
    prompts = [f"{problem.text}\n" for problem in world(16)[1]]
    sampling = Sampling(max_new_tokens=40, temperature=0.0)
    engine = PolicyEngine(config, path=str(tmp_path / "model"))
    try:
        drawn = []
        for policy in (second, first):  # what is in the folder is not what is sampled first
            generator = engine(policy, tokenizer)
            drawn.append([group[0].text for group in generator.generate(prompts, sampling)])
            generator.sleep()
            expected = HFGenerator(policy, tokenizer).generate(prompts, sampling)
            assert drawn[-1] == [group[0].text for group in expected]
        assert drawn[0] != drawn[1]
    finally:
        engine.close()
