"""What a run writes down, and what is left of it after a crash."""

import json
import math

import pytest

from data.errors import UserError
from data.machine import cpu_count, peak_rss_mb
from reasoning_rl.telemetry import RunLog, read_metrics


def test_what_repeats_and_what_never_does_go_to_different_files(tmp_path) -> None:
    log = RunLog(tmp_path / "deep" / "run")
    log(3, {"reward/task": 0.5, "time/update_seconds": 1.25, "memory/peak_rss_mb": 100.0})
    metrics, timing = (
        (tmp_path / "deep" / "run" / name).read_text() for name in ("metrics.jsonl", "timing.jsonl")
    )
    assert json.loads(metrics) == {"iteration": 3, "reward/task": 0.5}
    assert json.loads(timing) == {"iteration": 3, "time/update_seconds": 1.25, "memory/peak_rss_mb": 100.0}


def test_the_order_in_which_metrics_were_made_does_not_change_the_bytes(tmp_path) -> None:
    RunLog(tmp_path / "one")(1, {"b": 2.0, "a": 1.0})
    RunLog(tmp_path / "other")(1, {"a": 1.0, "b": 2.0})
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes() == (
        tmp_path / "other" / "metrics.jsonl"
    ).read_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_number_is_null_so_that_every_line_is_json(tmp_path, value) -> None:
    RunLog(tmp_path)(1, {"policy/loss": value, "critic/loss": 1.5})
    assert read_metrics(tmp_path) == [{"iteration": 1, "critic/loss": 1.5, "policy/loss": None}]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_whoever_watches_sees_every_number_of_every_record(tmp_path) -> None:
    seen = []
    log = RunLog(tmp_path, watch=lambda iteration, metrics: seen.append((iteration, dict(metrics))))
    log(1, {"a": 1.0, "time/x": 2.0})
    log(2, {"a": 3.0})
    assert seen == [(1, {"a": 1.0, "time/x": 2.0}), (2, {"a": 3.0})]


def test_rewinding_drops_what_came_after_the_checkpoint_and_a_torn_line(tmp_path) -> None:
    log = RunLog(tmp_path)
    for iteration in range(4):
        log(iteration, {"a": iteration / 3, "time/x": 1.0})
    whole = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"iteration": 4, "a": 1.3')
    log.rewind(2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole[:3])
    assert (tmp_path / "timing.jsonl").read_text().count("\n") == 3
    log(3, {"a": 1.0, "time/x": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole)


def test_rewinding_an_empty_folder_and_beyond_the_end_change_nothing(tmp_path) -> None:
    log = RunLog(tmp_path)
    log.rewind(0)
    assert list(tmp_path.iterdir()) == []
    log(1, {"a": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    log.rewind(10)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_without_records_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: no such file"):
        read_metrics(tmp_path)


def test_records_that_cannot_be_written_are_a_users_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be the run's folder"):
        RunLog(tmp_path / "file")
    log = RunLog(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot write"):
        log(1, {"a": 1.0})


def test_peak_memory_is_in_mib_and_never_falls() -> None:
    before = peak_rss_mb()
    block = bytearray(64 * 1024**2)
    block[::4096] = b"x" * len(block[::4096])  # touch every page
    assert 10 < before <= peak_rss_mb() < 1024**2
    assert 1 <= cpu_count() <= 4096
