"""TensorBoard and W&B beside metrics.jsonl: the same numbers at the same steps, also after a resume."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_cases import failure, save_models
from rl_world import world
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.errors import UserError
from prm import tracking
from prm.tracking import Trackers, TrackingConfig
from reasoning_rl import api
from reasoning_rl.cli import VERBS, load, main
from reasoning_rl.telemetry import RunLog, read_metrics


@pytest.fixture(scope="module")
def sft_words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = save_models(tmp_path_factory.mktemp("models"))
    _, problems = world(16)
    rows = [{"prompt": f"{p.text}\n", "response": p.solution} for p in problems]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["sft", "--model", folder / "policy", "--data", folder / "pairs.jsonl"]
    return [str(word) for word in [*words, "--fit.batch-size", 4, "--fit.save-every", 2]]


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: name -> (step, value)s."""
    read = EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}


def recorded(run: Path, name: str) -> list[tuple[int, float]]:
    return [(int(row["iteration"]), pytest.approx(row[name])) for row in read_metrics(run) if name in row]


def test_tensorboard_shows_what_metrics_jsonl_holds_and_a_resumed_run_continues_its_steps(
    sft_words, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    run = tmp_path / "run"
    words = [*sft_words, "--output-dir", str(run), "--tracking.trackers", "tensorboard"]
    main(words)
    shown = events(run)
    assert [step for step, _ in shown["train/loss"]] == [1, 2, 3, 4]
    assert shown["train/loss"] == recorded(run, "train/loss")
    assert len(shown["time/train_seconds"]) == 4, "speed is shown as well"
    # Killed after update 3, whose checkpoint is that of update 2: 3 and 4 are done again.
    shutil.rmtree(run / "checkpoints" / "00000004")
    shutil.rmtree(run / "model")
    with pytest.warns(UserWarning, match=r"than the run had: fit.learning_rate 2e-05 \(was 1e-05\); they"):
        main([*words, "--resume", "--fit.learning-rate", "2e-5"])
    shown = events(run)
    assert [step for step, _ in shown["train/loss"]] == [1, 2, 3, 4]
    assert shown["train/loss"] == recorded(run, "train/loss")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.warns(UserWarning, match=f"{run}: this run was finished before: nothing was trained"):
        main([*words, "--resume", "--fit.learning-rate", "2e-5"])
    assert (run / "metrics.jsonl").read_bytes() == before


def test_an_interrupted_run_closes_its_trackers(tmp_path) -> None:
    config = TrackingConfig(trackers="tensorboard")
    with pytest.raises(KeyboardInterrupt), Trackers(config, tmp_path, {}, resume=False) as trackers:
        log = RunLog(tmp_path, trackers=trackers)
        log.rewind(0)
        writer = trackers.running[0].writer
        log(1, {"train/loss": 0.5, "train/undefined": None})
        raise KeyboardInterrupt
    assert writer.file_writer is None and not trackers.running
    assert events(tmp_path) == {"train/loss": [(1, 0.5)]}


def test_wandb_gets_the_project_the_settings_and_the_same_run_again_on_resume(tmp_path, monkeypatch) -> None:
    """The package is not needed: accelerate's own class is handed what wandb.init is to be called with."""
    calls: list[tuple[str, object]] = []

    class Run:
        def log(self, values, step):
            calls.append(("log", (step, values)))

        def finish(self):
            calls.append(("finish", None))

    def init(**options):
        calls.append(("init", options))
        return Run()

    fake = SimpleNamespace(
        init=init,
        config=SimpleNamespace(update=lambda values, **_: calls.append(("config", values))),
        __spec__=SimpleNamespace(),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = TrackingConfig(trackers="wandb", project="reasoning")
    for resume in (False, True, False):
        with Trackers(config, tmp_path / "run7", {"seed": 3}, resume=resume) as trackers:
            log = RunLog(tmp_path / "run7", trackers=trackers)
            log.rewind(0)
            log(1, {"train/loss": 0.5})
    assert [name for name, _ in calls[:4]] == ["init", "config", "log", "finish"]
    first, again, anew = (options for name, options in calls if name == "init")
    assert (first["project"], first["name"], calls[1][1]) == ("reasoning", "run7", {"seed": 3})
    assert calls[2][1] == (1, {"train/loss": 0.5})
    assert first == again and first["id"] != anew["id"]


def test_a_tracker_that_is_missing_or_unknown_is_named_before_anything_is_loaded(
    sft_words, tmp_path, monkeypatch, capsys
) -> None:
    words = [*sft_words, "--output-dir", tmp_path / "run"]
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    said = failure(capsys, *words, "--tracking.trackers", "tensorboard,wandb")
    assert "tensorboard is not installed: pip install 'stepwell[track]'" in said
    with pytest.raises(UserError, match="wandb is not installed: pip install wandb"):
        tracking.require_trackers(TrackingConfig(trackers=("wandb",)))
    assert "'tensorboard' or 'wandb'" in failure(capsys, *words, "--tracking.trackers", "tensorbord")
    assert not (tmp_path / "run").exists()


def test_a_run_from_python_is_tracked_and_resumed_like_a_command(sft_words, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    own = {"model": sft_words[2], "output_dir": tmp_path / "run", "tracking": {"trackers": "tensorboard"}}
    api.train_sft(sft_words[4], **own, fit={"max_updates": 1})
    assert events(tmp_path / "run")["train/loss"] == recorded(tmp_path / "run", "train/loss") != []
    with (
        pytest.warns(UserWarning, match=r"than the run had: fit.learning_rate 2e-05 \(was 1e-05\); they"),
        pytest.warns(UserWarning, match="nothing was trained"),
    ):
        api.train_sft(sft_words[4], **own, fit={"max_updates": 1, "learning_rate": 2e-5}, resume=True)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed: pip install wandb"):
        api.train_sft(sft_words[4], **own | {"output_dir": tmp_path / "b", "tracking": {"trackers": "wandb"}})


def test_every_training_verb_has_the_same_setting() -> None:
    for name, verb in VERBS.items():
        assert ("tracking" in load(verb.settings).model_fields) == ("resume" in verb.flags), name
