"""Frozen, checked settings read from YAML. An unknown key is an error that names the nearest ones."""

import re
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from data.errors import UserError, did_you_mean
from data.files import write_atomically


class Settings(BaseModel):
    """Base of every config: immutable, no unknown fields, documented by the docstring under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_own_defaults(cls, values: Any) -> Any:
        """Lay a given section on what this class sets in it: `fit: {epochs: 2}` keeps DPO's learning rate."""
        if not isinstance(values, dict):
            return values
        return values | {
            name: own_defaults(info) | values[name]
            for name, info in cls.model_fields.items()
            if isinstance(values.get(name), dict)
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config") -> Self:
        """Build from nested dictionaries. Raises UserError naming each wrong field and the remedy."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_explain(cls, item) for item in error.errors()[:2]]
            raise UserError(f"{where}: " + "\n".join(lines)) from error

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Return the settings in a file. Raises UserError naming the file and the key."""
        return cls.from_dict(read_yaml(path), where=str(path))

    def to_yaml(self, path: str | Path) -> None:
        """Write every resolved field; `from_yaml` of the file gives an equal object."""
        write_atomically(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def own_defaults(info: FieldInfo) -> dict[str, Any]:
    """Return what a field's default sets in its section, beside what the section's class has as defaults."""
    return info.default.model_dump(exclude_unset=True) if isinstance(info.default, BaseModel) else {}


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are Booleans: `off` is a word, and a choice may be named so."""

    yaml_implicit_resolvers = {
        key: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises UserError when it is missing, broken or no mapping."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: unreadable ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        column = f" at column {mark.column + 1}" if mark else ""
        fault = f"{getattr(error, 'problem', error)}{column}"
        raise UserError(f"{path}{place}: broken YAML ({fault})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def _explain(model: type[BaseModel], item: Any) -> str:
    """One line for one pydantic error: dotted path, what is wrong, and for unknown keys the nearest names."""
    path = [str(part) for part in item["loc"]]
    dotted = ".".join(path)
    if item["type"] != "extra_forbidden":
        if item["type"] == "missing":
            return f"{dotted}: Field required; set it in the config file or as --{dotted.replace('_', '-')}"
        message = item["msg"].removeprefix("Value error, ")
        return f"{dotted}: {message}, got {item.get('input')!r}" if dotted else message
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return f"unknown key '{dotted}'"
        model = annotation
    return f"unknown key '{dotted}'" + did_you_mean(path[-1], model.model_fields)
