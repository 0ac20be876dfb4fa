"""`stepwell init`: files that run as they stand, commented from the settings' own docstrings."""

import itertools
import shlex
from pathlib import Path

import pytest
from cli_cases import failure, save_models

from data.errors import UserError
from data.settings import read_yaml
from data.step_readers import read_steps
from data.task_readers import read_sft
from reasoning_rl.cli import VERBS, load, main
from reasoning_rl.commands_data import write_demo
from reasoning_rl.commands_init import command, config_text, yaml_text
from reasoning_rl.init_config import InitConfig
from reasoning_rl.init_tasks import TASKS, fill
from reasoning_rl.options import parse
from reasoning_rl.plan import MODELS
from reasoning_rl.telemetry import read_metrics

ROOT = Path(__file__).parent.parent


def read_back(name: str, path: Path):
    settings = load(VERBS[TASKS[name].verb].settings)
    parsed = parse(["--config", str(path)], settings)
    return getattr(settings, "from_preset", settings.from_dict)(parsed.values, parsed.where)


@pytest.mark.parametrize("name", TASKS)
def test_the_file_of_every_size_is_read_by_the_command_it_is_for(name, tmp_path) -> None:
    written = 0
    for size, gpus in itertools.product(MODELS, (1, 3, 8, 64)):
        config, path = InitConfig(model_size=size, gpus=gpus), tmp_path / f"{size}-{gpus}.yaml"
        try:
            chosen = fill(name, config)
        except UserError as error:
            assert "more --gpus" in str(error) or "and --gpus is" in str(error)
            assert size in ("32b", "70b"), "7b and smaller have a way on one GPU of 80 GB"
            continue
        path.write_text(config_text(name, chosen, config, path))
        read = read_back(name, path).model_dump(mode="json")
        for key, value in chosen.values.items():
            if isinstance(value, dict):
                assert (
                    read[key].items() >= {k: v for k, v in value.items() if not isinstance(v, dict)}.items()
                )
            else:
                assert read[key] == value
        first = path.read_text().splitlines()[0]
        assert first == f"# {command(name, chosen, config, path)}"
        if chosen.accelerate is not None:
            assert (ROOT / "configs" / "accelerate" / chosen.accelerate).exists()
            if "rollout" in chosen.values and TASKS[name].kind == "ppo":
                assert chosen.values["rollout"]["problems_per_iteration"] % gpus == 0
            else:
                assert chosen.values["fit"]["batch_size"] % gpus == 0
        written += 1
    assert written >= 10


def test_more_memory_means_fewer_compromises() -> None:
    """7B PPO: adapters on one GPU; all weights cut up on eight that do not sample; whole on many."""
    one = fill("ppo", InitConfig(model_size="7b"))
    assert one.values["lora"] == one.values["critic"]["lora"] == {"rank": 64} and one.accelerate == "one.yaml"
    apart = fill("ppo", InitConfig(model_size="7b", gpus=8, vllm="separate"))
    assert "lora" not in apart.values and apart.accelerate == "zero3.yaml"
    assert apart.values["rollout"]["engine"]["backend"] == "vllm-server"
    assert fill("ppo", InitConfig(model_size="7b", gpus=8, gpu_gb=400)).accelerate == "ddp.yaml"
    rates = [chosen.values["update"]["learning_rate"] for chosen in (one, apart)]
    assert rates[0] == pytest.approx(10 * rates[1])
    assert fill("sft", InitConfig(model_size="1.5b", gpu_gb=30)).values["fit"]["micro_batch_tokens"] < 16_384
    assert fill("eval", InitConfig(model_size="70b", gpus=8)).values["engine"]["tensor_parallel"] == 4


def test_each_setting_stands_below_its_own_docstring(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    main(["init", "ppo", "--model-size", "7b", "--gpus", "8"])
    said = capsys.readouterr().out
    text = (tmp_path / "ppo.yaml").read_text()
    assert text.splitlines()[0].removeprefix("# ") in said and "GB of 80 on each GPU" in said
    assert (
        "  # P: problems drawn each iteration, over all processes.\n  problems_per_iteration: 128\n" in text
    )
    assert max(map(len, text.splitlines()[1:])) <= 110
    before = (tmp_path / "ppo.yaml").read_bytes()
    assert "ppo.yaml: exists and is not overwritten" in failure(capsys, "init", "ppo")
    assert (tmp_path / "ppo.yaml").read_bytes() == before
    assert "did you mean 'ppo'" in failure(capsys, "init", "pppo")
    assert "'8b' is unknown; did you mean '7b'" in failure(capsys, "init", "sft", "--model-size", "8b")
    assert "stepwell init TASK; known: sft" in failure(capsys, "init")


def test_a_written_config_trains(tmp_path, monkeypatch, capsys) -> None:
    """What comes out is run as it is: a small model, the demo's pairs, this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    models = save_models(tmp_path)
    write_demo(tmp_path)
    assert len(read_sft("pairs.jsonl")) == 256
    labels = {label for solution in read_steps("steps.jsonl") for label in solution.labels}
    assert labels == {0.0, 1.0}
    main(["init", "dpo", "--model", str(models / "policy")])
    with pytest.raises(UserError, match="exists and is not overwritten"):
        write_demo(tmp_path)
    main(["dpo", "--config", "dpo.yaml", "--fit.max-updates", "1", "--max-length", "256", "--quiet"])
    out = capsys.readouterr()
    assert f"trained policy: {Path('runs/dpo/model')}" in out.out and "dpo: " not in out.err
    assert len(read_metrics("runs/dpo")) == 1


@pytest.mark.parametrize(
    "value", [1e-5, 1.65e-6, 5e-7, 0.05, 1.0, 3, True, None, "off", "a: b", "1e5", [1, "x"]]
)
def test_a_value_is_written_so_that_it_reads_back(value, tmp_path) -> None:
    (tmp_path / "a.yaml").write_text(f"key: {yaml_text(value)}\n")
    assert read_yaml(tmp_path / "a.yaml")["key"] == value


def test_a_path_with_a_space_is_quoted_in_the_line_to_run(tmp_path) -> None:
    path = tmp_path / "a b" / "x.yaml"
    for name in ("sft", "eval"):
        config = InitConfig()
        words = shlex.split(command(name, fill(name, config), config, path))
        assert words[-2:] == ["--config", str(path)]
