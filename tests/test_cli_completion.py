"""Completion as a user meets it: the shells themselves are asked what they would offer."""

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cli_cases import failure

from reasoning_rl.cli import VERBS, main
from reasoning_rl.completion import options_of

SHELLS = [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)]
WORDS = [
    ("stepwell due", ["duel"]),
    ("stepwell eval gs", ["gsm8k", "gsm_hard"]),
    ("stepwell ppo --kl.", ["--kl.coef", "--kl.place", "--kl.estimator", "--kl.target", "--kl.horizon"]),
    ("stepwell ppo --kl.place ", ["reward", "loss"]),
    ("stepwell ppo --kl.place=r", ["reward"]),
    ("stepwell eval --prm-f", ["--prm-format"]),
    ("stepwell sft --data pai", ["pairs.jsonl"]),
    ("stepwell ppo --iterations ", []),
    ("stepwell ppo --resume --hack.a", ["--hack.action"]),
    ("stepwell init ppo --model-size 1", ["1.5b"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a data file and each shell's script."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "pairs.jsonl").write_text("{}\n")
    with pytest.MonkeyPatch.context() as patch:
        for shell in ("bash", "zsh", "fish"):
            with (folder / shell).open("w") as file:
                patch.setattr("sys.stdout", file)
                main(["completion", shell])
    return folder


def offered(shell: str, script: Path, line: str) -> list[str]:
    """What a shell offers at the end of a line."""
    if shell == "fish":
        asked = ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"]
        out = subprocess.run(asked, cwd=script.parent, capture_output=True, text=True, check=True).stdout
        return [row.split("\t")[0].rpartition("=")[2] for row in out.splitlines()]
    words = line.replace("=", " = ").split(" ")  # as bash breaks a line
    call = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _stepwell; printf "%s\\n" "${COMPREPLY[@]}"'
    asked = ["bash", "--norc", "-c", call, str(script), *words]
    return subprocess.run(asked, cwd=script.parent, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shell != "zsh"])
def test_commands_options_choices_names_and_files_are_offered(shell, folder) -> None:
    for line, expected in WORDS:
        assert sorted(offered(shell, folder / shell, line)) == sorted(expected), line
    assert set(offered(shell, folder / shell, "stepwell ")) >= set(VERBS)


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shell != "fish"])
def test_tab_in_a_terminal_completes_the_line(shell, folder) -> None:
    """In the shell as it is used: one choice is put in at the first TAB."""
    assert "--kl.place=reward" in type_line(shell, folder / shell, "stepwell ppo --kl.place=r\t")


def type_line(shell: str, script: Path, keys: str) -> str:
    """Type into an interactive shell; return what stands on its screen afterwards."""
    plain = "-f" if shell == "zsh" else "--norc"
    load = f"{'autoload -Uz compinit; compinit -u -D; ' if shell == 'zsh' else ''}. {script}"
    process, screen = pty.fork()
    if process == 0:
        os.chdir(script.parent)
        os.environ.update(TERM="dumb", HOME=str(script.parent))
        os.execvp(shell, [shell, plain, "-i"])
    try:
        os.write(screen, f"{load}; echo REA''DY\n".encode())
        read_until(screen, "READY")
        os.write(screen, keys.encode())
        return read_until(screen, "reward", seconds=5.0)
    finally:
        os.close(screen)
        os.waitpid(process, 0)


def read_until(screen: int, text: str, seconds: float = 10.0) -> str:
    seen, end = "", time.monotonic() + seconds
    while text not in seen and time.monotonic() < end:
        if select.select([screen], [], [], 0.1)[0]:
            seen += os.read(screen, 65536).decode(errors="replace")
    return seen


def test_every_option_of_every_command_is_in_every_script(folder) -> None:
    for shell in ("bash", "zsh", "fish"):
        script = (folder / shell).read_text()
        for verb in VERBS.values():
            for option in options_of(verb):
                assert (f"-l {option.name[2:]} " if shell == "fish" else option.name) in script, option


def test_an_unknown_shell_is_named(capsys) -> None:
    assert "stepwell completion SHELL; known: bash, zsh, fish" in failure(capsys, "completion")
    assert "shell 'bsh' is unknown; did you mean 'bash'" in failure(capsys, "completion", "bsh")
