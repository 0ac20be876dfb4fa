"""The command itself: help, versions, flags, and what it says at the end."""

import os
import re
import shlex
import subprocess
import sys
import warnings
from functools import reduce

import pytest
from cli_cases import ENVIRONMENT, failure, field_names

from data.errors import Stopped, UserError
from eval.benchmarks import BENCHMARKS
from eval.prm_benchmarks import PRM_BENCHMARKS
from reasoning_rl import cli
from reasoning_rl.cli import VERBS, load, main
from reasoning_rl.cli_help import overview, verb_help
from reasoning_rl.commands import held_out_problems, run_training
from reasoning_rl.config import PPOConfig
from reasoning_rl.live import is_quiet
from reasoning_rl.options import _shown, parse


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command_with_its_purpose(words, capsys) -> None:
    main(words)
    text = capsys.readouterr().out
    assert text == overview()
    for name, verb in VERBS.items():
        assert any(line.split()[:1] == [name] and verb.purpose in line for line in text.splitlines())
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", VERBS)
def test_help_lists_every_option_of_a_command_and_an_example_that_parses(name, capsys) -> None:
    main([name, "--config", "absent.yaml", "--help"])  # help wins over everything else
    text = capsys.readouterr().out
    assert text == verb_help(name)
    assert callable(load(VERBS[name].run))
    for field in field_names(load(VERBS[name].settings)):
        assert f"  --{field.replace('_', '-')} (" in text
    assert ("--resume" in text) == ("resume" in VERBS[name].flags)
    assert max(map(len, text.splitlines())) <= 110
    shown = text.partition("example:  ")[2].partition("\n\n")[0]
    assert shlex.split(shown.replace("\\\n", "")) == shlex.split(VERBS[name].example), (
        "as pasted, also where it takes two lines"
    )


@pytest.mark.parametrize("name", VERBS)
def test_the_example_of_a_command_is_one_that_its_settings_take(name) -> None:
    verb = VERBS[name]
    words = shlex.split(verb.example.partition(" > ")[0])
    assert words[:2] == ["stepwell", name]
    settings = load(verb.settings)
    parsed = parse(words[2:], settings, flags=verb.flags, positional=len(words))
    getattr(settings, "from_preset", settings.from_dict)(parsed.values)
    if verb.names:
        assert parsed.positional[0] in {word for where in verb.names for word in load(where)}


def test_help_shows_the_defaults_of_the_preset_that_is_asked_for(capsys) -> None:
    """What it prints is what a run with those words gets."""
    for words in ([], ["--preset", "ppo_large_batch"], ["--preset=dapo"], ["--algorithm", "grpo"]):
        main(["ppo", *words, "--help"])
        text = capsys.readouterr().out
        asked = parse(words, PPOConfig).values
        config = PPOConfig.from_preset({"policy": "p", "prm": "r"} | asked).model_dump()
        for field in set(field_names(PPOConfig)) - {"policy", "prm"}:
            value = reduce(lambda inner, part: inner[part], field.split("."), config)
            assert f"  --{field.replace('_', '-')} ({_shown(value)})\n" in text
    main(["ppo", "--help"])
    assert "  --rollout.problems-per-iteration (128)\n" in capsys.readouterr().out
    assert "did you mean 'ppo_max'" in failure(capsys, "ppo", "--preset", "ppo_mx", "--help")


def test_the_version_is_that_of_the_package(capsys) -> None:
    from importlib.metadata import version

    main(["--version"])
    assert capsys.readouterr().out == f"stepwell {version('stepwell')}\n"


def test_the_benchmarks_are_listed(capsys) -> None:
    main(["eval", "--list"])
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == [
        *BENCHMARKS,
        *PRM_BENCHMARKS,
    ]


@pytest.mark.parametrize(
    ("verb", "remedy"),
    [
        ("ppo", "; --resume continues where it stopped"),
        ("eval", "; the same command continues where it stopped"),
        ("doctor", ""),
    ],
)
def test_an_interrupt_says_how_to_go_on_and_exits_with_130(verb, remedy, monkeypatch, capsys) -> None:
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    with pytest.raises(SystemExit) as info:
        main([verb])
    assert info.value.code == 130
    assert capsys.readouterr().err == f"stepwell: interrupted{remedy}\n"


