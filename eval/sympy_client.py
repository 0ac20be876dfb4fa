"""The client of the process in which sympy runs, and what must never be handed to it.

    WORKER.compare(r"\\int_0^1 x dx", "1/2", seconds=2.0)     # ("correct", "sympy: identical")

One process for all threads, started at the first use, started again when it dies.
"""

import atexit
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

Status = Literal["correct", "wrong", "unjudged"]
Outcome = tuple[Status, str]

COMMAND = [sys.executable, "-P", "-m", "eval.grade_worker"]
"""-P: a folder called eval in the working folder must not shadow this package."""

START_SECONDS = 60.0
"""How long the worker process may take to import sympy, or owe a reply, before another is started. No answer
waits for it longer than its own limit."""

GRACE_SECONDS = 0.25
"""How long past an answer's limit the worker may take to report that its child was stopped."""

LONGEST_FOR_SYMPY = 2000
DEEPEST_NESTING = 50
LARGEST_EXPONENT = 999
LARGEST_FACTORIAL = 999


def sympy_hazard(text: str) -> str:
    """Return why a text must not be handed to sympy, or "": size, nesting, towers and huge exponents."""
    if len(text) > LONGEST_FOR_SYMPY:
        return f"longer than {LONGEST_FOR_SYMPY} characters"
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > DEEPEST_NESTING:
        return f"nested more than {DEEPEST_NESTING} deep"
    powers = text.replace("**", "^").replace(" ", "")
    if re.search(r"\^(?:\w+|\{[^{}]*|\([^()]*)\)?\^", powers) or re.search(r"\^\{[^{}]*\}\^", powers):
        return "a tower of powers"
    if any(int(n[:9]) > LARGEST_EXPONENT for n in re.findall(r"\^[-+{(]*(\d+)", powers)):
        return f"an exponent above {LARGEST_EXPONENT}"
    if re.search(r"!\)*!", powers) or any(
        int(n[:9]) > LARGEST_FACTORIAL for n in re.findall(r"(\d+)[)}]*!", powers)
    ):
        return f"a factorial above {LARGEST_FACTORIAL}!"
    if any(len(n) > 300 for n in re.findall(r"\d+", powers)):
        return "a number of more than 300 digits"
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in text):
        return "control characters"
    return ""


class Worker:
    """The client of one `eval.grade_worker` process, started at the first use. Safe in any thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # process id: after a fork the pipes belong to the parent
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._reply = b""  # what has arrived of the reply that is due
        self._due: Literal["", "greeting", "verdict"] = ""
        self._due_since = 0.0

    def compare(self, gold: str, prediction: str, seconds: float) -> Outcome:
        """Return what the worker says within `seconds`; one that died is started again, once.

        One that is late is neither waited for nor stopped: it goes on starting, or stops what it is at, while
        the caller has `unjudged`, and the next comparison finds it warm.
        """
        if seconds <= 0:
            return "unjudged", "the time limit has passed"
        with self._lock:
            deadline = time.monotonic() + seconds
            for _ in range(2):
                self._start()
                if self._due:
                    late = "starting" if self._due == "greeting" else "busy with an earlier answer"
                    before = self._receive(deadline)
                    if before is None:
                        return "unjudged", f"the worker is {late}"
                    if not before:
                        self._stop()
                        continue
                left = max(deadline - time.monotonic(), 0.001)
                request = json.dumps({"gold": gold, "prediction": prediction, "seconds": left})
                reply = self._receive(deadline + GRACE_SECONDS) if self._send(request) else b""
                if reply is None:
                    return "unjudged", "no result within the time limit"
                if reply:
                    result = json.loads(reply)
                    return result["status"], result["reason"]
                self._stop()
        return "unjudged", "the worker process died twice"

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None when none runs for this process."""
        return self._process.pid if self._process and self._owner == os.getpid() else None

    def close(self) -> None:
        """End the worker process; the next comparison starts another."""
        with self._lock:
            if self._process and self._process.stdin and self._owner == os.getpid():
                self._process.stdin.close()  # it ends by itself, and so accounts for its child's CPU time
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE_SECONDS * 2)
            self._stop()

    def reset_after_fork(self) -> None:
        self._process, self._lock = None, threading.Lock()
        self._forget()

    def _start(self) -> None:
        """Start a process where none runs, or where one has owed a reply for longer than a start may take."""
        if self._due and time.monotonic() - self._due_since > START_SECONDS:
            self._stop()
        if self._process and self._owner == os.getpid():
            return
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # sympy walks through sets of symbols: one seed, one order, one verdict.
            env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0"},
        )
        self._due, self._due_since = "greeting", time.monotonic()

    def _send(self, line: str) -> bool:
        """Whether the request went out; nothing else is on its way, so that the pipe has room for it."""
        assert self._process and self._process.stdin and not self._due
        self._due, self._due_since = "verdict", time.monotonic()
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except OSError:
            return False
        return True

    def _receive(self, deadline: float) -> bytes | None:
        """Return the reply that is due, b"" when the worker died, None when it is late: then it stays due."""
        assert self._process and self._process.stdout and self._due
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not self._reply.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            part = os.read(descriptor, 65536)
            if not part:
                return b""
            self._reply += part
        reply = self._reply
        self._forget()
        return reply

    def _stop(self) -> None:
        process, self._process = self._process, None
        self._forget()
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close() if stream else None


WORKER = Worker()
atexit.register(WORKER.close)
os.register_at_fork(after_in_child=WORKER.reset_after_fork)
