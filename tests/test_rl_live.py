"""The live view: plain lines where nobody draws, one bar in a terminal."""

import io

import pytest
from rich.console import Console

from reasoning_rl.commands import PPO_SHOWN
from reasoning_rl.live import Live, _left_text, seconds_text, table_text


def plain_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=160)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_plain_lines_with_progress_and_the_chosen_numbers() -> None:
    console = plain_console()
    with Live("ppo", 10, shown={"valid/greedy": "greedy"}, console=console, every_seconds=0) as live:
        live.watch(1, {"valid/greedy": 0.25, "policy/loss": 3.0})
        live.watch(2, {"policy/loss": 4.0})
    lines = text_of(console).splitlines()
    assert lines[0] == "ppo: started, 10 to do"
    assert lines[1].split() == ["ppo:", "1/10", "greedy", "0.25"]
    # A number that is not measured every iteration stays on show.
    assert lines[2].startswith("ppo: 2/10, ") and lines[2].endswith("s left  greedy 0.25")
    assert lines[3].startswith("ppo: done in ")
    assert "loss" not in text_of(console) and "\x1b" not in text_of(console)


def test_lines_come_no_more_often_than_asked() -> None:
    console = plain_console()
    with Live("sft", 1000, console=console, every_seconds=3600) as live:
        for update in range(1000):
            live.show(update, {})
    assert len(text_of(console).splitlines()) == 2  # started and done


def test_the_time_left_of_a_resumed_run_counts_only_its_own_iterations(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("reasoning_rl.live.time.monotonic", lambda: now[0])
    console = plain_console()
    with Live("ppo", 100, console=console, every_seconds=0) as live:
        now[0] = 1.0
        live.show(90, {})
        now[0] = 10.0
        live.show(95, {})  # 5 in the 9 s since the first record: 5 more take 9 s
    assert "ppo: 95/100, 9 s left" in text_of(console)


def test_the_loop_may_tell_the_total() -> None:
    console = plain_console()
    with Live("sft", None, shown={}, console=console, every_seconds=0) as live:
        live.watch(2, {"train/total_updates": 40.0})
    assert text_of(console).splitlines()[0] == "sft: started"
    assert "sft: 2/40" in text_of(console)


def test_a_failure_is_not_reported_as_done() -> None:
    console = plain_console()
    with pytest.raises(KeyError), Live("sft", 3, console=console):
        raise KeyError("x")
    assert "done" not in text_of(console)


def test_a_terminal_gets_one_bar_which_is_left_tidy() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with Live("ppo", 4, shown={"valid/greedy": "greedy"}, console=console) as live:
        live.watch(3, {"valid/greedy": 0.5})
        assert live.progress is not None
    assert "3/4" in text_of(console) and "greedy 0.5" in text_of(console)
    assert "\x1b[?25h" in text_of(console)  # cursor shown again


def test_80_columns_hold_every_number_with_its_label(monkeypatch) -> None:
    """Six numbers of PPO are wider than a bar's line: they stand below it, whole."""
    now = [0.0]
    monkeypatch.setattr("reasoning_rl.live.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system=None)
    with Live("ppo", 1000, shown=PPO_SHOWN, console=console, board=True, unit="iteration") as live:
        for iteration in (1, 2, 3):
            now[0] = 40.0 * iteration
            live.watch(iteration, dict.fromkeys(PPO_SHOWN, -0.123456 * iteration))
    last = text_of(console).rpartition("ppo ")[2].splitlines()
    assert "3/1000" in last[0] and "0:02:00  left 11:04:40" in last[0]  # 40 s each
    shown = " ".join(last[1:3])
    assert "40 s/iteration" in shown
    for label in PPO_SHOWN.values():
        assert f"{label} -0.37" in shown
    assert max(map(len, last)) < 80


def test_an_evaluation_tells_its_speed_in_what_it_counts() -> None:
    now = [0.0]
    console = plain_console()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reasoning_rl.live.time.monotonic", lambda: now[0])
        with Live("label x", None, console=console, every_seconds=0, unit="problem") as live:
            for done in (0, 64, 128):
                now[0] = 100.0 + done / 4
                live.follow(done, 1319, {"tokens": 1000.0 * done})
    lines = text_of(console).splitlines()
    assert lines[1] == "label x: 0/1319  tokens 0"  # 100 s of loading a model are no speed
    assert lines[2] == "label x: 64/1319, 5 min 14 s left  4 problems/s  tokens 64,000  tokens/s 4,000"
    assert lines[3].startswith("label x: 128/1319, 4 min 58 s left  4 problems/s")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_leaves_alerts_and_nothing_else(is_terminal, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_QUIET", "1")
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=200, color_system=None)
    with Live("ppo", 3, shown=PPO_SHOWN, console=console, every_seconds=0, board=True) as live:
        for iteration in (1, 2, 3):
            live.watch(iteration, {"reward/outcome": 1.0})
    (line,) = text_of(console).splitlines()
    assert line.startswith("ppo: alert, iteration 2: reward/outcome 1 (healthy")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (12.34, "12.3 s"), (60.0, "1 min 00 s"), (185.0, "3 min 05 s")],
)
def test_seconds_in_words(seconds, text) -> None:
    assert seconds_text(seconds) == text


def test_seconds_never_show_sixty_seconds() -> None:
    assert seconds_text(119.7) == "2 min 00 s"
    assert seconds_text(59.97) == "1 min 00 s"
    left = [_left_text(seconds) for seconds in (59.2, 59.7, 3599.2, 3599.8)]
    assert left == ["59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min"]


def test_a_table_is_aligned() -> None:
    assert table_text([("a", "1"), ("long", "2")]) == "  a     1\n  long  2"
    assert table_text([]) == ""
