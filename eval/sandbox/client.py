"""The four questions that can be asked about a program, and the pair of processes that answer them.

    run_check("def add(a, b):\\n    return a + b", "def check(f):\\n    assert f(1, 2) == 3", "add").status
    run_calls(program, "add", [[1, 2]], [3])
    run_stdio("print(int(input()) * 2)", [("4", "8\\n")])

The first question starts a judge and a zygote (see judge.py, zygote.py), about 0.3 s; they stay for the next
and end with this process. A `Sandbox` of one's own gives a second pair, e.g. for a thread each.
"""

import atexit
import contextlib
import json
import marshal
import os
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from eval.sandbox import wire
from eval.sandbox.compare import OUTPUT_TOLERANCE, Compare, Sequences
from eval.sandbox.verdict import CodeVerdict, Isolation, Level

TIMEOUT_S = 10.0
MEMORY_MB = 1024
START_SECONDS = 60.0
GRACE_SECONDS = 5.0
"""How much longer than its time a question may take before the pair is taken to hang and is replaced."""


class Sandbox:
    """One pair of processes; a context, or to be closed. Questions from several threads wait in turn."""

    def __init__(self, level: Level = "namespaces", *, at_least: Level = "unsandboxed") -> None:
        self.level = level
        """The strongest level to try; weaker ones follow where the machine refuses it."""
        self.at_least = at_least
        """The weakest level to run anything at; below it every question raises UserError."""
        self._lock = threading.Lock()
        self._pair: list[subprocess.Popen[bytes]] = []
        self._channel: socket.socket | None = None
        self._isolation: Isolation | None = None
        self._owner = os.getpid()

    def isolation(self) -> Isolation:
        """Return what keeps programs in, after finding out."""
        with self._lock:
            self._start()
            assert self._isolation is not None
            return self._isolation

    def run_check(
        self,
        program: str,
        test: str,
        entry_point: str,
        *,
        prompt: str = "",
        timeout_s: float = TIMEOUT_S,
        memory_mb: int = MEMORY_MB,
    ) -> CodeVerdict:
        """Judge a program by a test in HumanEval's form, which defines check(candidate) and asserts.

        The test runs beside the program, not in it: candidate(...) is a call to the other process. Names that
        the test uses and does not define are the functions before the entry point in `prompt`, the problem's
        own text, else the common modules of the standard library, else the program's globals. Without a
        prompt, those before the entry point in the program's text take its place: give it wherever the text
        before the entry point may be the model's.
        """
        fields = {"program": program, "test": test, "entry_point": entry_point, "prompt": prompt}
        return self._ask("check", fields, timeout_s, memory_mb, timeout_s)

    def run_asserts(
        self,
        program: str,
        test: str,
        entry_point: str,
        *,
        timeout_s: float = TIMEOUT_S,
        memory_mb: int = MEMORY_MB,
        count: bool = False,
    ) -> CodeVerdict:
        """Judge a program by a test in MBPP's form: statements that call `entry_point` by name and assert.

        `count`: go on behind an assert that fails, for CodeVerdict.num_passed.
        """
        fields = {"program": program, "test": test, "entry_point": entry_point, "count": count}
        return self._ask("asserts", fields, timeout_s, memory_mb, timeout_s)

    def run_calls(
        self,
        program: str,
        entry_point: str,
        calls: Sequence[Sequence[Any]],
        expected: Sequence[Any],
        *,
        timeout_s: float = TIMEOUT_S,
        memory_mb: int = MEMORY_MB,
        tolerance: float = 0.0,
        sequences: Sequences = "strict",
        compare: Compare = "value",
        others: Sequence[Any] | None = None,
        call_timeout_s: float | None = None,
        count: bool = False,
    ) -> CodeVerdict:
        """Judge a program by its function's values; `calls` holds the arguments of each call.

        `entry_point` may be "Class.method": it is called on a new instance. `timeout_s` is for all calls
        together, `call_timeout_s` for each. `others` holds a second right value of each call. See compare.py
        for `tolerance`, `sequences` and `compare`. `count` as in run_asserts.
        """
        if len(calls) != len(expected) or (others is not None and len(calls) != len(others)):
            raise UserError(
                f"run_calls: {len(calls)} calls but {len(expected)} expected values; give one for each"
            )
        right = zip(expected, others, strict=True) if others is not None else zip(expected)  # noqa: B905
        fields = {
            "program": program,
            "entry_point": entry_point,
            "calls": [tuple(arguments) for arguments in calls],
            "expected": [list(values) for values in right],
            "call_timeout_s": call_timeout_s,
            "tolerance": float(tolerance),
            "sequences": sequences,
            "compare": compare,
            "count": count,
        }
        return self._ask("calls", fields, timeout_s, memory_mb, timeout_s)

    def compute_values(
        self,
        program: str,
        entry_point: str,
        calls: Sequence[Sequence[Any]],
        *,
        timeout_s: float = 60.0,
        memory_mb: int = 4 * MEMORY_MB,
    ) -> list[tuple[Any, float]]:
        """Return (value, seconds) of each call of a reference program's function.

        Raises UserError when a call has no value.
        """
        fields = {"program": program, "entry_point": entry_point, "calls": [tuple(c) for c in calls]}
        payload = self._pack("values", fields, timeout_s, memory_mb)
        with self._lock:
            status, values, _ = self._answer(payload, timeout_s + GRACE_SECONDS)
        if status != "values":
            raise UserError(f"the reference of '{entry_point}' gives no values ({values}); check its row")
        return [(wire.decode(form), seconds) for form, seconds in values]

    def run_stdio(
        self,
        program: str,
        cases: Sequence[tuple[str, str]],
        *,
        timeout_s: float = TIMEOUT_S,
        memory_mb: int = MEMORY_MB,
        tolerance: float = OUTPUT_TOLERANCE,
        count: bool = False,
    ) -> CodeVerdict:
        """Judge a script by its output for each input; `cases` holds (input, expected output).

        Every case is a run of its own of at most `timeout_s`. See compare.same_output for what is equal.
        `count` as in run_asserts, but nothing is run behind a case that took all its time.
        """
        fields = {
            "program": program,
            "cases": [(str(text), str(wanted)) for text, wanted in cases],
            "tolerance": float(tolerance),
            "count": count,
        }
        return self._ask("stdio", fields, timeout_s, memory_mb, timeout_s * max(1, len(cases)))

    def close(self) -> None:
        """End the pair and everything it started."""
        with self._lock:
            self._stop()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, kind: str, fields: dict[str, Any], timeout_s: float, memory_mb: int, longest_s: float
    ) -> CodeVerdict:
        payload = self._pack(kind, fields, timeout_s, memory_mb)
        with self._lock:
            started = time.monotonic()
            status, reason, num_passed = self._answer(payload, longest_s + GRACE_SECONDS)
            isolation = str(self._isolation) if self._isolation else "unsandboxed"
            is_fault = status == "fault"
            if is_fault:
                status, reason = "error", f"sandbox: {reason}"
            seconds = time.monotonic() - started
            return CodeVerdict(status, reason, seconds, isolation, num_passed, is_fault)

    def _pack(self, kind: str, fields: dict[str, Any], timeout_s: float, memory_mb: int) -> bytes:
        if timeout_s <= 0 or memory_mb <= 0:
            raise UserError(
                f"timeout_s {timeout_s} and memory_mb {memory_mb} must be above 0; the usual are "
                f"{TIMEOUT_S:g} and {MEMORY_MB}"
            )
        try:
            return marshal.dumps((kind, fields | {"timeout_s": timeout_s, "memory_mb": int(memory_mb)}))
        except ValueError as error:
            raise UserError(
                f"arguments and expected values must be plain ({error}): numbers, text, bytes, lists, "
                "tuples, dicts, sets"
            ) from error

    def _answer(self, payload: bytes, seconds: float) -> tuple[Any, Any, int]:
        """Return (status, reason, tests that held). A pair that hangs or died is replaced before the next."""
        self._start()
        assert self._channel is not None
        try:
            deadline = time.monotonic() + seconds
            wire.send(self._channel, payload, deadline, longest=wire.MAX_TRUSTED_FRAME)
            reply = wire.parse(wire.receive(self._channel, deadline, longest=wire.MAX_TRUSTED_FRAME))
            return reply["status"], reply["reason"], reply["num_passed"]
        except wire.TimeUp:
            self._stop()
            return "timeout", "the test took all the time after the program's answer", 0
        except wire.Closed:
            self._stop()
            return "fault", "the judge died", 0
        except wire.WireError as error:
            self._stop()
            return "fault", str(error), 0

    def _start(self) -> None:
        if self._pair and self._owner == os.getpid() and all(p.poll() is None for p in self._pair):
            return
        self._stop()
        self._owner = os.getpid()
        level, missing = self.level, []
        while True:
            report = self._start_pair(level)
            missing += report["missing"]
            if "restart" not in report:
                break
            self._stop()
            level = report["restart"]
        found = Isolation(report["level"], tuple(report["layers"]), tuple(dict.fromkeys(missing)))
        # Whoever asked for the isolation before must not get less of it after a restart.
        least = self._isolation.level if self._isolation else self.at_least
        if LEVELS.index(found.level) > LEVELS.index(least):
            self._stop()
            raise UserError(
                f"the code sandbox was to start at level {least} as before and only {found.level} is "
                f"left ({'; '.join(found.missing)}); mend that, or start again to accept it"
            )
        self._isolation = found

    def _start_pair(self, level: Level) -> dict[str, Any]:
        """Start both processes; return the zygote's report."""
        folders = {sysconfig.get_paths()[name] for name in ("purelib", "platlib")}
        config: dict[str, Any] = {
            "level": level,
            "folders": sorted({sys.base_prefix, sys.base_exec_prefix, *folders}),
            "path": sorted(folders),
        }
        mine, for_judge = socket.socketpair()
        judge_end, zygote_end = socket.socketpair()
        with for_judge, judge_end, zygote_end:
            zygote = _spawn("zygote", [zygote_end], [json.dumps(config)])
            judge = _spawn("judge", [for_judge, judge_end], config["path"])
        self._pair, self._channel = [judge, zygote], mine
        try:
            return wire.parse(wire.receive(mine, time.monotonic() + START_SECONDS))
        except (wire.Closed, wire.TimeUp) as error:
            self._stop()
            raise UserError(
                f"the code sandbox did not start ({type(error).__name__}); run "
                "`python -m eval.sandbox` to see why"
            ) from error

    def _stop(self) -> None:
        if self._channel:
            self._channel.close()
        if self._owner == os.getpid():
            for process in self._pair:
                if process is self._pair[0]:
                    process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)  # the zygote ends when the judge is gone, after cleaning up
                if process.poll() is None:
                    process.kill()
                    process.wait()
        self._pair, self._channel = [], None


