"""Every mistake ends with one or two lines on stderr and exit code 2; what is on disk survives it."""

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_cases import failure, ppo_settings, save_models, write_yaml
from rl_world import tiny_policy, world

from data.arithmetic import label_solution
from data.step_readers import write_steps
from data.world_tokenizer import word_tokenizer
from prm.checkpoint import list_checkpoints, verify_checkpoint
from prm.model import load_backbone
from reasoning_rl.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")


def pairs_file(path: Path, count: int = 12) -> Path:
    _, problems = world(count)
    rows = [{"prompt": f"{p.text}\n", "response": p.solution} for p in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def steps_file(path: Path, count: int = 12) -> Path:
    _, problems = world(count)
    write_steps(path, [label_solution(p, p.solution) for p in problems])
    return path


def insert_line(path: Path, number: int, line: str) -> Path:
    lines = path.read_text().splitlines()
    lines.insert(number - 1, line)
    path.write_text("\n".join(lines) + "\n")
    return path


# --- data files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["sft", "prm"])
def test_a_data_file_that_cannot_be_read_is_named(verb, models, tmp_path, capsys) -> None:
    start = (verb, "--model", models / "policy", "--output-dir", tmp_path / "run", "--data")
    absent = tmp_path / "absent.jsonl"
    assert f"{absent}: no such file" in failure(capsys, *start, absent)
    (tmp_path / "folder.jsonl").mkdir()
    assert str(tmp_path / "folder.jsonl") in failure(capsys, *start, tmp_path / "folder.jsonl")
    garbage = tmp_path / "garbage.jsonl"
    garbage.write_bytes(bytes(range(256)) * 8)
    assert f"{garbage}" in failure(capsys, *start, garbage)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(b"\x1f\x8b\x08\x00 this is no gzip stream")
    assert f"{torn}: unreadable" in failure(capsys, *start, torn)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert str(empty) in failure(capsys, *start, empty)
    assert not list_checkpoints(tmp_path / "run")


@pytest.mark.parametrize(("verb", "make"), [("sft", pairs_file), ("prm", steps_file)])
def test_a_broken_line_is_named_by_file_and_line(verb, make, models, tmp_path, capsys) -> None:
    data = insert_line(make(tmp_path / "data.jsonl"), 7, '{"problem": "x", ')
    text = failure(capsys, verb, "--model", models / "policy", "--data", data, "--output-dir", tmp_path)
    assert f"{data}:7: broken JSON" in text


def test_a_record_without_a_needed_field_is_named(models, tmp_path, capsys) -> None:
    pairs = insert_line(pairs_file(tmp_path / "pairs.jsonl"), 3, '{"prompt": "a", "reponse": "b"}')
    text = failure(capsys, "sft", "--model", models / "policy", "--data", pairs, "--output-dir", tmp_path)
    assert f"{pairs}:3: no sample" in text and "reponse" in text and "response" in text
    steps = insert_line(steps_file(tmp_path / "steps.jsonl"), 3, '{"problem": "a", "steps": ["b"]}')
    text = failure(capsys, "prm", "--model", models / "policy", "--data", steps, "--output-dir", tmp_path)
    assert f"{steps}:3: no field 'labels'" in text


def test_as_many_labels_as_steps_are_needed(models, tmp_path, capsys) -> None:
    line = '{"problem": "a", "steps": ["b", "c"], "labels": [1, 0, 1]}'
    data = insert_line(steps_file(tmp_path / "steps.jsonl"), 5, line)
    text = failure(capsys, "prm", "--model", models / "policy", "--data", data, "--output-dir", tmp_path)
    assert f"{data}:5: field 'labels' has 3 labels for 2 steps" in text


def test_a_step_beyond_the_context_is_named_with_the_remedies(models, tmp_path, capsys) -> None:
    data = steps_file(tmp_path / "steps.jsonl")
    start = ("prm", "--model", models / "policy", "--data", data, "--output-dir", tmp_path / "run")
    text = failure(capsys, *start, "--max-length", 20)
    assert "step 0 ends at token" in text and "the limit is 20" in text and "fit.overlong: skip" in text
    _, (problem,) = world(1)
    long = label_solution(problem, problem.solution)
    row = {"problem": long.problem, "steps": list(long.steps) * 40, "labels": [1] * (40 * len(long.steps))}
    insert_line(data, 1, json.dumps(row))
    assert "the limit is 256" in failure(capsys, *start), "the model's own context limits it"


# --- settings --------------------------------------------------------------------------------------------


def test_an_unknown_key_names_the_nearest_in_a_file_and_on_the_command_line(tmp_path, capsys) -> None:
    config = write_yaml(tmp_path / "a.yaml", {"policy": "p", "prm": "r", "update": {"learning_rat": 1}})
    text = failure(capsys, "ppo", "--config", config)
    assert f"{config}: unknown key 'update.learning_rat'; did you mean 'learning_rate'?" in text
    text = failure(capsys, "ppo", "--learning-rate", "1")
    assert "--update.learning-rate" in text and "--critic.learning-rate" in text
    assert "did you mean --kl.coef?" in failure(capsys, "ppo", "--kl.coeff", "1")
    assert "'ppo'" in failure(capsys, "pppo")
    (tmp_path / "broken.yaml").write_text("policy: p\nkl: {coef: 1\nseed: 0\n")
    assert "broken.yaml:3: broken YAML" in failure(capsys, "ppo", "--config", tmp_path / "broken.yaml")


def test_sizes_that_do_not_divide_name_those_that_do(models, tmp_path, capsys) -> None:
    config = write_yaml(tmp_path / "a.yaml", ppo_settings(models, tmp_path / "run"))
    text = failure(capsys, "ppo", "--config", config, "--update.minibatch-size", 6)
    assert "rollout batch 16" in text and "minibatch_size 6; use 4 or 8" in text
    assert not (tmp_path / "run").exists()


def test_models_that_cannot_be_used_are_named(models, tmp_path, capsys) -> None:
    config = write_yaml(tmp_path / "a.yaml", ppo_settings(models, tmp_path / "run"))

    def told(option: str, folder: Path) -> str:
        return failure(capsys, "ppo", "--config", config, option, folder)

    absent = tmp_path / "absent"
    assert f"{absent}: no such file or folder" in told("--policy", absent)
    assert f"{absent}: no such file or folder" in told("--prm", absent)
    assert "cannot tell its PRM format" in told("--prm", models / "policy")
    assert "a process reward model where a language model is needed" in told("--policy", models / "prm")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: cannot be loaded" in told("--policy", tmp_path / "empty")
    for name, content in (
        ("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00not json"),
        ("tokenizer.json", b"{broken"),
        ("config.json", b"{broken"),
    ):
        broken = tmp_path / f"broken_{name}"
        shutil.copytree(models / "policy", broken)
        (broken / name).write_bytes(content)
        assert f"{broken}: cannot be loaded" in told("--policy", broken), name


def test_a_tokenizer_without_an_end_token_is_refused(models, tmp_path, capsys) -> None:
    tokenizer = word_tokenizer()
    policy = tiny_policy(tokenizer)
    tokenizer.eos_token = None
    save_models(tmp_path, tokenizer, policy)
    data = pairs_file(tmp_path / "pairs.jsonl")
    for words in (
        ("sft", "--model", tmp_path / "policy", "--data", data, "--output-dir", tmp_path / "run"),
        ("ppo", "--config", write_yaml(tmp_path / "a.yaml", ppo_settings(tmp_path, tmp_path / "run"))),
        ("eval", "arithmetic", "--model", tmp_path / "policy", "--limit", 2, "--output-dir", tmp_path / "e"),
    ):
        text = failure(capsys, *words)
        assert "set tokenizer.eos_token" in text


def test_too_few_problems_are_counted(models, tmp_path, capsys) -> None:
    config = write_yaml(tmp_path / "a.yaml", ppo_settings(models, tmp_path / "run"))
    text = failure(capsys, "ppo", "--config", config, "--num-problems", 5)
    assert "arithmetic: 5 training problems beside 8 held out, fewer than rollout.problems_per" in text
    assert "unknown difficulty 'hrd'" in failure(capsys, "ppo", "--config", config, "--difficulty", "hrd")
    file = tmp_path / "problems.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    assert "set problems_format to the benchmark whose form it has" in failure(
        capsys, "ppo", "--config", config, "--problems", file
    )
    assert "did you mean 'arithmetic'" in failure(
        capsys, "ppo", "--config", config, "--problems", "arithmetc"
    )


