"""The process that holds the tests and judges: warm, trusted, and never in reach of a program.

    python -c "...; from eval.sandbox.judge import main; main()" CLIENT ZYGOTE [FOLDER ...]

Two socket numbers: the client's requests come in on one, programs are started through the other. The folders
hold packages that tests import. A request is
a marshalled tuple (kind, fields); a reply is JSON {"status", "reason"}. One request at a time. It judges in
this very process: tests are trusted, and what comes back from programs is plain values.
"""

import ast
import contextlib
import importlib
import json
import marshal
import math
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from eval.sandbox import names, wire
from eval.sandbox.compare import is_root, same_as_reference, same_items, same_truth, same_value
from eval.sandbox.remote import Ended, NotPlain, OutOfTime, Program, Raised, Remote
from eval.sandbox.scripts import judge_stdio

MEMORY_BYTES = 4 << 30
END_SECONDS = 20.0
"""How long killing everything that a program started may take."""
Outcome = tuple[str, str]
"""(status, reason); besides the statuses of a verdict, "fault": nothing is said about the program."""


def main() -> None:
    """Serve verdicts until the client is gone. Arguments: both sockets, then folders for sys.path."""
    client, zygote = (socket.socket(fileno=int(word)) for word in sys.argv[1:3])
    sys.path += sys.argv[3:]  # last: tests may import numpy, the standard library is not to be shadowed
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for name in names.TRUSTED_MODULES:
        importlib.import_module(name)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - tests may print
    wire.send(client, wire.receive(zygote))
    kinds: dict[str, Callable[..., Outcome]] = {
        "check": partial(judge_test, has_check=True),
        "asserts": partial(judge_test, has_check=False),
        "calls": judge_calls,
        "values": compute_values,
        "stdio": judge_stdio,
    }
    with contextlib.suppress(wire.Closed):
        while True:
            kind, fields = marshal.loads(wire.receive(client, longest=wire.MAX_TRUSTED_FRAME))
            ground = Ground(zygote, fields.pop("timeout_s"), fields.pop("memory_mb"))
            ground.is_counting = fields.pop("count", False)
            try:
                status, reason = kinds[kind](ground, **fields)
            except (Exception, Ended, OutOfTime) as error:  # noqa: BLE001 - one question's fault is not the next one's
                status, reason = "fault", f"the judge failed: {_said(error)}"
            ends = ground.end()
            status, reason = _with_end(status, reason, ends)
            answer = {"status": status, "reason": reason, "num_passed": ground.num_passed}
            reply = json.dumps(answer).encode()
            wire.send(client, reply, longest=wire.MAX_TRUSTED_FRAME)


class Ground:
    """Where the programs of one request run."""

    def __init__(self, zygote: socket.socket, timeout_s: float, memory_mb: int) -> None:
        self.zygote = zygote
        self.timeout_s = timeout_s
        self.memory_mb = memory_mb
        self.deadline = time.monotonic() + timeout_s
        self.channels: list[socket.socket] = []
        self.is_counting = False
        """Go on behind a test that does not hold, to count those that do."""
        self.num_passed = 0

    def start(self, mode: str, standard: tuple[int, ...] = ()) -> socket.socket:
        """Start a process for a program and return the channel to it; `standard`: its input and output."""
        mine, theirs = socket.socketpair()
        self.channels.append(mine)
        cpu_s = math.ceil(self.timeout_s) + 1
        request = {"op": "start", "mode": mode, "memory_mb": self.memory_mb, "cpu_s": cpu_s}
        payload = json.dumps(request).encode()
        frame = len(payload).to_bytes(4, "big") + payload
        with theirs:
            socket.send_fds(self.zygote, [frame], [theirs.fileno(), *standard])
        return mine

    def program(self) -> Program:
        return Program(self.start("session"), self.deadline)

    def end(self) -> list[int]:
        """Have everything killed that was started; return the programs' exit codes in order of starting."""
        for channel in self.channels:
            channel.close()
        if not self.channels:
            return []
        self.channels.clear()
        wire.send(self.zygote, b'{"op":"end"}')
        return json.loads(wire.receive(self.zygote, time.monotonic() + END_SECONDS))["ended"]


