"""Rounds of sampling and learning: iterative DPO, step-level DPO and rejection sampling, and their resume."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from cli_cases import failure, save_models
from rl_world import taught_policy, tiny_policy

import eval.sandbox
from data.arithmetic import NAMES
from data.errors import UserError
from data.schema import Problem, Sampling, Verdict
from data.world_tokenizer import word_tokenizer
from eval.sandbox.verdict import Isolation
from prm.checkpoint import save_model
from prm.fit import FitConfig, fit
from prm.model import load_backbone
from reasoning_rl.cli import main
from reasoning_rl.dpo_iter import DPOIterConfig, LearnPreferences, make_pairs
from reasoning_rl.rft import LearnRight, RFTConfig
from reasoning_rl.rollout import make
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.rounds import RoundsConfig, run_rounds
from reasoning_rl.sampled import Group, ScoredResponse, read_groups
from reasoning_rl.sft import NextToken, encode_pairs
from reasoning_rl.telemetry import RunLog, read_metrics
from reasoning_rl.world import prompt

CPU = Accelerator(cpu=True)
ROLLOUT = {"problems_per_iteration": 32, "samples_per_problem": 4, "max_new_tokens": 12}
TOKENIZER = word_tokenizer()
PROBLEMS = [Problem(f"{name}{n}", f"{name} has {n}.", "7") for name in NAMES for n in range(10, 20)]
"""A world in which 7 is right whatever was asked, and a policy that says 8 half of the time."""


def solution(n: int) -> str:
    return f"Ann has 5\n#### {n}"


class Sevens:
    """The scorer: a step with an 8 is wrong, and so is all after it."""

    def score(self, problems, solutions):
        return [
            [float(not any("8" in s for s in steps[: k + 1])) for k in range(len(steps))]
            for steps in solutions
        ]


def grade(problem: Problem, response: str) -> Verdict:
    return Verdict("correct" if response.endswith(f"#### {problem.answer}") else "wrong")


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    model = tiny_policy(TOKENIZER)
    pairs = [(prompt(p.text), solution(7 + k % 2)) for k, p in enumerate(PROBLEMS)]
    config = FitConfig(learning_rate=1e-2, batch_size=14, epochs=14, save_every=None)
    examples = encode_pairs(TOKENIZER, pairs)
    fit(model, examples, NextToken(), config, accelerator=CPU, run_dir=folder, log=RunLog(folder))
    save_model(folder / "sft", model, TOKENIZER)
    return folder / "sft"


def settings(kind: type[RoundsConfig], policy: Path, folder: Path, **over) -> RoundsConfig:
    fit = FitConfig(learning_rate=2e-3, batch_size=8, epochs=2, save_every=4)
    return kind(policy=str(policy), output_dir=str(folder), **({"rollout": ROLLOUT, "fit": fit} | over))


def sevens(generator) -> dict[str, float]:
    prompts = [prompt(p.text) for p in PROBLEMS[:100]]
    drawn = generator.generate(prompts, Sampling(max_new_tokens=12, seed=1))
    return {"valid/sampled": sum(group[0].text.endswith("#### 7") for group in drawn) / 100}


def run(config: RoundsConfig, *, resume: bool = False, stop_at: int | None = None) -> Path:
    def watch(iteration: int, _: object) -> None:
        if iteration == stop_at:
            raise KeyboardInterrupt

    learn = LearnRight if isinstance(config, RFTConfig) else LearnPreferences
    return run_rounds(
        config,
        learn(config, TOKENIZER, CPU),
        start=lambda _, current: current,
        problems=PROBLEMS,
        grader=grade,
        scorer=Sevens() if config.prm else None,
        accelerator=CPU,
        log=RunLog(config.output_dir, watch=watch),
        validate=sevens,
        resume=resume,
    )


def test_iterative_dpo_improves_the_policy_round_by_round(tmp_path: Path, policy: Path) -> None:
    run(settings(DPOIterConfig, policy, tmp_path / "run", rounds=2))
    rows = read_metrics(tmp_path / "run")
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert rows[2]["valid/sampled"] > rows[0]["valid/sampled"] + 0.15
    assert rows[2]["reward/outcome"] > rows[1]["reward/outcome"]  # round 2 sampled what round 1 trained
    assert rows[1]["pairs/count"] > 0 and 0 < rows[1]["pairs/accuracy"] <= 1


def test_rejection_sampling_imitates_right_answers(tmp_path: Path, policy: Path) -> None:
    run(settings(RFTConfig, policy, tmp_path / "run"))
    rows = read_metrics(tmp_path / "run")
    groups = read_groups(tmp_path / "run" / "round_01" / "samples.jsonl")
    assert rows[1]["chains/count"] == sum(
        len({r.text for r in g.responses if r.outcome == 1}) for g in groups
    )
    assert rows[1]["valid/sampled"] > rows[0]["valid/sampled"] + 0.1


def test_step_pairs_change_the_step_that_decides(tmp_path: Path, policy: Path) -> None:
    run(settings(DPOIterConfig, policy, tmp_path / "run", prm="x", pairs="steps"))
    rows = read_metrics(tmp_path / "run")
    assert rows[1]["pairs/count"] > 5 and rows[1]["valid/sampled"] > rows[0]["valid/sampled"] + 0.1


@pytest.mark.parametrize("stop_at", [0, 1])
def test_a_run_that_was_stopped_goes_on_with_its_round(tmp_path: Path, policy: Path, stop_at: int) -> None:
    whole = run(settings(DPOIterConfig, policy, tmp_path / "whole", rounds=2))
    torn = settings(DPOIterConfig, policy, tmp_path / "torn", rounds=2)
    with pytest.raises(KeyboardInterrupt):
        run(torn, stop_at=stop_at)
    with pytest.raises(UserError, match="add --resume") if stop_at else nullcontext():
        again = run(torn)
    again = run(torn, resume=True) if stop_at else again
    weights = load_backbone(again).state_dict()
    for name, value in load_backbone(whole).state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0)
    assert read_metrics(tmp_path / "torn") == read_metrics(tmp_path / "whole")


def test_the_reference_may_stay_the_first_policy(tmp_path: Path, policy: Path) -> None:
    """Only against the first policy does the second round begin with a margin."""
    margins = {}
    for reference in ("previous", "first"):
        run(settings(DPOIterConfig, policy, tmp_path / reference, reference=reference, rounds=2))
        first = (tmp_path / reference / "round_02" / "metrics.jsonl").read_text().splitlines()[0]
        margins[reference] = json.loads(first)["train/margin"]
    assert margins["previous"] == pytest.approx(0, abs=1e-6)  # update 1 sees the reference itself
    assert abs(margins["first"]) > 1e-3


def test_a_rounds_pairs_are_those_that_its_settings_ask_for() -> None:
    def row(text: str, outcome: float, *scores: float) -> ScoredResponse:
        return ScoredResponse(text, True, 3, outcome, tuple(text.split("\n")), scores)

    rows = (row("s\na", 1, 0.9, 0.8), row("s\nb", 1, 0.9, 0.6), row("s\nc", 0, 0.9, 0.4), row("t", 0, 0.1))
    groups = [Group("p", "problem", "prompt\n", rows), Group("q", "other", "prompt\n", rows[2:])]

    def pairs(**over) -> list[tuple[str, str, str]]:
        config = DPOIterConfig(policy="p", prm="x", **over)
        return [(p.prefix, p.chosen, p.rejected) for p in make_pairs(groups, config)]

    whole = {"score": "both"}
    both = [("", "s\na", "t"), ("", "s\nb", "s\nc")]
    assert pairs(**whole) == [*both, ("", "s\nc", "t")]
    assert pairs(**whole, pairs_per_problem=1) == [both[0], ("", "s\nc", "t")]
    assert pairs(**whole, min_gap=1.3) == [both[0]]  # the gaps: 1.7, 1.2 and 0.3
    assert pairs(**whole, require_right=True) == both
    steps = {"pairs": "steps"}
    first = [("", "s\n", "t")]
    assert set(pairs(**steps, pairs_per_problem=9)) >= {("s\n", "a", "c"), ("s\n", "b", "c")}
    assert len([p for p in pairs(**steps, pairs_per_problem=1) if p[0]]) == 1
    strict = pairs(**steps, pairs_per_problem=9, step_threshold=0.7)
    assert {p[1:] for p in strict if p[0]} == {("a", "b"), ("a", "c")} and set(first) <= set(strict)


@pytest.mark.parametrize(
    "over", [{"score": "reward_model", "reward_model": "m"}, {"min_gap": 0.1}, {"require_right": True}]
)
def test_what_ranks_responses_is_refused_for_steps(over) -> None:
    with pytest.raises(UserError, match=f"{next(iter(over))} ranks whole responses"):
        DPOIterConfig.from_dict({"policy": "p", "prm": "x", "pairs": "steps", **over})


def test_mistakes_are_named(tmp_path: Path, policy: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    common = ["--policy", policy, "--output-dir", tmp_path / "run"]
    assert "set prm" in failure(capsys, "dpo-iter", *common, "--pairs", "steps")
    assert "give both or neither" in failure(capsys, "dpo-iter", *common, "--score", "reward_model")
    assert "min_step_score needs step scores" in failure(capsys, "rft", *common, "--min-step-score", "0.5")
    text = failure(capsys, "rft", *common, "--prm", "oracle", "--problems", "gsm8k")
    assert "knows the arithmetic world only" in text
    server = ["--rollout.engine.backend", "vllm-server", "--rollout.engine.max-ahead", "1"]
    assert "max_ahead samples while a policy trains" in failure(capsys, "rft", *common, *server)
    for option in ("--rollout.dynamic-rounds", "--rollout.truncated-is", "--rollout.old-logprobs"):
        assert f"unknown option {option}" in failure(capsys, "rft", *common, option, "1")  # PPO's alone
    text = failure(capsys, "rft", *common, "--num-problems", "8")
    assert "lower it" in text


class Engine:
    """A generator with weights of its own, as vLLM's: samples from what was last sent to it."""

    def __init__(self, path: str, tokenizer) -> None:
        self.policy, self.tokenizer, self.calls = load_backbone(path), tokenizer, []

    def push(self, named_tensors, version: int) -> None:
        self.calls.append("push")
        self.policy.load_state_dict(dict(named_tensors), strict=False)  # tied weights come once
        self.policy.tie_weights()

    def generate(self, prompts, sampling):
        assert self.calls[-1] in ("push", "generate"), "asleep"
        self.calls.append("generate")
        return HFGenerator(self.policy, self.tokenizer).generate(prompts, sampling)

    def sleep(self) -> None:
        self.calls.append("sleep")

    def close(self) -> None:
        self.calls.append("close")


