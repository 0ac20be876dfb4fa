"""Programs that read standard input and write standard output, judged by what they wrote."""

import contextlib
import json
import os
import select
import time
from typing import TYPE_CHECKING

from eval.sandbox import wire
from eval.sandbox.compare import same_output

if TYPE_CHECKING:
    from eval.sandbox.judge import Ground

MAX_OUTPUT = 16 << 20
"""Bytes of output that are read from one run."""


class TooLong(Exception):
    """The output went over MAX_OUTPUT."""


def judge_stdio(
    ground: "Ground", *, program: str, cases: list[tuple[str, str]], tolerance: float
) -> tuple[str, str]:
    """Run the program in a new process for each case; return (status, reason) of the first not passed.

    Where the request counts, the other cases run too, but none behind one that used up its time.
    """
    failed: tuple[str, str] | None = None
    for number, (text, expected) in enumerate(cases, 1):
        status, reason = _judge_case(ground, program, text, expected, tolerance)
        if status == "passed":
            ground.num_passed += 1
            continue
        failed = failed or (status, f"case {number}: {reason}" if len(cases) > 1 else reason)
        if not ground.is_counting or status == "timeout":
            break
    return failed or ("passed", "")


def _judge_case(
    ground: "Ground", program: str, text: str, expected: str, tolerance: float
) -> tuple[str, str]:
    deadline = time.monotonic() + ground.timeout_s
    try:
        output, raised, code = _run(ground, program, text, deadline)
    except wire.TimeUp:
        return "timeout", f"no result within {ground.timeout_s:g} s"
    except TooLong:
        return "error", f"more than {MAX_OUTPUT >> 20} MiB of output"
    if code == -24:  # SIGXCPU
        return "timeout", "the program used up its processor time"
    if code != 0:
        return "error", raised or (f"signal {-code}" if code < 0 else f"exit code {code}")
    if not same_output(output.decode("utf-8", "replace"), expected, tolerance=tolerance):
        return "failed", "wrong output"
    return "passed", ""


def _run(ground: "Ground", program: str, text: str, deadline: float) -> tuple[bytes, str, int]:
    """Return output, what was raised ("" for nothing) and exit code. Raises TimeUp, TooLong."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    try:
        channel = ground.start("script", (in_read, out_write))
        os.close(in_read)
        os.close(out_write)
        in_read = out_write = -1
        raised = ""
        output = b""
        with contextlib.suppress(wire.Closed, wire.WireError):
            wire.send(channel, json.dumps({"program": program}).encode(), deadline)
        feeder, in_write = in_write, -1
        output = _exchange(feeder, out_read, text.encode("utf-8", "surrogateescape"), deadline)
        with contextlib.suppress(wire.Closed, wire.WireError):
            # What it raised comes before the end of the channel, which is the end of the process.
            reply = wire.parse(wire.receive(channel, deadline))
            said = reply.get("x") if type(reply) is dict else None
            if type(said) is list and all(type(part) is str for part in said):
                raised = ": ".join(said)[:400]
            wire.receive(channel, deadline)
        return output, raised, ground.end()[0]
    finally:
        ground.end()  # after too much output too: the next case counts its own processes
        for end in (in_read, in_write, out_read, out_write):
            if end >= 0:
                os.close(end)


def _exchange(feeder: int, reader: int, text: bytes, deadline: float) -> bytes:
    """Feed `text` to one pipe while reading the other to its end; closes `feeder`."""
    parts: list[bytes] = []
    size = 0
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    os.set_blocking(feeder, False)
    view = memoryview(text)
    is_feeding = True
    poll.register(feeder, select.POLLOUT)
    try:
        while True:
            if is_feeding and not view:
                poll.unregister(feeder)
                os.close(feeder)
                is_feeding = False
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready and time.monotonic() >= deadline:
                raise wire.TimeUp
            for descriptor, _ in ready:
                if descriptor == feeder and is_feeding:
                    try:
                        view = view[os.write(feeder, view[:65536]) :]
                    except BlockingIOError:
                        pass
                    except BrokenPipeError:  # it reads no more: its right
                        view = view[:0]
                elif descriptor == reader:
                    part = os.read(reader, 1 << 16)
                    if not part:
                        return b"".join(parts)
                    parts.append(part)
                    size += len(part)
                    if size > MAX_OUTPUT:
                        raise TooLong
    finally:
        if is_feeding:
            os.close(feeder)
