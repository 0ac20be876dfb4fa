"""The process in which sympy runs: `python -m eval.grade_worker`, JSON lines in and out.

It imports math-verify once and forks a child to do the work. A child that hangs, crashes or runs out of
memory is replaced by a fork, which is warm from its first request on. Only eval.math_grader starts it.

    -> {"gold": "2\\sqrt{3}", "prediction": "\\sqrt{12}", "seconds": 2.0}
    <- {"status": "correct", "reason": "math-verify: equal"}
"""

import contextlib
import ctypes
import json
import logging
import os
import resource
import select
import signal
import sys
import time
from typing import Any

MEMORY_BYTES = 2 << 30
"""Address space of a child. sympy and math-verify themselves map about 300 MB."""

EXACT_TOLERANCE = 1e-60
"""Relative distance from which two values are different (up to 120 digits are computed)."""

POINTS = (
    ((17, 13), (29, 19), (7, 11)),
    ((3, 23), (31, 41), (5, 37)),
    ((-19, 17), (13, 29), (-43, 31)),
    ((53, 7), (-11, 47), (59, 5)),
)
"""Where variables are put: (numerator, denominator) for the first, second, third variable and so on."""


def compare(gold: str, prediction: str) -> tuple[str, str]:
    """Return (status, reason) for two LaTeX expressions: compared exactly, else as math-verify sees them."""
    from math_verify import parse, verify

    golds = parse(f"${gold}$", parsing_timeout=None)
    if not golds:
        return "unjudged", "the gold answer is no expression that math-verify reads"
    predictions = parse(f"${prediction}$", parsing_timeout=None)
    if not predictions:
        return "wrong", "the prediction is no expression that math-verify reads"
    same = _identical(golds[0], predictions[0])
    if same is not None:
        return ("correct", "sympy: identical") if same else ("wrong", "sympy: different")
    if not (
        verify(golds, predictions, timeout_seconds=None) or verify(predictions, golds, timeout_seconds=None)
    ):
        return "wrong", "math-verify: different"
    return "correct", "math-verify: equal"


def _identical(gold: Any, prediction: Any) -> bool | None:
    """Return whether two expressions have the same value wherever both are real; None where that is open.

    Constants are compared in up to 120 digits, so near is not equal; variables are put at fixed rational
    points, where only an identity vanishes every time. math-verify alone takes numbers that agree in six
    digits as equal, and 2^{-1} and 1/2, or 1/(x+1) and (x+1)^{-1}, as different.
    """
    import sympy

    if not (isinstance(gold, sympy.Expr) and isinstance(prediction, sympy.Expr)):
        return None
    gold, prediction = (_exact(side) for side in (gold, prediction))
    if gold.has(sympy.nan) != prediction.has(sympy.nan):  # 0/0 is no number
        return False
    if any(side.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo) for side in (gold, prediction)):
        return None
    names = sorted(gold.free_symbols | prediction.free_symbols, key=str)
    num_zero = 0
    for point in POINTS if names else POINTS[:1]:
        values = {name: sympy.Rational(*point[k % len(point)]) + k for k, name in enumerate(names)}
        left, right = gold.subs(values).doit(), prediction.subs(values).doit()
        size, distance = sympy.N(abs(left), 15), sympy.N(abs(left - right), 15, maxn=120)
        if not (size.is_Float or size.is_Integer) or not (distance.is_Float or distance.is_Integer):
            continue
        if distance > max(size, 1) * EXACT_TOLERANCE:
            if not names or (sympy.im(sympy.N(left, 15)) == 0 and sympy.im(sympy.N(right, 15)) == 0):
                return False
            continue
        num_zero += 1
    return True if num_zero >= (2 if names else 1) else None


def _exact(expression: Any) -> Any:
    """Decimals as the rationals they are written as, evaluated; the letter i as the imaginary unit."""
    import sympy

    floats = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    letters = {letter: sympy.I for letter in expression.free_symbols if str(letter) == "i"}
    return expression.xreplace(floats | letters).doit()


def answer(line: bytes) -> bytes:
    """Return the reply to one request. An error inside sympy is a reply, not a crash."""
    request = json.loads(line)
    try:
        status, reason = compare(request["gold"], request["prediction"])
    except Exception as error:  # sympy raises whatever it likes; all of it means: not judged
        status, reason = "unjudged", f"math-verify raised {type(error).__name__}"
    return json.dumps({"status": status, "reason": reason}).encode() + b"\n"


class Child:
    """A forked copy of this process that answers requests until it is killed."""

    def __init__(self) -> None:
        request_read, self.request_write = os.pipe()
        self.reply_read, reply_write = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.request_write)
            os.close(self.reply_read)
            _limit(parent)
            _serve(request_read, reply_write)
        os.close(request_read)
        os.close(reply_write)

    def ask(self, line: bytes, seconds: float) -> bytes | None:
        """Return the reply, b"" when the child died, None when `seconds` passed or our own input closed."""
        try:
            os.write(self.request_write, line)
        except BrokenPipeError:
            return b""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.reply_read, select.POLLIN)
        poll.register(0, 0)  # only a hang-up of whoever asked
        reply = b""
        while not reply.endswith(b"\n"):
            left = deadline - time.monotonic()
            ready = dict(poll.poll(max(left, 0) * 1000))
            if left <= 0 or 0 in ready:
                return None
            if self.reply_read in ready:
                part = os.read(self.reply_read, 65536)
                if not part:
                    return b""
                reply += part
        return reply

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.request_write)
        os.close(self.reply_read)


def _limit(parent: int) -> None:
    """Bound the child's memory and let it die with its parent."""
    with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


def _serve(request_read: int, reply_write: int) -> None:
    with os.fdopen(request_read, "rb") as requests:
        for line in requests:
            os.write(reply_write, answer(line))
    os._exit(0)


def main() -> None:
    """Answer requests on stdin until it closes."""
    replies = os.dup(1)
    os.dup2(2, 1)  # nothing that a library prints may reach the replies
    logging.disable(logging.CRITICAL)
    answer(b'{"gold": "\\\\sqrt{8}", "prediction": "2\\\\sqrt{2}"}')  # imports and fills sympy's caches
    os.write(replies, b'{"status": "ready"}\n')
    child: Child | None = None
    for line in sys.stdin.buffer:
        seconds = json.loads(line)["seconds"]
        child = child or Child()
        reply = child.ask(line, seconds)
        if not reply:
            child.kill()
            child = None
            late, full = "no result within the time limit", "the comparison ran out of memory"
            reason = late if reply is None else full
            reply = json.dumps({"status": "unjudged", "reason": reason}).encode() + b"\n"
        try:
            os.write(replies, reply)
        except BrokenPipeError:
            break
    if child:
        child.kill()


if __name__ == "__main__":
    main()
