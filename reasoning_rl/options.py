"""Command-line options of a settings class: `--update.learning-rate 1e-4` over a YAML file over a preset.

Not a general argument parser: one dotted option a field, values read as YAML (texts as they are typed), all
checks left to the settings class, so that a file and a command line give the same errors.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from data.errors import UserError, did_you_mean, nearest
from data.settings import own_defaults, read_yaml
from reasoning_rl.presets import merge


@dataclass
class Parsed:
    """What a command line said."""

    values: dict[str, Any]
    """Nested settings: the file's, with the options laid on them."""
    flags: set[str] = field(default_factory=set)
    positional: list[str] = field(default_factory=list)
    where: str = "command line"


def parse(
    args: Sequence[str],
    model: type[BaseModel],
    *,
    flags: Sequence[str] = (),
    positional: int = 0,
) -> Parsed:
    """Read `--config FILE`, `--name value`, `--name=value` and bare `--flag`s; a bare Boolean setting is on.

    Raises UserError for an unknown option (with the nearest ones), a missing value or a stray word.
    """
    known = annotations(model)
    parsed = Parsed(values={})
    options: dict[str, Any] = {}
    queue = list(args)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--"):
            if len(parsed.positional) >= positional:
                raise UserError(f"unexpected word '{word}'; options look like --name value (see --help)")
            parsed.positional.append(word)
            continue
        name, _, value = word[2:].partition("=")
        dotted = name.replace("-", "_")
        if dotted in flags:
            if "=" in word:
                raise UserError(f"option --{name} takes no value: --{name}")
            parsed.flags.add(dotted)
            continue
        if dotted != "config" and dotted not in known:
            raise UserError(f"unknown option --{name}" + _nearest(dotted, [*known, *flags, "config"]))
        if "=" not in word:
            if queue and not queue[0].startswith("--"):
                value = queue.pop(0)
            elif dotted != "config" and known[dotted] is bool:
                value = "true"
            else:
                raise UserError(f"option --{name} needs a value: --{name} VALUE")
        if dotted == "config":
            parsed.values, parsed.where = read_yaml(value), value
        else:
            options = merge(options, _nest(dotted.split("."), _value(value, known[dotted])))
    parsed.values = merge(parsed.values, options)
    return parsed


def several_values(args: Sequence[str], option: str) -> list[str]:
    """Return the words with those that follow `option`, up to the next option, put together as its list.

    Raises UserError when none follows.
    """
    words, queue = [], list(args)
    while queue:
        word = queue.pop(0)
        if word != option:
            words.append(word)
            continue
        values = []
        while queue and not queue[0].startswith("--"):
            values.append(queue.pop(0))
        if not values:
            raise UserError(f"option {option} needs one or more values: {option} FILE ...")
        words.append(f"{option}={json.dumps(values)}")
    return words


def annotations(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return the dotted name of every leaf field -> its type."""
    found: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        section = nested(info)
        found |= annotations(section, f"{prefix}{name}.") if section else {prefix + name: info.annotation}
    return found


def describe(
    model: type[BaseModel], values: Mapping[str, Any] | None = None, prefix: str = ""
) -> list[tuple[str, str]]:
    """Return (option with its default, docstring) of every field, for --help.

    values: nested defaults that win over the classes' own, as a preset's do.
    """
    rows = []
    values = values or {}
    for name, info in model.model_fields.items():
        section = nested(info)
        if section:
            rows += describe(section, merge(own_defaults(info), values.get(name, {})), f"{prefix}{name}.")
            continue
        if name in values:
            default = _shown(values[name])
        else:
            default = "required" if info.is_required() else _shown(info.get_default())
        text = " ".join((info.description or "").split())
        rows.append((f"--{prefix}{name.replace('_', '-')} ({default})", text))
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def nested(info: FieldInfo) -> type[BaseModel] | None:
    """Return the settings class of a section, None for a field that holds a value."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _value(text: str, kind: Any) -> Any:
    """YAML's reading, but 1e-4 is a number, none switches a setting off, and what is to be a text stays as it
    was typed: a folder may be named 2024-01-01."""
    if kind is str or text in choices(kind):
        return text
    if text.lower() in ("none", "null"):
        return None
    if kind == str | None or (str in get_args(kind) and not text.startswith("[")):
        return text
    try:
        read = float(text) if "e" in text.lower() and text[:1] in "+-.0123456789" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return text
    return text if read is None else read


def choices(kind: Any) -> tuple[Any, ...]:
    """The values a Literal (or a union with one) allows: `off` is a choice here, not YAML's false."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return parts
    return tuple(choice for part in parts for choice in choices(part))


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nest(path[1:], value) if len(path) > 1 else value}


SYNONYMS = {
    "batch": "batch_size",
    "bs": "batch_size",
    "dataset": "data",
    "input_file": "input",
    "lora_r": "rank",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "max_completion_length": "max_new_tokens",
    "max_steps": "max_updates",
    "max_tokens": "max_new_tokens",
    "model_name": "model",
    "model_name_or_path": "model",
    "model_path": "model",
    "num_epochs": "epochs",
    "num_generations": "samples_per_problem",
    "num_train_epochs": "epochs",
    "out": "output_dir",
    "output": "output_dir",
    "per_device_train_batch_size": "micro_batch_tokens",
    "r": "rank",
    "report_to": "trackers",
    "save_steps": "save_every",
    "eval_steps": "validate_every",
    "logging_steps": "log_every",
    "warmup": "warmup_ratio",
    "wd": "weight_decay",
}
"""What other tools call a setting -> the last part of its name here."""


def _nearest(name: str, known: Sequence[str]) -> str:
    """Match the last part too: --learning-rate finds update.learning_rate, --fit.lr fit.learning_rate."""
    section, _, last = name.rpartition(".")
    lasts = (last, SYNONYMS.get(last))
    ends = [k for k in known if k.split(".")[-1] in lasts]
    near = [k for k in ends if k.rpartition(".")[0] == section] if section else []
    near = near or ends or nearest(name, known, 3)
    if near:
        return "; did you mean " + " or ".join(f"--{n.replace('_', '-')}" for n in near[:3]) + "?"
    return did_you_mean(name, known) + " (see --help)"
