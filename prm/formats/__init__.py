"""Every published process reward model behind one `score()`; see docs/formats.md."""

from prm.formats.load import OWN, Loaded, find_format, load, load_given, load_scorer
from prm.formats.registry import FORMATS, get_format, read_format
from prm.formats.spec import PRMFormat

__all__ = [
    "FORMATS",
    "OWN",
    "Loaded",
    "PRMFormat",
    "find_format",
    "get_format",
    "load",
    "load_given",
    "load_scorer",
    "read_format",
]
