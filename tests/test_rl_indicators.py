"""The table of metrics: the page made from it, its alerts, and the board and sparklines of the live view."""

import io
import re
from pathlib import Path

import pytest
import torch
from cli_cases import field_names
from rich.console import Console
from rl_scripted import gather
from rl_world import world

from reasoning_rl.cli import main
from reasoning_rl.config import PPOConfig, RewardConfig
from reasoning_rl.experience import rollout_metrics
from reasoning_rl.indicator_table import INDICATORS, Indicator
from reasoning_rl.indicators import BY_NAME, PATIENCE, Watch, metrics_page
from reasoning_rl.live import BARS, Board, Live, sparkline
from reasoning_rl.telemetry import RunLog
from reasoning_rl.types import Scores

VALUES = {"step_marker"}
"""Words of the remedies that are a setting's value."""
ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == metrics_page(), "run: stepwell metrics --output docs/metrics.md"


def test_every_indicator_is_defined_once_and_every_range_comes_with_a_remedy() -> None:
    assert len(BY_NAME) == len(INDICATORS)
    for indicator in INDICATORS:
        assert indicator.meaning
        assert bool(indicator.range_text()) == bool(indicator.remedy), indicator.name
        assert indicator.low is None or indicator.high is None or indicator.low < indicator.high


def test_every_setting_that_a_remedy_names_exists() -> None:
    """A dotted name, or the part of one that a reader would look for in the help."""
    known = set(field_names(PPOConfig))
    sections = {name.split(".")[0] for name in known if "." in name}
    named = set()
    for indicator in INDICATORS:
        for word in re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+\b", f"{indicator.meaning} {indicator.remedy}"):
            if not word.endswith(".md"):
                named.add(word)
                assert word in known, f"{indicator.name}: {word}"
        for word in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", indicator.remedy):
            assert any(word in name.split(".") for name in known) or word in VALUES, (
                f"{indicator.name}: {word}"
            )
    assert {name.split(".")[0] for name in named} <= sections and "group.baseline" in named


def test_a_reward_models_outcomes_alert_nobody_and_are_on_the_board() -> None:
    tokenizer, problems = world(4)
    rollout = gather(tokenizer, problems, [problem.solution for problem in problems])
    rewards = torch.tensor([1.5, -0.3, 2.0, 1.6])
    scores = Scores(
        0.5 * rollout.step_mask, rollout.step_mask, rewards, torch.ones(len(rewards), dtype=torch.bool)
    )
    found = rollout_metrics(rollout, scores, rewards, RewardConfig(form="none"), is_verified=False)
    assert found["reward/response"] == pytest.approx(1.2)
    assert not {"reward/outcome", "hack/score_outcome_gap"} & found.keys()
    watch = Watch()
    watched = {name: value for name, value in found.items() if name.startswith("reward/")}
    assert [watch.check(i, watched) for i in range(1, 5)] == [[]] * 4
    board = Board()
    board.add(1, found | {"valid/greedy_reward": 0.3, "valid/sampled_reward": 0.2})
    shown = "\n".join(line.plain for line in board.lines())
    assert all(name in shown for name in ("reward/response", "valid/greedy_reward", "valid/sampled_reward"))
    verified = rollout_metrics(rollout, scores, rewards, RewardConfig(form="none"))
    assert verified["reward/outcome"] == pytest.approx(1.2) and "hack/score_outcome_gap" in verified


def test_ranges_hold_their_bounds_and_relative_ones_scale_with_the_first_value() -> None:
    fixed = Indicator("a/b", "", "x", low=0.0, high=2.0)
    assert [fixed.is_healthy(v, 9.0) for v in (-0.1, 0.0, 2.0, 2.1)] == [False, True, True, False]
    relative = Indicator("a/b", "", "x", low=0.5, high=2.0, relative=True)
    assert [relative.is_healthy(v, 10.0) for v in (4.9, 5.0, 20.0, 20.1)] == [False, True, True, False]
    assert (fixed.range_text(), relative.range_text()) == ("0 to 2", "0.5 to 2 x first")
    assert Indicator("a/b", "", "x", low=1.0).range_text() == ">= 1"


