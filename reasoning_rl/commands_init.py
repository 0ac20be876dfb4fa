"""`stepwell init`: a commented config for a task and a model size, with the command that runs it."""

import os
import shlex
import textwrap
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console

from data.errors import UserError
from data.files import write_atomically
from reasoning_rl.cli import VERBS, load
from reasoning_rl.init_config import InitConfig
from reasoning_rl.init_tasks import TASKS, Chosen, fill
from reasoning_rl.options import nested, parse

WIDTH = 100


def run_init(args: list[str]) -> None:
    """`stepwell init TASK`; the file must not exist."""
    parsed = parse(args, InitConfig, positional=1)
    config = InitConfig.from_dict(parsed.values, parsed.where)
    if not parsed.positional:
        raise UserError(f"a config for what? stepwell init TASK; known: {', '.join(TASKS)}")
    name = parsed.positional[0]
    path = Path(config.output or f"{name}.yaml")
    if path.exists():
        raise UserError(f"{path}: exists and is not overwritten; give another --output")
    chosen = fill(name, config)
    text = config_text(name, chosen, config, path)
    write_atomically(path, text)
    said = f"{path}: {chosen.reason}\nrun it: {command(name, chosen, config, path)}"
    Console().print(said, highlight=False, markup=False, soft_wrap=True)


def command(name: str, chosen: Chosen, config: InitConfig, path: Path) -> str:
    """Return the command line that runs the config."""
    task = TASKS[name]
    quoted = shlex.quote(str(path))
    if chosen.accelerate is None:
        return f"stepwell {task.verb}{task.words} --config {quoted}"
    folder = Path(__file__).resolve().parent.parent / "configs" / "accelerate"
    place = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else folder
    return (
        f"accelerate launch -q --config_file {shlex.quote(f'{place}/{chosen.accelerate}')} "
        f"--num_processes {config.gpus} -m reasoning_rl.cli {task.verb} --config {quoted}"
    )


def config_text(name: str, chosen: Chosen, config: InitConfig, path: Path) -> str:
    """Return the file: the command, what was chosen and why, then each setting below its docstring."""
    task = TASKS[name]
    gpus = "1 GPU" if config.gpus == 1 else f"{config.gpus} GPUs"
    head = [command(name, chosen, config, path), ""]
    if "engine" in chosen.values.get("rollout", {}):
        model = chosen.values["policy"]
        head += [f"First, on GPUs that only sample: stepwell serve --model {model} --port 8000", ""]
    head += [
        f"{task.about[0].upper()}{task.about[1:]}; a model of {config.model_size} on {gpus}.",
        f"Chosen by the formulas of docs/scaling.md: {chosen.reason}.",
        f"Settings that are not here keep their defaults: stepwell {task.verb} --help.",
    ]
    lines = [f"# {line}".rstrip() for line in head]
    settings = load(VERBS[task.verb].settings)
    return "\n".join([*lines, "", *_lines(chosen.values, settings)]) + "\n"


def _lines(values: dict[str, Any], model: type[BaseModel], indent: str = "") -> list[str]:
    """One setting a paragraph, sections last, in the order of the settings class."""
    lines = []
    order = list(model.model_fields)
    for name in sorted(values, key=lambda one: (isinstance(values[one], dict), order.index(one))):
        info, value = model.model_fields[name], values[name]
        text = " ".join((info.description or "").split())
        section = nested(info)
        if section is not None and not text:
            text = (section.__doc__ or "").split("\n")[0]
        start = f"{indent}# "
        lines += textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start)
        if section is not None:
            lines += [f"{indent}{name}:", *_lines(value, section, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {yaml_text(value)}")
    return lines


def yaml_text(value: Any) -> str:
    """Return a value as YAML writes it within a line."""
    if isinstance(value, float) and value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:e}".split("e")
        digits = mantissa.rstrip("0").rstrip(".")
        return (
            f"{digits if '.' in digits else digits + '.0'}e{int(exponent):+03d}"  # YAML 1.1 wants the point
        )
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