@pytest.mark.parametrize(
    ("ends_with", "code"),
    [
        (None, 0),
        (SystemExit(1), 1),
        (UserError("a mistake"), 2),
        (FileNotFoundError(2, "no such file", "x.jsonl"), 2),
        (KeyboardInterrupt(), 130),
        (Stopped("told to stop"), 143),
    ],
)
def test_every_way_to_end_has_the_exit_code_that_help_states(ends_with, code, monkeypatch) -> None:
    def run(words: list[str]) -> None:
        if ends_with is not None:
            raise ends_with

    monkeypatch.setattr(cli, "_dispatch", run)
    found = 0
    try:
        main(["doctor"])
    except SystemExit as end:
        found = end.code
    assert found == code and re.search(rf"^ +{code}  \w", overview(), re.MULTILINE)


@pytest.mark.parametrize("words", [["metrics"], ["--help"]])
def test_a_reader_that_goes_away_is_no_fault(words) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # before anything is written: what `| head` does in the middle, every time
    command = [sys.executable, "-m", "reasoning_rl.cli", *words]
    child = subprocess.run(command, env=ENVIRONMENT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (child.returncode, child.stderr) == (141, "")


def test_a_ppo_run_ends_with_its_last_validation_and_the_model(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")

    def train(config, *, accelerator, log, resume):
        log.rewind(-1)
        log(0, {"valid/greedy": 0.25})
        log(8, {"valid/greedy": 0.5, "valid/sampled": 0.375})
        log(9, {"policy/loss": 1.0})
        return tmp_path / "run" / "model"

    words = ["--policy", "p", "--prm", "r", "--num-validation", "40", "--output-dir", str(tmp_path / "run")]
    run_training(words, "ppo", PPOConfig, train, shown={}, held_out=held_out_problems)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["held-out", "problems", "40"],
        ["greedy", "0.5"],
        ["sampled", "0.375"],
        ["trained", "policy:", str(tmp_path / "run" / "model")],
    ]


def test_quiet_is_an_option_of_what_shows_progress_and_of_nothing_else(monkeypatch, capsys) -> None:
    seen: list[tuple[list[str], bool]] = []
    monkeypatch.setattr(cli, "load", lambda where: lambda words: seen.append((words, is_quiet())))
    main(["eval", "gsm8k", "--quiet", "--limit", "3"])
    main(["eval", "gsm8k"])
    assert seen == [(["gsm8k", "--limit", "3"], True), (["gsm8k"], False)] and not is_quiet()
    monkeypatch.undo()
    assert "unknown option --quiet" in failure(capsys, "plan", "--quiet")
    quiet = {name for name, verb in VERBS.items() if "quiet" in verb.flags}
    assert quiet == {*cli.SHARED, *cli.GOES_ON}


def test_a_warning_is_one_line_without_the_line_of_code(monkeypatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    monkeypatch.setattr(cli, "load", lambda path: lambda words: None)
    main(["doctor"])
    assert warnings.formatwarning("4: damaged", UserWarning, "a.py", 7, "x = 1") == "stepwell: 4: damaged\n"
    assert "a.py:7" in warnings.formatwarning("old", DeprecationWarning, "a.py", 7, "x = 1")


def test_an_error_of_the_program_itself_keeps_its_traceback(monkeypatch) -> None:
    """Only mistakes of the user are made short: hiding our own would hide where they are."""

    def broken(words: list[str]) -> None:
        raise OSError("without a file: not the user's")

    monkeypatch.setattr(cli, "_dispatch", broken)
    with pytest.raises(OSError, match="without a file"):
        main(["ppo"])


def test_the_installed_command_exits_with_2_and_prints_to_stderr_only() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "reasoning_rl.cli", "evall"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert child.returncode == 2 and child.stdout == ""
    assert child.stderr == "stepwell: unknown command 'evall'; did you mean 'eval'? (see stepwell --help)\n"
