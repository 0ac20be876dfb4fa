"""The judge's side of a program: calls go out, plain values come back, objects stay where they are.

    program = Program(channel, deadline)
    program.load(text)
    candidate = program.function("add")
    candidate(1, 2)          # 3, or the exception that the program raised

A value that is no plain one comes back as a `Remote`: the test may call it, read and set its attributes, take
its items, ask whether it is true and hand it back to the program. It may not compare it: that would ask the
program whether it is right.
"""

import builtins
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from eval.sandbox import wire


class Raised(Exception):
    """The program raised something that is not in the table below."""


class Ended(BaseException):
    """The program can answer no more; not to be caught by a test's `except Exception`."""


class OutOfTime(BaseException):
    """The time for the whole check is up; not to be caught by a test's `except Exception`."""


class NotPlain(Exception):
    """The test needs a plain value and the program returned an object."""


# StopIteration is missing with reason: raised into a test's loop it would end the loop, and with it the test.
_NAMES = """
ArithmeticError AttributeError EOFError FileNotFoundError ImportError IndexError KeyError LookupError
MemoryError ModuleNotFoundError NameError NotImplementedError OSError OverflowError PermissionError
RecursionError RuntimeError TypeError UnboundLocalError UnicodeError ValueError ZeroDivisionError
""".split()  # noqa: SIM905
_RAISABLE = {name: getattr(builtins, name) for name in _NAMES}


