"""The whole road over the command line: quickstart, evaluation, scripts; models that share no tokenizer."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from cli_cases import failure, ppo_settings, save_models, write_yaml
from rl_world import tiny_policy, world

from data.arithmetic import make_problems
from data.errors import UserError
from data.world_tokenizer import byte_bpe_tokenizer, character_tokenizer
from prm.checkpoint import save_model
from prm.model import load_backbone, load_prm, load_tokenizer
from reasoning_rl import quickstart
from reasoning_rl.cli import main
from reasoning_rl.config import PPOConfig
from reasoning_rl.telemetry import read_metrics

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART_KEYS = {
    *("config", "versions", "machine", "stages", "prm", "accuracy"),
    *("rollouts", "rollout_tokens", "seconds"),
}
STAGES = ["sft", "eval_sft", "label", "prm", "ppo", "eval_ppo"]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- a policy and a reward model with different tokenizers ------------------------------------------------


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that writes characters, a reward model that reads byte-level BPE."""
    folder = tmp_path_factory.mktemp("strangers")
    characters = character_tokenizer()
    policy = tiny_policy(characters)
    policy.config.max_position_embeddings = 1024  # a problem has some 300 characters
    save_models(folder, characters, policy)
    _, problems = world(50)
    bpe = byte_bpe_tokenizer([f"{p.text}\n{p.solution}" for p in problems])
    save_models(folder / "bpe", bpe, tiny_policy(bpe))
    (folder / "prm").rename(folder / "prm_of_characters")
    (folder / "bpe" / "prm").rename(folder / "prm")
    return folder


def test_a_reward_model_with_another_tokenizer_scores_every_step(strangers, tmp_path) -> None:
    """Text is what the two share: steps are cut from it and scored as the reward model reads it."""
    settings = ppo_settings(strangers, tmp_path / "run")
    settings["critic"] = {**settings["critic"], "init": "policy"}
    main(["ppo", "--config", write_yaml(tmp_path / "a.yaml", settings)])
    rows = read_metrics(tmp_path / "run")
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert all(isinstance(value, int | float) for value in row.values()), row  # null is not finite
    for row in rows[1:]:
        assert row["hack/num_steps"] > 0 and row["rollout/unscored_steps"] == 0
        assert 0 < row["reward/step_score"] < 1
    before, after = (load_backbone(folder) for folder in (strangers / "policy", tmp_path / "run" / "model"))
    changed = [
        bool((new != old).any()) for new, old in zip(after.parameters(), before.parameters(), strict=True)
    ]
    assert all(changed), "the policy was trained on these scores"
    assert PPOConfig.from_yaml(tmp_path / "run" / "config.yaml") == PPOConfig.from_preset(settings)


def test_a_critic_cannot_start_from_a_reward_model_that_reads_other_tokens(strangers, tmp_path, capsys):
    config = write_yaml(tmp_path / "a.yaml", ppo_settings(strangers, tmp_path / "run"))
    text = failure(capsys, "ppo", "--config", config, "--critic.init", "prm")
    assert "set critic.init: policy" in text and "may use any tokenizer" in text


def test_a_reward_model_that_another_library_trained_scores_the_steps(strangers, tmp_path, capsys) -> None:
    """TRL's token classifiers carry no mark of ours; raw scores (PURE's difference) are no step reward,
    nor are critiques: a resumed run would draw others."""
    prm = load_prm(strangers / "prm")
    del prm.config.prm_format
    save_model(tmp_path / "prm", prm, load_tokenizer(strangers / "prm"))
    settings = ppo_settings(strangers, tmp_path / "run") | {"prm": str(tmp_path / "prm"), "iterations": 1}
    config = write_yaml(tmp_path / "a.yaml", settings)
    assert "init: prm needs a reward model trained here" in failure(
        capsys, "ppo", "--config", config, "--prm-format", "trl"
    )
    assert "step rewards need probabilities" in failure(
        capsys, "ppo", "--config", config, "--prm-format", "pure"
    )
    assert "format 'genprm' samples critiques" in failure(
        capsys, "ppo", "--config", config, "--prm-format", "genprm", "--critic.init", "policy"
    )
    main(["ppo", "--config", config, "--prm-format", "trl", "--critic.init", "policy"])
    assert 0 < read_metrics(tmp_path / "run")[-1]["reward/step_score"] < 1


