"""Plain values as JSON, exact types kept, and frames on a socket. Both ends of every pipe speak this.

None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, Fraction, Decimal,
range and builtin types travel; a subclass arrives as its plain base, so no method of the sender's runs at
the receiver. Decoding builds nothing else: no pickle, no class lookup, no code. Everything else is the
business of `refer` and `resolve` (references to objects that stay where they are).

    payload = dumps((1, {2.5: "x"}))
    assert loads(payload) == (1, {2.5: "x"})
"""

import builtins
import json
import select
import socket
import struct
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_FRAME = 32 << 20
"""Bytes of the largest message that is accepted; a longer one counts as too much output."""
MAX_TRUSTED_FRAME = 1 << 30
"""The same between the client and the judge, who hold all calls and values of a problem."""
_SAFE_INT = 1 << 256
_LEAVES = frozenset((str, float, bool, type(None)))
_DECODED = _LEAVES | {int}
_TYPES = {
    name: getattr(builtins, name)
    for name in "int float complex bool str bytes bytearray list tuple dict set frozenset object type".split()  # noqa: SIM905
}
_TYPE_NAMES = {kind: name for name, kind in _TYPES.items()}
_HEAD = struct.Struct("!I")


class WireError(Exception):
    """The other side sent what no honest side sends, or a value that cannot travel."""


class Closed(Exception):
    """The other side hung up."""


class TimeUp(Exception):
    """The deadline passed first."""


def encode(value: Any, refer: Callable[[Any], Any] | None = None) -> Any:
    """Return JSON values for a plain one; `refer` gives the form of any other object, else WireError."""
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is int:
        return value if -_SAFE_INT < value < _SAFE_INT else {"i": hex(value)}
    if kind is list or kind is tuple:
        items = _encode_items(value, refer)
        return items if kind is list else {"t": items}
    if kind is dict:
        return {"d": [[encode(key, refer), encode(item, refer)] for key, item in value.items()]}
    if kind is set or kind is frozenset:
        return {"s" if kind is set else "z": [encode(item, refer) for item in value]}
    if kind is bytes or kind is bytearray:
        return {"b" if kind is bytes else "y": value.decode("latin-1")}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind is Fraction:
        return {"q": [hex(value.numerator), hex(value.denominator)]}
    if kind is Decimal:
        return {"m": str(value)}
    if kind is range:
        return {"e": [hex(value.start), hex(value.stop), hex(value.step)]}
    if kind is type and value in _TYPE_NAMES:
        return {"k": _TYPE_NAMES[value]}
    plain = _plain_base(value, kind)
    if plain is not value:
        return encode(plain, refer)
    if refer is None:
        raise WireError(f"a {kind.__name__} is no plain value")
    return refer(value)


def _encode_items(values: Any, refer: Callable[[Any], Any] | None) -> list[Any]:
    kinds = set(map(type, values))
    if kinds <= _LEAVES or (kinds == {int} and min(values) > -_SAFE_INT and max(values) < _SAFE_INT):
        return list(values)  # most long lists, at once
    return [encode(item, refer) for item in values]


def _plain_base(value: Any, kind: type) -> Any:
    """The plain value inside an instance of a subclass (Counter, IntEnum, namedtuple) or a numpy scalar."""
    if issubclass(kind, type):
        return value
    if getattr(kind, "__module__", "") == "numpy" and hasattr(value, "dtype") and not value.shape:
        return value.item()
    if issubclass(kind, int):
        return int.__add__(value, 0)
    if issubclass(kind, float):
        return float.__add__(value, 0.0)
    if issubclass(kind, str):
        return "".join(str.__iter__(value))
    if issubclass(kind, tuple):
        return tuple(tuple.__iter__(value))
    if issubclass(kind, list):
        return list(list.__iter__(value))
    if issubclass(kind, dict):
        return dict(dict.items(value))
    if issubclass(kind, set):
        return set(set.__iter__(value))
    if issubclass(kind, frozenset):
        return frozenset(frozenset.__iter__(value))
    return value


