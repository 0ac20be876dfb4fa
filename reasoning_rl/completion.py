"""`stepwell completion SHELL`: a script in which every command, option and choice is written out.

Pressing TAB then starts no Python. The lists come from the settings classes; make the script again after an
upgrade.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from data.errors import UserError, did_you_mean
from data.settings import Settings
from reasoning_rl.cli import DETERMINISTIC, FLAGS, VERBS, Verb, load
from reasoning_rl.options import annotations, choices, describe, parse

NAMED = {
    "problems": "eval.benchmarks:BENCHMARKS",
    "problems_format": "eval.benchmarks:BENCHMARKS",
    "template": "data.prompts:TEMPLATES",
    "model_size": "reasoning_rl.plan:MODELS",
    "prm_size": "reasoning_rl.plan:MODELS",
}
"""Last part of a setting of texts -> the names that it may hold."""


class CompletionConfig(Settings):
    """`stepwell completion bash`, zsh or fish: prints a script."""


@dataclass(frozen=True)
class Option:
    """One option of a command."""

    name: str
    """With its dashes."""
    text: str
    """What it does, in a few words."""
    values: tuple[str, ...] = ()
    takes_file: bool = False
    stands_alone: bool = False
    """It needs no value."""


def run_completion(args: list[str]) -> None:
    """`stepwell completion SHELL`."""
    import sys

    parsed = parse(args, CompletionConfig, positional=1)
    known = ", ".join(SCRIPTS)
    if not parsed.positional:
        raise UserError(f"for which shell? stepwell completion SHELL; known: {known}")
    shell = parsed.positional[0]
    if shell not in SCRIPTS:
        raise UserError(f"shell '{shell}' is unknown{did_you_mean(shell, SCRIPTS)}")
    sys.stdout.write(SCRIPTS[shell]())


def options_of(verb: Verb) -> list[Option]:
    """Return every option of a command, in the order of its help."""
    found = [
        Option("--help", "what it does, its options and an example", stands_alone=True),
        Option("--config", "YAML file of these options", takes_file=True),
    ]
    found += [Option(f"--{flag}", FLAGS[flag], stands_alone=True) for flag in verb.flags]
    if "resume" in verb.flags:
        found.append(Option("--deterministic", DETERMINISTIC, stands_alone=True))
    for where in (verb.settings, verb.more[1] if verb.more else None):
        found += _settings_options(load(where)) if where else []
    return list({option.name: option for option in reversed(found)}.values())[::-1]


def _settings_options(model: type[BaseModel]) -> list[Option]:
    texts = [text for _, text in describe(model)]
    found = []
    for (name, kind), text in zip(annotations(model).items(), texts, strict=True):
        values = tuple(str(choice) for choice in choices(kind))
        if named := NAMED.get(name.split(".")[-1]):
            values = tuple(load(named))
        if kind is bool:
            values = ("true", "false")
        found.append(
            Option(
                f"--{name.replace('_', '-')}",
                _beginning(text),
                values,
                takes_file=not choices(kind) and kind in (str, str | None),
                stands_alone=kind is bool,
            )
        )
    return found


def words_of(verb: Verb) -> tuple[str, ...]:
    """Return what a command's own words may be; nothing where they are files."""
    return tuple(word for where in verb.names for word in load(where))


def _beginning(text: str, most: int = 70) -> str:
    """The first sentence of a docstring, cut to a line."""
    first = text.split(". ")[0].split("; ")[0]
    return first if len(first) <= most else first[: most - 1].rsplit(" ", 1)[0] + "…"


def bash_script() -> str:
    """Return a script for bash 3.2 and later; `.` it in ~/.bashrc."""
    verbs, values = [], []
    for name, verb in VERBS.items():
        options = options_of(verb)
        listed = " ".join(option.name for option in options)
        verbs.append(
            f"    {name}) options={shlex.quote(listed)} words={shlex.quote(' '.join(words_of(verb)))} ;;"
        )
        kinds: dict[str, list[str]] = {}
        for option in options:
            if option.values or not option.stands_alone:
                allowed = f"values={shlex.quote(' '.join(option.values))} files={option.takes_file or ''}"
                kinds.setdefault(allowed, []).append(f'"{name} {option.name}"')
        values += [f"    {'|'.join(words)}) is_value=1 {allowed} ;;" for allowed, words in kinds.items()]
    return _BASH.format(commands=" ".join(VERBS), verbs="\n".join(verbs), values="\n".join(values))


