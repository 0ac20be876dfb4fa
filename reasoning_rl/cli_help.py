"""What `stepwell --help` and `stepwell COMMAND --help` print, from the table of commands in cli.py."""

import re
import textwrap
from collections.abc import Sequence


def overview() -> str:
    """The text of `stepwell --help`."""
    from reasoning_rl.cli import EXIT_CODES, GROUPS, VERBS

    lines = ["usage: stepwell COMMAND [--config FILE.yaml] [--option value ...]", ""]
    for group in GROUPS:
        lines.append(group)
        lines += [f"  {name:<11} {verb.purpose}" for name, verb in VERBS.items() if verb.group == group]
        lines.append("")
    lines += [
        "stepwell COMMAND --help lists a command's options with their defaults and an example; examples run",
        "as they stand, without a network, after `stepwell quickstart` and `stepwell data demo demo`.",
        "",
        "exit codes",
    ]
    for code, meaning in EXIT_CODES.items():
        lines += textwrap.wrap(f"{code:>5}  {meaning}", 100, subsequent_indent=" " * 7)
    return "\n".join(lines) + "\n"


def verb_help(name: str, words: Sequence[str] = ()) -> str:
    """The text of `stepwell NAME WORDS --help`; of the words, those that choose a preset count."""
    from reasoning_rl.cli import DETERMINISTIC, FLAGS, VERBS, load
    from reasoning_rl.options import describe

    verb = VERBS[name]
    # No option is parted from its value; textwrap breaks at blanks, not at this other kind of them.
    joined = re.sub(r"(--\S+) (?=[^-])", "\\1\u00a0", verb.example)
    example = textwrap.wrap(joined, 98, break_on_hyphens=False, break_long_words=False)
    shown = " \\\n          ".join(example).replace("\u00a0", " ")
    lines = [f"stepwell {name}: {verb.purpose}", "", f"example:  {shown}"]
    if verb.names:
        known = ", ".join(word for where in verb.names for word in load(where))
        lines += ["", *textwrap.wrap(f"names:    {known}", 100, subsequent_indent=" " * 10)]
    settings, defaults = load(verb.settings), {}
    if hasattr(settings, "preset_values"):
        asked = {of: value for of in ("preset", "algorithm") if (value := _value_of(of, words))}
        defaults = settings.preset_values(asked, "command line") | asked
        other = "--preset NAME --help shows another's"
        lines += ["", f"options, with the defaults of preset {defaults['preset']} ({other})"]
    else:
        lines += ["", "options"]
    lines += [
        "  --config FILE",
        "      YAML file of the options below; options on the command line win over it",
    ]
    lines += ["  --deterministic", f"      {DETERMINISTIC}"] if "resume" in verb.flags else []
    for flag in verb.flags:
        lines += [f"  --{flag}", f"      {FLAGS[flag]}"]
    lists = [describe(settings, defaults)]
    if verb.more:
        lists.append(describe(load(verb.more[1])))
    for number, options in enumerate(lists):
        if number:
            lines += ["", verb.more[0] if verb.more else ""]
        for option, text in options:
            lines.append(f"  {option}")
            lines += textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def _value_of(option: str, words: Sequence[str]) -> str | None:
    """What `--option value` or `--option=value` last said."""
    found = None
    for word, after in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name == f"--{option}":
            found = value if equals else after
    return found
