"""What a resumed run is told when its settings are not those that it was started with."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.settings import read_yaml

FREE = ("output_dir", "tracking")
"""Settings that change no number."""
MOST = 6
"""Changes that are named."""


def warn_of_changes(config: Any) -> None:
    """Warn, in one line, of settings that differ from the config.yaml in the run's folder."""
    recorded = Path(config.output_dir) / "config.yaml"
    if not recorded.exists():
        return
    changed = changes(read_yaml(recorded), config.model_dump(mode="json"))
    if changed:
        named = ", ".join(changed[:MOST]) + (
            f" and {len(changed) - MOST} more" if len(changed) > MOST else ""
        )
        warnings.warn(
            f"{config.output_dir}: resumed with other settings than the run had: {named}; they count for "
            "what is still to be trained",
            stacklevel=2,
        )


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "name new (was old)" of every setting in both that differs."""
    found = []
    for name in new:
        if name not in old or prefix + name in FREE:
            continue
        if isinstance(old[name], Mapping) and isinstance(new[name], Mapping):
            found += changes(old[name], new[name], f"{prefix}{name}.")
        elif old[name] != new[name]:
            found.append(f"{prefix}{name} {new[name]} (was {old[name]})")
    return found