# --- what stands in the output folder --------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A PPO run of two iterations."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_DEVICE", "cpu")
        config = write_yaml(run.parent / "ppo.yaml", ppo_settings(models, run))
        main(["ppo", "--config", config])
    yield run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_another_run_in_the_folder_is_left_as_it_is(finished, models, tmp_path, capsys) -> None:
    config = write_yaml(tmp_path / "a.yaml", ppo_settings(models, finished, seed=9))
    before = snapshot(finished)
    text = failure(capsys, "ppo", "--config", config)
    assert "holds the checkpoints of an earlier run; add --resume or change output_dir" in text
    assert snapshot(finished) == before, "not even its config.yaml may change"


@pytest.mark.parametrize(("verb", "data"), [("sft", pairs_file), ("prm", steps_file)])
def test_a_trained_model_is_not_overwritten(verb, data, models, tmp_path, capsys) -> None:
    words = (verb, "--model", models / "policy", "--data", data(tmp_path / "data.jsonl"))
    words = (*map(str, words), "--output-dir", str(tmp_path / "run"), "--fit.max-updates", "1")
    words = (*words, "--fit.save-every", "none")
    main(list(words))  # no checkpoint, only the model: it can be neither repeated nor continued
    before = snapshot(tmp_path / "run")
    for resume in ((), ("--resume",)):
        text = failure(capsys, *words, *resume)
        assert "holds the model of an earlier run; choose another output_dir" in text
    assert snapshot(tmp_path / "run") == before


