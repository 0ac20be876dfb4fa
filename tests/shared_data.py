"""Public data files beside the checkout: tests that read them are skipped where they are not."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the public data files in ../shared/data")