def test_an_engine_gets_every_rounds_policy_and_sleeps_while_one_trains(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    models = save_models(tmp_path, *taught_policy())
    started = []

    def start(config, *, path, tokenizer, **_) -> Engine:
        started.append(Engine(path, tokenizer))
        return started[-1]

    monkeypatch.setattr(make, "make_generator", start)
    args = ["dpo-iter", "--policy", str(models / "policy"), "--prm", str(models / "prm"), "--score", "prm"]
    args += ["--num-problems", "20", "--num-validation", "8", "--rounds", "2", "--fit.learning-rate", "1e-3"]
    args += ["--rollout.problems-per-iteration", "16", "--rollout.max-new-tokens", "48"]
    main([*args, "--output-dir", str(tmp_path / "hf")])
    main([*args, "--output-dir", str(tmp_path / "vllm"), "--rollout.engine.backend", "vllm"])
    validate, sample = ["push", "generate", "generate"], ["push", "generate", "sleep"]
    (engine,) = started
    assert engine.calls == [*validate, *sample, *validate, *sample, *validate, "close"]
    assert read_metrics(tmp_path / "vllm") == read_metrics(tmp_path / "hf")
    for round_ in ("round_01", "round_02"):
        samples = [(tmp_path / name / round_ / "samples.jsonl").read_text() for name in ("vllm", "hf")]
        assert samples[0] == samples[1]


def test_programs_run_without_isolation_where_that_was_asked_for(
    tmp_path, policy, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    monkeypatch.setattr(eval.sandbox, "isolation", lambda: Isolation("unsandboxed"))
    args = ["rft", "--policy", policy, "--problems", "programs", "--num-problems", "1"]
    args += ["--output-dir", tmp_path / "run"]
    assert "--allow-unsandboxed" in failure(capsys, *args)
    assert "lower it" in failure(capsys, *args, "--allow-unsandboxed")  # the next obstacle


def test_the_command_runs_rounds(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    models = save_models(tmp_path, *taught_policy())
    args = ["dpo-iter", "--policy", str(models / "policy"), "--prm", str(models / "prm"), "--score", "prm"]
    args += ["--output-dir", str(tmp_path / "run"), "--num-problems", "20", "--num-validation", "8"]
    args += ["--rollout.problems-per-iteration", "16", "--rollout.max-new-tokens", "48"]
    main(args)
    assert (tmp_path / "run" / "model" / "config.json").exists() and (
        tmp_path / "run" / "config.yaml"
    ).exists()
    assert {"valid/greedy", "pairs/count"} <= read_metrics(tmp_path / "run")[1].keys()
    with pytest.raises(SystemExit):
        main([*args, "--resume"])  # it is finished: nothing is trained twice
