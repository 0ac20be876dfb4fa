"""The program's side: runs in the process that is given up to it, and answers the judge's requests.

It holds the program and the arguments of the calls made so far, never a test or an expected value. A program
that takes this process over can answer what it likes; an answer is all it can give.

Requests are objects with "op" and the fields named here; a reply has "v" (a value), "x" (what was raised:
type name and text) or "l" (call the judge's function: number and arguments, answered by "v" or "x").

    load   program            run it as a module called "program"
    find   name               -> is there such a global?
    call   f a k              call f (a global's name or an object's number); reply also "m" when it changed
                              its arguments
    value  f a                the same, and what became of the arguments is not asked for
    get    o n                attribute n of an object        set  o n v     give it a value
    list   o                  its items, as a list             size o         its length
    true   o                  is it true?
"""

import atexit
import builtins
import contextlib
import io
import os
import socket
import sys
import threading
import types
from typing import Any, Literal, NoReturn

from eval.sandbox import wire

MAX_ITEMS = 1 << 20
"""Items taken from an iterator before it counts as endless."""
MAX_REASON = 300


class Session:
    """The module that the program became, and the objects that the judge knows by number."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.module = types.ModuleType("program")
        self.objects: list[Any] = []

    def serve(self) -> None:
        """Answer until the judge hangs up."""
        while True:
            request = wire.parse(wire.receive(self.channel))
            try:
                reply = self.answer(request)
            except (wire.Closed, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - SystemExit too: all of it is the program's
                reply = self.pack({"x": describe(error)})
            try:
                wire.send(self.channel, reply)
            except wire.WireError as error:
                wire.send(self.channel, self.pack({"x": describe(error)}))

    def answer(self, request: dict[str, Any]) -> bytes:
        match request["op"]:
            case "load":
                sys.modules["program"] = self.module
                exec(compile(request["program"], "<program>", "exec"), self.module.__dict__)
                return b'{"v":null}'
            case "find":
                return self.pack({"v": request["name"] in self.module.__dict__})
            case "call":
                return self.call(request)
            case "value":
                function = self.find(request["f"])
                return self.pack({"v": self.encode(function(*map(self.decode, request["a"])))})
            case "get":
                return self.pack({"v": self.encode(getattr(self.find(request["o"]), request["n"]))})
            case "set":
                setattr(self.find(request["o"]), request["n"], self.decode(request["v"]))
                return b'{"v":null}'
            case "list":
                return self.pack({"v": self.encode(take(self.find(request["o"])))})
            case "true":
                return self.pack({"v": bool(self.find(request["o"]))})
            case "size":
                return self.pack({"v": len(self.find(request["o"]))})
        raise wire.WireError("malformed request")

    def call(self, request: dict[str, Any]) -> bytes:
        function = self.find(request["f"])
        arguments = [self.decode(form) for form in request["a"]]
        named = {name: self.decode(form) for name, form in request["k"].items()}
        reply = {"v": self.encode(function(*arguments, **named))}
        if any(type(form) in (list, dict) for form in request["a"]):
            # A changed argument is part of the answer: tests of functions that work in place look at it.
            after = [self.encode(value) for value in arguments]
            if after != request["a"]:
                reply["m"] = after
        return self.pack(reply)

    def pack(self, reply: dict[str, Any]) -> bytes:
        try:
            return wire.json.dumps(reply, separators=(",", ":")).encode()
        except RecursionError:
            return b'{"x":["RecursionError","the returned value is nested too deep"]}'

    def find(self, key: str | int) -> Any:
        if not isinstance(key, str):
            return self.objects[key]
        name, _, method = key.partition(".")
        found = getattr(self.module, name)
        return getattr(found(), method) if method else found

    def encode(self, value: Any) -> Any:
        return wire.encode(value, self.refer)

    def decode(self, form: Any) -> Any:
        return wire.decode(form, self.resolve)

    def refer(self, value: Any) -> dict[str, Any]:
        """Keep an object here and give the judge its number and the name of its type."""
        numbers = [number for number, known in enumerate(self.objects) if known is value]
        if not numbers:
            numbers.append(len(self.objects))
            self.objects.append(value)
        return {"r": [numbers[0], type(value).__name__[:80]]}

    def resolve(self, tag: str, body: Any) -> Any:
        match tag:
            case "r":
                return self.find(body[0])
            case "l":
                return lambda *arguments: self.call_back(body, arguments)
        raise wire.WireError("malformed value")

    def call_back(self, number: int, arguments: tuple[Any, ...]) -> Any:
        """Have the judge call a function of the test."""
        wire.send(self.channel, self.pack({"l": [number, [self.encode(value) for value in arguments]]}))
        reply = wire.parse(wire.receive(self.channel))
        if "x" in reply:
            raise RuntimeError(reply["x"][1])
        return self.decode(reply["v"])


def describe(error: BaseException) -> tuple[str, str]:
    """Return type and text of an exception, with the program's line; never raises."""
    kind = type(error).__name__
    try:
        text = str(error)[:MAX_REASON]
    except BaseException:  # noqa: BLE001 - an exception class of the program's making
        text = ""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return kind, f"{text} (line {line})" if line else text


