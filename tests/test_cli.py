"""The command itself: help, versions, flags, and what it says at the end."""

import subprocess
import sys
import warnings
from functools import reduce

import pytest
from cli_cases import ENVIRONMENT, failure, field_names

from eval.benchmarks import BENCHMARKS
from eval.prm_benchmarks import PRM_BENCHMARKS
from reasoning_rl import cli
from reasoning_rl.cli import VERBS, load, main
from reasoning_rl.cli_help import overview, verb_help
from reasoning_rl.config import PPOConfig
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
    example = next(line for line in text.splitlines() if line.startswith("example:"))
    words = example.split()[3:]
    known = {"--config", *(f"--{f.replace('_', '-')}" for f in field_names(load(VERBS[name].settings)))}
    assert {word for word in words if word.startswith("--")} <= known


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


def test_an_interrupt_says_how_to_go_on_and_exits_with_130(monkeypatch, capsys) -> None:
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    with pytest.raises(SystemExit) as info:
        main(["ppo"])
    assert info.value.code == 130
    assert capsys.readouterr().err == "stepwell: interrupted; --resume continues where it stopped\n"


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
