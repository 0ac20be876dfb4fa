"""What keeps programs in on this machine, and what was refused: `python -m eval.sandbox`."""

import os
import sys

os.environ["STEPWELL_SANDBOX_DEBUG"] = "1"  # the two processes show their errors

from eval.sandbox import isolation  # noqa: E402 - after the switch

found = isolation()
sys.stdout.write(f"{found}\n" + "".join(f"missing: {what}\n" for what in found.missing))
