"""Name -> PRMFormat. A new model is a new entry in published.py, or a YAML file of the same fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UserError, did_you_mean
from data.plugins import installed, is_plugin, load_plugin
from data.settings import read_yaml
from prm.formats.published import SCORERS
from prm.formats.published_critics import CRITICS
from prm.formats.spec import PRMFormat
from prm.model import FORMAT as STEPWELL

FORMATS: dict[str, PRMFormat] = {entry.name: entry for entry in (*SCORERS, *CRITICS)}
"""Name -> format."""


def get_format(name: str) -> PRMFormat:
    """Return a registered format, that of a .yaml file, or the user's own "module:name", a PRMFormat or a
    mapping as such a file holds. Raises UserError naming the nearest ones."""
    if name.endswith((".yaml", ".yml")):
        return read_format(name)
    if name in FORMATS:
        return FORMATS[name]
    if is_plugin(name) or name in (others := installed("prm_format")):
        found = load_plugin(name, "prm_format")
        if isinstance(found, PRMFormat):
            return found
        if not isinstance(found, Mapping):
            raise UserError(
                f"PRM format '{name}' is {type(found).__name__}; give a PRMFormat or a mapping of its fields"
            )
        return _format_of({"name": name, **found}, name)
    raise UserError(f"PRM format '{name}' is unknown{did_you_mean(name, (*FORMATS, *others))}")


def read_format(path: str | Path) -> PRMFormat:
    """Return the format in a YAML file: fields laid over those of the entry that `base` names.

    Raises UserError for an unknown base or field, and for our own models' format as base or name.
    """
    return _format_of({"name": Path(path).stem, **read_yaml(path)}, str(path))


def _format_of(values: dict[str, Any], path: str) -> PRMFormat:
    base = values.pop("base", None)
    if base is not None:
        if not isinstance(base, str) or base not in FORMATS:
            raise UserError(f"{path}: base '{base}' is unknown{did_you_mean(str(base), FORMATS)}")
        values = FORMATS[base].model_dump() | {"models": (), "token_ids": {}} | values
    spec = PRMFormat.from_dict(values, where=path)
    if base == STEPWELL or (spec.name == STEPWELL and spec != FORMATS[STEPWELL]):
        # Their own scorer reads them, from their own config: other fields would be passed over, or misread.
        raise UserError(
            f"{path}: '{STEPWELL}' is how models trained here are read, and takes no fields of yours; "
            "leave --format out for them, and give another format another name and base"
        )
    return spec