# --- quickstart ------------------------------------------------------------------------------------------


def quickstart_words(folder: Path, **over: int) -> list[str]:
    sizes = {"demonstrations": 320, "solutions": 120, "problems": 8, "ppo-iterations": 2, "threads": 1} | over
    return [
        *("quickstart", "--output-dir", str(folder)),
        *(f"--{name}={value}" for name, value in sizes.items()),
    ]


@pytest.mark.slow
def test_quickstart_runs_ends_and_is_not_repeated(tmp_path, capsys, monkeypatch) -> None:
    folder = tmp_path / "quick"
    main(quickstart_words(folder))
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == QUICKSTART_KEYS
    assert list(summary["stages"]) == STAGES
    assert all(stage["seconds"] > 0 and stage["peak_rss_mb"] > 0 for stage in summary["stages"].values())
    for when in ("sft", "ppo"):
        for name in ("standard_greedy", "standard_sampled", "hard_greedy", "hard_sampled"):
            cell = summary["accuracy"][when][name]
            assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 1 and cell["num_problems"] == 8
    assert {"step_auc", "step_accuracy", "ece", "first_error_f1"} <= set(summary["prm"])
    assert summary["rollouts"] == 2 * 64 * 4 and summary["rollout_tokens"] > 0
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    text = capsys.readouterr().out
    assert "after PPO-max" in text and "summary.json" in text

    before = snapshot(folder)
    main(quickstart_words(folder))
    assert snapshot(folder) == before
    assert capsys.readouterr().out.count("done before") == len(STAGES)

    text = failure(capsys, *quickstart_words(folder, solutions=150))
    assert "holds a run with other settings (solutions 120); add --fresh to replace it" in text
    assert snapshot(folder) == before

    def stop(run: quickstart.Quickstart) -> None:
        raise UserError("stopped")

    monkeypatch.setattr(quickstart, "_sft", stop)
    assert "stopped" in failure(capsys, *quickstart_words(folder, solutions=150), "--fresh")
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert "solutions: 150" in (folder / "config.yaml").read_text()


def test_the_config_file_holds_the_quickstarts_own_settings() -> None:
    assert PPOConfig.from_preset(quickstart.PPO) == _read(ROOT / "configs" / "quickstart.yaml")


def _read(path: Path) -> PPOConfig:
    from data.settings import read_yaml

    return PPOConfig.from_preset(read_yaml(path), str(path))


# --- evaluation and scripts ------------------------------------------------------------------------------


def test_a_model_is_evaluated_once_and_every_sample_is_on_record(strangers, tmp_path, capsys) -> None:
    words = ["eval", "arithmetic", "--model", str(strangers / "policy"), "--limit", "8", "--num-samples", "2"]
    words += ["--max-new-tokens", "24", "--output-dir", str(tmp_path)]
    main(words)
    out = tmp_path / "arithmetic"
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and len({row["id"] for row in rows}) == 8
    result = json.loads((out / "result.json").read_text())
    assert result["accuracy"]["num_problems"] == 8
    assert str(out / "samples.jsonl") in capsys.readouterr().out.replace("\n", "")
    before = snapshot(out)
    main(words)
    assert snapshot(out) == before
    text = failure(capsys, *words, "--temperature", "0.5")
    assert "temperature" in text and "another output folder" in text


def test_samples_made_elsewhere_are_graded(tmp_path, capsys) -> None:
    problems = make_problems(8, 0, split="test")
    rows = [
        {"id": p.id, "response": p.solution if k < 6 else "#### 0.5", "sample": n}
        for k, p in enumerate(problems)
        for n in range(2)
    ]
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", "arithmetic", "--samples", str(samples), "--limit", "8", "--output-dir", str(tmp_path)]
    main(words)
    result = json.loads((tmp_path / "arithmetic" / "result.json").read_text())
    assert result["accuracy"]["value"] == 0.75
    assert "75" in capsys.readouterr().out


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_every_script_answers_help_as_its_command_does(script, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    runpy.run_path(str(script), run_name="__main__")
    text = capsys.readouterr().out
    verb = text.split(":")[0].removeprefix("stepwell ")
    assert f"`stepwell {verb}`" in script.read_text(), "its docstring names the command it is"
    assert "options" in text and "--config FILE" in text