def decode(form: Any, resolve: Callable[[str, Any], Any] | None = None) -> Any:
    """Return the value of its JSON form. Raises WireError for any form that `encode` never makes."""
    kind = type(form)
    if kind in _LEAVES or kind is int:
        return form
    if kind is list:
        if set(map(type, form)) <= _DECODED:
            return form[:]  # a value is never its form: whoever changes it still has what was sent
        return [decode(item, resolve) for item in form]
    if kind is not dict or len(form) != 1:
        raise WireError("malformed value")
    ((tag, body),) = form.items()
    try:
        match tag:
            case "i":
                return int(_text(body), 16)
            case "t":
                return tuple(decode(_items(body), resolve))
            case "d":
                return {decode(key, resolve): decode(item, resolve) for key, item in _items(body)}
            case "s":
                return {decode(item, resolve) for item in _items(body)}
            case "z":
                return frozenset(decode(item, resolve) for item in _items(body))
            case "b":
                return _text(body).encode("latin-1")
            case "y":
                return bytearray(_text(body).encode("latin-1"))
            case "c":
                real, imag = _items(body)
                return complex(float(real), float(imag))
            case "q":
                return Fraction(*(int(_text(part), 16) for part in _items(body)))
            case "m":
                return Decimal(_text(body))
            case "e":
                return range(*(int(_text(part), 16) for part in _items(body)))
            case "k":
                return _TYPES[_text(body)]
    except (TypeError, ValueError, ArithmeticError, KeyError) as error:
        raise WireError(f"malformed value ({type(error).__name__})") from error
    if resolve is None:
        raise WireError("malformed value")
    return resolve(tag, body)


def _text(body: Any) -> str:
    if type(body) is not str:
        raise TypeError(body)
    return body


def _items(body: Any) -> list[Any]:
    if type(body) is not list:
        raise TypeError(body)
    return body


def dumps(value: Any, refer: Callable[[Any], Any] | None = None) -> bytes:
    """Return `encode` as bytes. Raises WireError for what cannot travel, nested too deep or too long."""
    try:
        payload = json.dumps(encode(value, refer), separators=(",", ":")).encode()
    except RecursionError:
        raise WireError("a value is nested too deep") from None
    return payload


def loads(payload: bytes, resolve: Callable[[str, Any], Any] | None = None) -> Any:
    """Return the value of `dumps`. Raises WireError for anything else."""
    return decode(parse(payload), resolve)


def parse(payload: bytes) -> Any:
    """Return the JSON in a frame. Raises WireError when there is none."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError(f"malformed message ({type(error).__name__})") from None


def send(
    sock: socket.socket, payload: bytes, deadline: float | None = None, *, longest: int = MAX_FRAME
) -> None:
    """Send one frame. Raises Closed, TimeUp at `deadline` (time.monotonic), WireError when it is too long."""
    if len(payload) > longest:
        raise WireError(f"a message of {len(payload) >> 20} MiB; at most {longest >> 20} are sent")
    view = memoryview(_HEAD.pack(len(payload)) + payload)
    while view:
        if deadline is not None:
            _wait(sock, select.POLLOUT, deadline)
        try:
            view = view[sock.send(view, 0 if deadline is None else socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            continue
        except OSError:
            raise Closed from None


def receive(sock: socket.socket, deadline: float | None = None, *, longest: int = MAX_FRAME) -> bytes:
    """Return one frame's payload. Raises Closed, TimeUp, or WireError for one that is too long."""
    (size,) = _HEAD.unpack(exactly(sock, _HEAD.size, deadline))
    if size > longest:
        raise WireError(f"a message of {size >> 20} MiB; at most {longest >> 20} are read")
    return exactly(sock, size, deadline)


def exactly(sock: socket.socket, size: int, deadline: float | None) -> bytes:
    """Return the next `size` bytes. Raises Closed when the other side is gone, TimeUp after the deadline
    (a time.monotonic())."""
    parts = []
    while size:
        if deadline is not None:
            _wait(sock, select.POLLIN, deadline)
        try:
            part = sock.recv(min(size, 1 << 20))
        except OSError:
            part = b""
        if not part:
            raise Closed
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _wait(sock: socket.socket, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(sock, event)
    while not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        if time.monotonic() >= deadline:
            raise TimeUp