def judge_test(
    ground: Ground, *, program: str, test: str, entry_point: str, has_check: bool, prompt: str = ""
) -> Outcome:
    """`test` defines check(candidate), which asserts; without `has_check` its own statements assert.

    `prompt` is the problem's text, to find the test's helpers in.
    """
    try:
        code = compile(test, "<test>", "exec")
        missing = set() if names.uses_only_its_own(code) else names.free_names(test) - {entry_point}
    except (SyntaxError, ValueError) as error:
        return "fault", f"the test does not compile: {error}"
    running = ground.program()
    outcome = _load(running, program, entry_point)
    if outcome:
        return outcome
    candidate = running.function(entry_point)
    namespace: dict[str, Any] = {"__name__": "test", entry_point: candidate}
    if missing:
        borrow = partial(_borrow, ground, running, prompt or program, entry_point, missing)
        outcome = _settle(running, lambda: namespace.update(borrow()))
        if outcome:
            return outcome
    if ground.is_counting and not has_check:
        return _count_asserts(ground, running, test, namespace)
    outcome = _run_test(ground, running, code, namespace)
    if has_check and not outcome:
        if not callable(namespace.get("check")):
            return "fault", "the test defines no function check(candidate)"
        outcome = _run_test(ground, running, code, namespace, lambda: namespace["check"](candidate))
    return outcome or _stopped(running) or ("passed", "")


def _count_asserts(ground: Ground, running: Program, test: str, namespace: dict[str, Any]) -> Outcome:
    """Run the test's statements one by one, on behind an assert that fails; the first outcome that is none
    of passing is the outcome, as without counting."""
    failed: Outcome | None = None
    for statement in ast.parse(test).body:
        code = compile(ast.Module([statement], []), "<test>", "exec")
        outcome = _run_test(ground, running, code, namespace)
        failed = failed or outcome
        if outcome and (running.over or not isinstance(statement, ast.Assert)):
            break
        ground.num_passed += isinstance(statement, ast.Assert) and not outcome
    return failed or _stopped(running) or ("passed", "")


def _run_test(
    ground: Ground,
    running: Program,
    code: Any,
    namespace: dict[str, Any],
    run: Callable[[], Any] | None = None,
) -> Outcome | None:
    """Run the code of a test, or `run`, which it defined; the outcome where that is not to pass."""
    try:
        if run:
            run()
        else:
            exec(code, namespace)
    except AssertionError as error:
        return _stopped(running) or ("failed", _text("assertion", error, code))
    except OutOfTime:
        return "timeout", _time_up(ground)
    except Ended as error:
        return "error", str(error)
    except (NotPlain, Raised) as error:
        return _stopped(running) or ("failed" if type(error) is NotPlain else "error", str(error))
    except Exception as error:  # noqa: BLE001 - raised by the program, or by the test over a strange value
        stopped = _stopped(running)
        if stopped:
            return stopped
        if running.raised and _said(error) == running.raised[1]:
            return "error", ": ".join(running.raised)
        return "failed", _text(type(error).__name__, error, code)
    return None


def _borrow(
    ground: Ground, running: Program, text: str, entry_point: str, missing: set[str]
) -> dict[str, Any]:
    """Find what the test uses and does not define.

    Functions that stand before the entry point in `text` are run from there, in a process without the rest:
    what comes later cannot redefine them. Other globals are the program's own, modules of the standard
    library ours.
    """
    found: dict[str, Any] = {}
    before, functions = names.part_before(text, entry_point)
    helpers = missing & functions
    if helpers:
        helper = ground.program()
        helper.load(before)
        found |= {name: helper.function(name) for name in helpers}
    for name in missing - helpers:
        if name in names.TRUSTED_MODULES:
            found[name] = sys.modules[name]
        elif running.has(name):
            found[name] = running.function(name)
    return found


def judge_calls(
    ground: Ground,
    *,
    program: str,
    entry_point: str,
    calls: list[Any],
    expected: list[Any],
    tolerance: float,
    sequences: Any,
    compare: Any,
    call_timeout_s: float | None,
) -> Outcome:
    """Arguments and, of each call, the values that are right."""
    running = ground.program()
    outcome = _load(running, program, entry_point)
    if outcome:
        return outcome
    failed: Outcome | None = None
    for number, (arguments, right) in enumerate(zip(calls, expected, strict=True), 1):
        if call_timeout_s is not None:
            running.deadline = min(ground.deadline, time.monotonic() + call_timeout_s)
        limit_s = call_timeout_s or ground.timeout_s
        got = _call(running, entry_point, arguments, by_truth=compare == "truth", limit_s=limit_s)
        if isinstance(got, Failure):
            failed = failed or (got.status, f"call {number}: {got.reason}")
            if not ground.is_counting or running.over:
                return failed
            continue

        def is_right(wanted: Any, arguments: Any = arguments, got: Any = got) -> bool:
            match compare:
                case "reference":
                    return same_as_reference(got, wanted, atol=tolerance)
                case "set":
                    return same_items(got, wanted)
                case "truth":
                    return same_truth(got, wanted)
                case "root":
                    return is_root(arguments[0], got, tolerance)
                case "any":
                    return True
            return same_value(got, wanted, tolerance=tolerance, sequences=sequences)

        # A value may raise when it is compared: a signalling NaN does, and then it is not the right one.
        with contextlib.suppress(Exception):
            if any(map(is_right, right)):
                ground.num_passed += 1
                continue
        failed = failed or ("failed", f"call {number}: got {_short(got)}, expected {_short(right[0])}")
        if not ground.is_counting:
            return failed
    return failed or ("passed", "")