def test_a_checkpoint_of_another_model_is_not_resumed(finished, models, tmp_path, capsys) -> None:
    other = save_models(tmp_path / "wide", policy=tiny_policy(word_tokenizer(), hidden=64))
    config = write_yaml(tmp_path / "a.yaml", ppo_settings(other, finished, iterations=3))
    before = snapshot(finished)
    text = failure(capsys, "ppo", "--config", config, "--resume")
    assert "checkpoint of another model: policy." in text and "use the run's own config" in text
    assert snapshot(finished) == before


def test_other_problems_are_not_resumed(finished, models, tmp_path, capsys) -> None:
    config = write_yaml(tmp_path / "a.yaml", ppo_settings(models, finished, num_problems=39, iterations=3))
    text = failure(capsys, "ppo", "--config", config, "--resume")
    assert "num_problems was 40 and is now 39" in text


def test_an_output_folder_that_is_a_file_is_named(models, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("mine")
    config = write_yaml(tmp_path / "a.yaml", ppo_settings(models, tmp_path / "file"))
    assert "file: cannot be the run's folder" in failure(capsys, "ppo", "--config", config)
    data = pairs_file(tmp_path / "pairs.jsonl")
    words = ("sft", "--model", models / "policy", "--data", data, "--output-dir", tmp_path / "file")
    assert str(tmp_path / "file") in failure(capsys, *words)
    words = (
        "eval",
        "arithmetic",
        "--model",
        models / "policy",
        "--limit",
        2,
        "--output-dir",
        tmp_path / "file",
    )
    assert str(tmp_path / "file") in failure(capsys, *words)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_keeps_the_last_good_checkpoint(finished, models, tmp_path, capsys) -> None:
    """No file may grow beyond 16 KiB from here on: the system refuses, as a full disk does."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = write_yaml(tmp_path / "a.yaml", ppo_settings(models, run, iterations=4))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))
    try:
        text = failure(capsys, "ppo", "--config", config, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot save" in text and "What was saved before is intact" in text
    assert [folder.name for folder in (run / "checkpoints").iterdir()] != []
    newest = list_checkpoints(run)[-1]
    assert newest.name == "00000002" and verify_checkpoint(newest)["iteration"] == 2
    load_backbone(run / "model")
    main(["ppo", "--config", config, "--resume"])  # with space again it goes on
    assert list_checkpoints(run)[-1].name == "00000004"


# --- evaluation ------------------------------------------------------------------------------------------


def test_an_evaluation_names_what_it_lacks(models, tmp_path, capsys) -> None:
    out = ("--output-dir", tmp_path)
    assert "which benchmark?" in failure(capsys, "eval")
    assert "did you mean 'gsm8k'" in failure(capsys, "eval", "gsm8", "--model", "m")
    assert "exactly one of --model" in failure(capsys, "eval", "arithmetic", *out)
    both = ("--model", models / "policy", "--samples", "s.jsonl")
    assert "exactly one of --model" in failure(capsys, "eval", "arithmetic", *both, *out)
    absent = tmp_path / "absent.jsonl"
    assert f"{absent}: no such file" in failure(capsys, "eval", "arithmetic", "--samples", absent, *out)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "nobody", "response": "x"}\n')
    text = failure(capsys, "eval", "arithmetic", "--samples", bad, *out)
    assert f"{bad}:1: id 'nobody' is none of the 500 problems" in text


def test_a_quickstart_claims_no_folder_of_others(tmp_path, capsys) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    text = failure(capsys, "quickstart", "--output-dir", tmp_path)
    assert "exists and is no quickstart run; choose another --output-dir" in text
    assert "--problems" in failure(capsys, "quickstart", "--problem", 8)
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in failure(capsys, "quickstart", "--output-dir", tmp_path / "file")
    assert "problems: " in failure(capsys, "quickstart", "--problems", 0)
