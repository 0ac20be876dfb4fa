"""The live view: plain lines where nobody draws, one bar in a terminal."""

import io

import pytest
from rich.console import Console

from reasoning_rl.live import Live, seconds_text, table_text


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (12.34, "12.3 s"), (60.0, "1 min 00 s"), (185.0, "3 min 05 s")],
)
def test_seconds_in_words(seconds, text) -> None:
    assert seconds_text(seconds) == text


def test_seconds_never_show_sixty_seconds() -> None:
    assert seconds_text(119.7) == "2 min 00 s"
    assert seconds_text(59.97) == "1 min 00 s"


def test_a_table_is_aligned() -> None:
    assert table_text([("a", "1"), ("long", "2")]) == "  a     1\n  long  2"
    assert table_text([]) == ""