@dataclass(frozen=True, slots=True)
class Failure:
    """A call without a value."""

    status: str
    reason: str


def _call(running: Program, entry_point: str, arguments: Any, *, by_truth: bool, limit_s: float) -> Any:
    """The value of a call or a Failure; `by_truth`: True for an object, say a regular expression's match."""
    try:
        value = running.value(entry_point, arguments)
        if type(value) is Remote:
            return True if by_truth else Failure("failed", f"{value!r} is no plain value")
        return value
    except OutOfTime:
        return Failure("timeout", f"no result within {limit_s:g} s")
    except Ended as error:
        return Failure("error", str(error))
    except Exception as error:  # noqa: BLE001 - whatever the program raised
        name, text = running.raised or (type(error).__name__, str(error))
        return Failure("error", f"{name}: {text}")


def compute_values(ground: Ground, *, program: str, entry_point: str, calls: list[Any]) -> tuple[str, Any]:
    """The values of a trusted reference: ("values", [wire form, seconds] of each) or what went wrong."""
    running = ground.program()
    outcome = _load(running, program, entry_point)
    if outcome:
        return outcome
    values = []
    for number, arguments in enumerate(calls, 1):
        started = time.monotonic()
        got = _call(running, entry_point, arguments, by_truth=True, limit_s=ground.timeout_s)
        if isinstance(got, Failure):
            return got.status, f"call {number}: {got.reason}"
        try:
            values.append([wire.encode(got), time.monotonic() - started])
        except wire.WireError as error:
            return "error", f"call {number}: {error}"
    return "values", values


def _load(running: Program, program: str, entry_point: str) -> Outcome | None:
    """Run the program's text; the outcome when that settles it."""
    name = entry_point.partition(".")[0]
    is_there = False

    def load() -> None:
        nonlocal is_there
        running.load(program)
        is_there = running.has(name)

    outcome = _settle(running, load)
    return outcome or (None if is_there else ("error", f"the program defines no '{entry_point}'"))


def _settle(running: Program, prepare: Callable[[], None]) -> Outcome | None:
    """Prepare the first call; the outcome when the program does not let that happen."""
    try:
        prepare()
    except OutOfTime:
        return "timeout", "the program's own statements took all the time"
    except Ended as error:
        return "error", str(error)
    except Exception as error:  # noqa: BLE001 - whatever the program raised
        kind, text = running.raised or (type(error).__name__, str(error))
        return "error", f"{kind}: {text}"
    return None


def _stopped(running: Program) -> Outcome | None:
    """What ended the program, also when the test swallowed it."""
    if type(running.over) is OutOfTime:
        return "timeout", "the time was up"
    return ("error", str(running.over)) if running.over else None


def _with_end(status: str, reason: str, ends: list[int]) -> Outcome:
    """Say how a program died, where that is why it did not answer."""
    if status != "error" or "ended before it answered" not in reason or not ends:
        return status, reason
    code = ends[0]
    if code == -9:
        return status, "the program was killed: out of memory, or by itself"
    if code == -24:  # SIGXCPU
        return "timeout", "the program used up its processor time"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return status, f"{reason} ({how})"


def _time_up(ground: Ground) -> str:
    return f"no result within {ground.timeout_s:g} s"


def _text(kind: str, error: BaseException, code: Any) -> str:
    """The test's line, and what it said."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == code.co_filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    said = _short(_said(error))
    return f"{kind} in line {line} of the test" + (f": {said}" if said else "")


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - its argument is the program's: an object, an integer of many digits
        return type(error).__name__


def _short(value: Any) -> str:
    try:
        text = repr(value) if not isinstance(value, str) else value
    except Exception:  # noqa: BLE001 - an integer of thousands of digits, say
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