class Program:
    """One process that runs a program, seen from the judge."""

    def __init__(self, channel: socket.socket, deadline: float) -> None:
        self.channel = channel
        self.deadline = deadline
        self.functions: list[Callable[..., Any]] = []
        self.over: BaseException | None = None
        """Why nothing more can be asked; kept, because a test's bare `except:` could swallow it."""
        self.raised: tuple[str, str] | None = None
        """Type and text of the last exception that the program raised."""

    def load(self, program: str) -> None:
        """Run the program's text. Raises what it raises."""
        self.ask({"op": "load", "program": program})

    def has(self, name: str) -> bool:
        return self.ask({"op": "find", "name": name}) is True

    def function(self, name: str) -> "Remote":
        """Return the program's global of that name, to be called."""
        return Remote(self, name, "function")

    def call(self, target: str | int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        forms = [self.encode(value) for value in arguments]
        request = {"op": "call", "f": target, "a": forms}
        return self.ask(request | {"k": {k: self.encode(v) for k, v in named.items()}}, arguments)

    def value(self, target: str, arguments: list[Any]) -> Any:
        """Return what a call gives. Whatever it does to its arguments, ours stay as they are."""
        forms = [self.encode(value) for value in arguments]
        return self.ask({"op": "value", "f": target, "a": forms})

    def ask(self, request: dict[str, Any], arguments: tuple[Any, ...] = ()) -> Any:
        """Send a request; return the reply's value. Raises what the program raised, Ended, OutOfTime."""
        if self.over:
            raise self.over
        try:
            self._send(request)
            while True:
                reply = wire.parse(wire.receive(self.channel, self.deadline))
                if type(reply) is not dict:
                    raise wire.WireError("malformed reply")
                if "l" not in reply:
                    break
                self._send(self._call_back(reply["l"]))
            if "x" in reply:
                raise self._exception(reply["x"])
            if type(reply.get("m")) is list:
                for value, form in zip(arguments, reply["m"], strict=False):
                    _change(value, self.decode(form))
            return self.decode(reply.get("v"))
        except wire.TimeUp:
            self.over = OutOfTime()
        except wire.Closed:
            self.over = Ended("the program ended before it answered")
        except wire.WireError as error:
            self.over = Ended(f"no plain answer: {error}")
        except RecursionError:
            self.over = Ended("no plain answer: nested too deep")
        raise self.over

    def _send(self, message: dict[str, Any]) -> None:
        payload = json.dumps(message, separators=(",", ":")).encode()
        wire.send(self.channel, payload, self.deadline)

    def _call_back(self, body: Any) -> dict[str, Any]:
        """Run one of the test's functions for the program."""
        if time.monotonic() > self.deadline:
            raise wire.TimeUp
        if type(body) is not list or len(body) != 2 or type(body[0]) is not int or type(body[1]) is not list:
            raise wire.WireError("malformed call")
        number, forms = body
        if not 0 <= number < len(self.functions):
            raise wire.WireError("malformed call")
        try:
            return {"v": self.encode(self.functions[number](*(self.decode(form) for form in forms)))}
        except wire.WireError:
            raise
        except Exception as error:  # noqa: BLE001 - a wrong call of the test's function is the program's mistake
            return {"x": [type(error).__name__, type(error).__name__]}

    def _exception(self, body: Any) -> Exception:
        if type(body) is not list or [type(part) for part in body] != [str, str]:
            raise wire.WireError("malformed exception")
        name, text = body[0][:80], body[1][:400]
        self.raised = name, text
        return _RAISABLE[name](text) if name in _RAISABLE else Raised(f"{name}: {text}")

    def encode(self, value: Any) -> Any:
        return wire.encode(value, self._refer)

    def _refer(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"r": [object.__getattribute__(value, "_target")]}
        if callable(value):
            self.functions.append(value)
            return {"l": len(self.functions) - 1}
        raise wire.WireError(f"the test passes a {type(value).__name__}, which cannot be sent to the program")

    def decode(self, form: Any) -> Any:
        return wire.decode(form, self._resolve)

    def _resolve(self, tag: str, body: Any) -> "Remote":
        if tag != "r" or type(body) is not list or [type(part) for part in body] != [int, str]:
            raise wire.WireError("malformed value")
        return Remote(self, body[0], body[1][:80])


def _change(value: Any, after: Any) -> None:
    """Give an argument of the test the contents that the program left in it, inner lists kept in place."""
    if type(value) is not type(after):
        return
    if type(value) is list:
        for index, (old, new) in enumerate(zip(value, after, strict=False)):
            if type(old) is type(new) and type(old) in (list, dict, set):
                _change(old, new)
            else:
                value[index] = new
        del value[len(after) :]
        value.extend(after[len(value) :])
    elif type(value) is dict:
        for key, old in list(value.items()):
            if key in after and type(old) is type(after[key]) and type(old) in (list, dict, set):
                _change(old, after[key])
                after[key] = old
        value.clear()
        value.update(after)
    elif type(value) is set:
        value.clear()
        value.update(after)
    elif type(value) is bytearray:
        value[:] = after


class Remote:
    """An object or function of the program. Whatever would let it speak for itself raises NotPlain."""

    __slots__ = ("_kind", "_program", "_target")

    def __init__(self, program: Program, target: str | int, kind: str) -> None:
        for name, value in (("_program", program), ("_target", target), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._program.call(self._target, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask({"op": "get", "o": self._target, "n": name})

    def __setattr__(self, name: str, value: Any) -> None:
        request = {"op": "set", "o": self._target, "n": name, "v": self._program.encode(value)}
        self._program.ask(request)

    def __iter__(self) -> Iterator[Any]:
        items = self._program.ask({"op": "list", "o": self._target})
        if type(items) is not list:
            raise NotPlain("its items are no list")
        return iter(items)

    def __len__(self) -> int:
        size = self._program.ask({"op": "size", "o": self._target})
        if type(size) is not int or size < 0:
            raise NotPlain("its length is no number")
        return size

    def __bool__(self) -> bool:
        # No more than if it had returned True or False: it has not seen what is expected.
        return self._program.ask({"op": "true", "o": self._target}) is True

    def __repr__(self) -> str:
        return f"<{self._kind} of the program>"

    def _refuse(self, *_: Any) -> Any:
        raise NotPlain(f"the program returned an object of type {self._kind}, no plain value")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __hash__ = _refuse
    __int__ = __float__ = __index__ = __abs__ = __add__ = __radd__ = __sub__ = __rsub__ = _refuse
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __mod__ = __getitem__ = __str__ = __format__ = _refuse
