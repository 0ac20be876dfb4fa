"""Which PRMFormat a checkpoint is, from its name and its config.json; never a guess."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from data.errors import UserError
from prm.formats.registry import FORMATS
from prm.formats.spec import PRMFormat
from prm.model import FORMAT as STEPWELL


def recognise(path: str | Path, config: Any) -> PRMFormat:
    """Return the format of a checkpoint with this config.

    Asked in turn: the mark that this project leaves in its own models; the published id owner/name; a class
    that only one format is published with; the published name under any owner. Raises UserError that lists
    the formats when none of these decides.
    """
    if getattr(config, "prm_format", None) == STEPWELL:
        return FORMATS[STEPWELL]
    classes = set(getattr(config, "architectures", None) or ())
    ways = (
        [entry for entry in FORMATS.values() if is_published(path, entry, any_owner=False)],
        [entry for entry in FORMATS.values() if classes & set(entry.architectures)],
        [entry for entry in FORMATS.values() if is_published(path, entry, any_owner=True)],
    )
    for found in ways:
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{path} may be {' or '.join(entry.name for entry in found)}; name one: --format")
    shown = ", ".join(sorted(classes)) or "no architecture"
    raise UserError(
        f"{path}: cannot tell its PRM format ({shown}); name it: --format NAME, or a .yaml file\n"
        f"known: {', '.join(FORMATS)}"
    )


def is_published(path: str | Path, spec: PRMFormat, *, any_owner: bool = True) -> bool:
    """Return whether the path names one of the format's published checkpoints."""
    parts = Path(path).parts[-2:]
    for pattern in spec.models:
        owner, _, name = pattern.rpartition("/")
        if not parts or not fnmatch(parts[-1].lower(), name.lower()):
            continue
        if any_owner or (owner and len(parts) == 2 and parts[0].lower() == owner.lower()):
            return True
    return False