def take(values: Any) -> list[Any]:
    """Return the items of an iterable. Raises OverflowError beyond MAX_ITEMS."""
    items: list[Any] = []
    for item in values:
        items.append(item)
        if len(items) > MAX_ITEMS:
            raise OverflowError(f"more than {MAX_ITEMS} items")
    return items


def run_session(channel: socket.socket) -> NoReturn:
    """Serve the judge, then end without running the program's exit handlers."""
    _define_exit()
    with contextlib.suppress(wire.Closed):
        Session(channel).serve()
    os._exit(0)


def run_script(channel: socket.socket) -> NoReturn:
    """Run the program that the judge sends as `python program.py`, on file descriptors 0 and 1.

    Ends with its exit code, 1 after an exception, whose type and text go to the judge.
    """
    request = wire.parse(wire.receive(channel))
    # The streams of the interpreter that was forked are not the program's.
    sys.stdin = sys.__stdin__ = _text_file(0, "r", "<stdin>")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _text_file(1, "w", "<stdout>")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text_file(2, "w", "<stderr>")  # type: ignore[misc]
    _open_by_name()
    module = types.ModuleType("__main__")
    module.__file__ = os.path.abspath("program.py")
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    _define_exit()
    code = 0
    try:
        exec(compile(request["program"], "<program>", "exec"), module.__dict__)
    except SystemExit as error:
        code = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - whatever it raised is the program's
        code = 1
        with contextlib.suppress(wire.Closed, wire.WireError):
            wire.send(channel, wire.json.dumps({"x": describe(error)}).encode())
    _end_script(module)
    os._exit(code & 255)


def _end_script(module: types.ModuleType) -> None:
    """Do what the interpreter does at a script's end, in its order."""
    for end in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            end()
    _flush()
    for name in vars(module).keys() - {"__builtins__"}:  # files that only the program holds are written
        vars(module)[name] = None
    _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(Exception):
            stream.flush()  # type: ignore[union-attr]  # None where the program closed it: suppressed


def _text_file(descriptor: int, mode: Literal["r", "w"], name: str) -> io.TextIOWrapper:
    stream = open(  # noqa: SIM115 - open as long as the process
        descriptor, mode, 1 << 16, encoding="utf-8", errors="surrogateescape", closefd=False
    )
    stream.buffer.raw.name = name  # type: ignore[attr-defined]  # a FileIO, whose name may be set
    return stream


def _open_by_name() -> None:
    """Let open("/dev/stdin") work without a /proc, which the name leads to."""
    descriptors = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
    plain_open = builtins.open

    def open_file(file: Any, *arguments: Any, **named: Any) -> Any:
        name = os.fspath(file) if isinstance(file, str | os.PathLike) else None
        file = os.dup(descriptors[name]) if name in descriptors else file
        return plain_open(file, *arguments, **named)

    builtins.open = io.open = open_file  # type: ignore[assignment]


def _define_exit() -> None:
    """Contest programs end with exit() or quit(), which the module site defines; it is not run here."""

    def leave(code: Any = None) -> NoReturn:
        raise SystemExit(code)

    builtins.exit = builtins.quit = leave  # type: ignore[assignment]