def zsh_script() -> str:
    """Return a script for zsh; `.` it in ~/.zshrc after compinit, or save it as _stepwell in $fpath."""
    commands = " ".join(_described(name, verb.purpose) for name, verb in VERBS.items())
    verbs, values = [], []
    for name, verb in VERBS.items():
        options = options_of(verb)
        listed = " ".join(_described(option.name, option.text) for option in options)
        verbs.append(f"    {name}) options=({listed}) choices=({' '.join(words_of(verb))}) ;;")
        kinds: dict[str, list[str]] = {}
        for option in options:
            if option.values or not option.stands_alone:
                allowed = (
                    f"choices=({' '.join(map(shlex.quote, option.values))}) files={option.takes_file or ''}"
                )
                kinds.setdefault(allowed, []).append(f'"{name} {option.name}"')
        values += [f"    {'|'.join(words)}) is_value=1 {allowed} ;;" for allowed, words in kinds.items()]
    return _ZSH.format(commands=commands, verbs="\n".join(verbs), values="\n".join(values))


def fish_script() -> str:
    """Return a script for fish; save it as ~/.config/fish/completions/stepwell.fish."""
    lines = [_FISH]
    for name, verb in VERBS.items():
        lines.append(f"complete -c stepwell -n '__stepwell_is \"\"' -a {name} -d {_fish(verb.purpose)}")
        start = f"complete -c stepwell -n '__stepwell_is {name}'"
        words = words_of(verb)
        lines.append(f"{start} -a {_fish(' '.join(words))}" if words else f"{start} -F")
        for option in options_of(verb):
            kind = "" if option.stands_alone else " -x"
            if option.takes_file:
                kind = " -r -F"
            if option.values:
                kind += f" -a {_fish(' '.join(option.values))}"
            lines.append(f"{start} -l {option.name[2:]}{kind} -d {_fish(option.text)}")
    return "\n".join(lines) + "\n"


def _described(name: str, text: str) -> str:
    return shlex.quote(f"{name}:{text}")


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[str, Callable[[], Any]] = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}

_BASH = """\
# Made by: stepwell completion bash
_stepwell() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}}
    local options="" words="" values="" files="" is_value=""
    COMPREPLY=()
    # --option=value is three words to bash.
    if [[ $cur == "=" ]]; then
        cur=""
    elif [[ $prev == "=" ]]; then
        prev=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$cur"))
        return
    fi
    case $verb in
{verbs}
    *) return ;;
    esac
    case "$verb $prev" in
{values}
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        return
    fi
    [[ -n $is_value ]] || {{ values=$words; [[ -n $words ]] || files=1; }}
    [[ -z $values ]] || COMPREPLY=($(compgen -W "$values" -- "$cur"))
    if [[ -n $files ]]; then
        local IFS=$'\\n'
        COMPREPLY+=($(compgen -f -- "$cur"))
        type compopt &>/dev/null && compopt -o filenames
    fi
}}
complete -F _stepwell stepwell
"""

_ZSH = """\
#compdef stepwell
# Made by: stepwell completion zsh
_stepwell() {{
    local verb=$words[2] prev=$words[CURRENT-1] files="" is_value=""
    local -a commands options choices
    if (( CURRENT == 2 )); then
        commands=({commands})
        _describe command commands
        return
    fi
    if [[ $PREFIX == --*=* ]]; then
        prev=${{PREFIX%%=*}}
        compset -P '*='
    fi
    case $verb in
{verbs}
    *) return 1 ;;
    esac
    if [[ $PREFIX == -* ]]; then
        _describe -o option options
        return
    fi
    case "$verb $prev" in
{values}
    esac
    [[ -n $is_value || ${{#choices}} -gt 0 ]] || files=1
    (( ${{#choices}} )) && compadd -a choices
    [[ -n $files ]] && _files
    return 0
}}
if [[ $funcstack[1] == _stepwell ]]; then
    _stepwell "$@"
else
    compdef _stepwell stepwell
fi
"""

_FISH = """\
# Made by: stepwell completion fish
function __stepwell_is
    set -l words (commandline -opc)
    test "$words[2]" = "$argv[1]"
end
complete -c stepwell -f
complete -c stepwell -n '__stepwell_is ""' -l help -d 'all commands'
complete -c stepwell -n '__stepwell_is ""' -l version"""