def _spawn(module: str, channels: list[socket.socket], arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start `module` of this package with an empty environment and no file but `channels`."""
    where = str(Path(__file__).resolve().parents[2])
    code = CODE.format(where=where, module=module)
    descriptors = [channel.fileno() for channel in channels]
    is_debug = bool(os.environ.get("STEPWELL_SANDBOX_DEBUG"))
    return subprocess.Popen(
        # -S: no .pth file runs; -P, -s: nothing of the working folder or of the user's site
        [sys.executable, "-S", "-s", "-P", "-c", code, *map(str, descriptors), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if is_debug else subprocess.DEVNULL,
        pass_fds=descriptors,
        env=ENVIRONMENT | ({"STEPWELL_SANDBOX_DEBUG": "1"} if is_debug else {}),
        start_new_session=True,
    )


CODE = "import sys; sys.path.insert(0, {where!r}); from eval.sandbox.{module} import main; main()"
LEVELS: tuple[Level, ...] = ("namespaces", "landlock", "unsandboxed")
"""Strongest first."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the order of a set must not decide a verdict
    "MALLOC_ARENA_MAX": "1",  # a thread's arena would count 128 MB against the address space
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

DEFAULT = Sandbox()
"""What the functions below use."""
atexit.register(DEFAULT.close)

run_check = DEFAULT.run_check
run_asserts = DEFAULT.run_asserts
run_calls = DEFAULT.run_calls
run_stdio = DEFAULT.run_stdio
isolation = DEFAULT.isolation
