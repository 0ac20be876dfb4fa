"""Name -> PRMFormat. A new model is a new entry in published.py, or a YAML file of the same fields."""

from pathlib import Path

from data.errors import UserError, did_you_mean
from data.settings import read_yaml
from prm.formats.published import SCORERS
from prm.formats.published_critics import CRITICS
from prm.formats.spec import PRMFormat

FORMATS: dict[str, PRMFormat] = {entry.name: entry for entry in (*SCORERS, *CRITICS)}
"""Name -> format."""


def get_format(name: str) -> PRMFormat:
    """Return a registered format, or that of a .yaml file. Raises UserError naming the nearest ones."""
    if name.endswith((".yaml", ".yml")):
        return read_format(name)
    if name not in FORMATS:
        raise UserError(f"PRM format '{name}' is unknown{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def read_format(path: str | Path) -> PRMFormat:
    """Return the format in a YAML file: fields laid over those of the entry that `base` names."""
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return PRMFormat.from_dict({"name": Path(path).stem, **values}, where=str(path))
    if base not in FORMATS:
        raise UserError(f"{path}: base '{base}' is unknown{did_you_mean(str(base), FORMATS)}")
    inherited = FORMATS[base].model_dump() | {"name": Path(path).stem, "models": (), "token_ids": {}}
    return PRMFormat.from_dict(inherited | values, where=str(path))
