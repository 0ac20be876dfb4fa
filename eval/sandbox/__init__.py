"""Model-written programs run and judged: on their own ground, out of reach of the machine and of the judge.

    from eval.sandbox import run_check
    verdict = run_check(program, test, "add", timeout_s=3.0, memory_mb=512)      # .status "passed"

docs/sandbox.md says against what it defends, and against what not.
"""

from eval.sandbox.client import Sandbox, isolation, run_asserts, run_calls, run_check, run_stdio
from eval.sandbox.verdict import CodeVerdict, Isolation

__all__ = [
    "CodeVerdict",
    "Isolation",
    "Sandbox",
    "isolation",
    "run_asserts",
    "run_calls",
    "run_check",
    "run_stdio",
]