def test_an_alert_comes_once_when_a_range_is_left_and_again_after_a_return() -> None:
    watch = Watch()
    values = [4.0, 9.0, 9.0, 9.0, 4.0, 9.0, 9.0]  # steps a response: more than 1.5 times the first
    alerts = [watch.check(i, {"hack/num_steps": v}) for i, v in enumerate(values, 1)]
    assert [len(found) for found in alerts] == [0, 0, 1, 0, 0, 0, 1]
    assert PATIENCE == 2
    assert alerts[2][0].startswith(
        "iteration 3: hack/num_steps 9 (healthy 0.67 to 1.5 x first, 4): form delta or min"
    )


def test_what_is_unknown_not_finite_or_too_early_alerts_nobody() -> None:
    watch = Watch()
    for iteration in range(1, 6):
        metrics = {"some/thing": 1e9, "policy/ratio": float("nan"), "critic/explained_variance": -1.0}
        assert watch.check(iteration, metrics) == []
    watch.check(6, metrics)
    assert len(watch.check(7, metrics)) == 1  # the critic has had its five iterations


def test_the_gauges_alarms_are_passed_on_at_once() -> None:
    assert "repetition" in Watch().check(1, {"alarm/repetition": 1.0})[0]


def test_a_sparkline_goes_from_the_lowest_bar_to_the_highest_within_its_width() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == BARS
    assert sparkline([3.0, 3.0, 3.0]) == BARS[3] * 3
    assert sparkline([5.0]) == BARS[3] and sparkline([]) == ""
    long = sparkline(list(range(1000)), 10)
    assert len(long) == 10 and long[0] == BARS[0] and long[-1] == BARS[-1]
    assert list(long) == sorted(long)
    assert sparkline([0, 0, 0, 0, 9, 0, 0, 0], 4) == BARS[0] * 2 + BARS[-1] + BARS[0]  # means of twos


def metrics(at: int) -> dict[str, float]:
    steps = 4.0 if at < 6 else 9.0
    return {"hack/num_steps": steps, "policy/ratio": 1.0, "reward/outcome": 0.1 * at, "policy/loss": 1.0}


def test_the_board_fits_80_columns_and_shows_what_is_out_of_range_first() -> None:
    board = Board()
    everything = {indicator.name: -12345.678 for indicator in INDICATORS}
    board.add(1, everything)
    assert max(len(line.plain) for line in board.lines()) <= 79
    assert len(board.lines(5)) == 5
    board = Board()
    for at in range(1, 9):
        board.add(at, metrics(at))
    lines = [line.plain for line in board.lines()]
    assert lines[0].startswith("!hack/num_steps") and "0.67 to 1.5" in lines[0] and BARS[-1] in lines[0]
    assert not any(line.startswith("!") for line in lines[1:])
    assert not any("policy/loss" in line for line in lines), "minor"


def shown(console_width: int, terminal: bool) -> str:
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=console_width, height=24, color_system=None
    )
    with Live("ppo", 8, shown={}, console=console, every_seconds=0, board=True) as live:
        for at in range(1, 9):
            live.watch(at, metrics(at))
    return console.file.getvalue()


def test_a_terminal_of_80_columns_shows_bar_board_and_alert() -> None:
    text = shown(80, terminal=True)
    assert "8/8" in text and "hack/num_steps" in text and BARS[-1] in text
    assert "ppo: alert, iteration 7: hack/num_steps 9" in text


def test_a_pipe_gets_the_alert_as_a_plain_line_and_no_board() -> None:
    text = shown(80, terminal=False)
    assert "\x1b" not in text and not set(BARS) & set(text)
    assert [line for line in text.splitlines() if "alert" in line][0].startswith("ppo: alert, iteration 7:")
    assert "ppo: 8/8" in text


def test_the_command_draws_a_run_writes_the_page_and_names_a_wrong_folder(tmp_path, capsys) -> None:
    log = RunLog(tmp_path / "run")
    for at in range(1, 9):
        log(at, metrics(at))
    main(["metrics", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "hack/num_steps" in out and "alert, iteration 7" in out
    main(["metrics", "--output", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == metrics_page()
    RunLog(tmp_path / "other")(1, {"train/loss": 1.0})
    with pytest.raises(SystemExit):
        main(["metrics", str(tmp_path / "other")])
    assert "no metric of a PPO run" in capsys.readouterr().err
    main(["metrics"])
    assert "policy/kl_per_response" in capsys.readouterr().out
