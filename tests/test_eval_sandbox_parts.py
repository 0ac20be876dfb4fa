"""The sandbox's parts by themselves: values on the wire, comparison, names of tests, the filters' tables."""

import math
import random
import re
import socket
import struct
import time
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from eval.sandbox import filters, kernel, names, wire
from eval.sandbox.compare import is_root, same_as_reference, same_items, same_output, same_value

# --- wire ------------------------------------------------------------------------------------------------


def random_value(rng, depth=0):
    leaves = [
        lambda: rng.randint(-5, 5),
        lambda: rng.getrandbits(400) - rng.getrandbits(400),
        lambda: rng.choice([True, False, None, 0.5, -0.0, float("inf"), 1e-300]),
        lambda: "".join(rng.choice("aé\u4e2d\x00\ud800") for _ in range(rng.randint(0, 4))),
        lambda: bytes(rng.randbytes(3)),
        lambda: complex(rng.random(), -1),
        lambda: Fraction(rng.randint(1, 9), 7),
        lambda: Decimal("1.50"),
        lambda: range(1, 9, 2),
        lambda: int,
    ]
    if depth > 3 or rng.random() < 0.4:
        return rng.choice(leaves)()
    items = [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    keys = [rng.choice(["a", 1, (1, 2), b"x", None, 2.5]) for _ in items]
    return rng.choice(
        [
            lambda: items,
            lambda: tuple(items),
            lambda: dict(zip(keys, items, strict=True)),
            lambda: set(keys),
            lambda: frozenset(keys),
            lambda: bytearray(b"xy"),
        ]
    )()


def same_types(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_types, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_types(a[k], b[k]) for k in a)
    return a == b and repr(a) == repr(b) if not isinstance(a, set | frozenset) else a == b


def test_plain_values_arrive_as_they_left():
    rng = random.Random(1)
    for _ in range(2000):
        value = random_value(rng)
        assert same_types(wire.loads(wire.dumps(value)), value), value
    assert math.isnan(wire.loads(wire.dumps(float("nan"))))
    form = [1, 2]
    wire.decode(form).append(3)
    assert form == [1, 2]


def test_subclasses_arrive_as_their_plain_base():
    class Sly(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    Point = namedtuple("Point", "x y")
    Colour = IntEnum("Colour", "RED BLUE")
    cases = [
        (Sly(7), 7),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (Point(1, 2), (1, 2)),
        (Colour.BLUE, 2),
        (np.int64(3), 3),
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
    ]
    for value, plain in cases:
        got = wire.loads(wire.dumps(value))
        assert type(got) is type(plain) and plain.__eq__(got) is True, value


def test_what_is_not_plain_is_refused_or_referred():
    for value in (object(), lambda: 1, np.zeros(3), type("New", (), {})):
        with pytest.raises(wire.WireError):
            wire.dumps([value])
        assert wire.dumps([value], lambda _: {"r": [0, "x"]}) == b'[{"r":[0,"x"]}]'


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"t":1}',
        b'{"i":"zz"}',
        b'{"i":1}',
        b'{"d":[[1]]}',
        b'{"d":[[[],1]]}',
        b'{"s":[[]]}',
        b'{"k":"eval"}',
        b'{"k":["int"]}',
        b'{"c":["x","y"]}',
        b'{"q":["0x1","0x0"]}',
        b'{"e":["0x1","0x2","0x0"]}',
        b'{"m":"one"}',
        b'{"t":[],"s":[]}',
        b"{}",
        b'{"unknown":1}',
        b"[" * 100_000,
        b"9" * 10_000,
    ],
)
def test_malformed_messages_raise_one_error(payload):
    with pytest.raises(wire.WireError):
        wire.loads(payload)


def test_frames_have_a_length_a_limit_and_a_deadline():
    a, b = socket.socketpair()
    with a, b:
        wire.send(a, b"x" * 100)
        assert wire.receive(b, time.monotonic() + 1) == b"x" * 100
        with pytest.raises(wire.WireError, match="at most"):
            wire.send(a, b"x" * 11, longest=10)
        a.sendall(struct.pack("!I", 1 << 31))
        with pytest.raises(wire.WireError, match="at most"):
            wire.receive(b)
        a.sendall(struct.pack("!I", 5) + b"abc")
        with pytest.raises(wire.TimeUp):
            wire.receive(b, time.monotonic() + 0.05)
        with pytest.raises(wire.TimeUp):  # nobody reads: the buffer fills
            wire.send(a, b"x" * (16 << 20), time.monotonic() + 0.05)
        a.close()
        with pytest.raises(wire.Closed):
            while True:
                wire.receive(b)


# --- comparison ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "expected", "tolerance", "same"),
    [
        (1, 1.0, 0, True),
        (True, 1, 0, True),
        (1, 2, 1e-6, False),
        (10**20, 10**20 + 1, 1e-6, False),  # integers are exact, whatever the tolerance
        (1.0, 1.0 + 5e-7, 1e-6, True),
        (1e12, 1e12 + 1e5, 1e-6, True),  # relative
        (1.0, 1.1, 1e-6, False),
        (float("nan"), float("nan"), 0, True),
        (float("inf"), float("inf"), 1e-6, True),
        (float("inf"), 1e308, 1e-6, False),
        (1j, 1j + 1e-9, 1e-6, True),
        ("1", 1, 0, False),
        (None, False, 0, False),
        ([1], (1,), 0, False),
        ([1, [2.0000001]], [1, [2]], 1e-6, True),
        ({"a": 1.0}, {"a": 1.0000001}, 1e-6, True),
        ({"a": 1}, {"b": 1}, 0, False),
        ({1, 2}, {2, 1}, 0, True),
        ({1, 2}, frozenset({1, 2}), 0, False),
        (10**400, 1.5, 1e-6, False),
    ],
)
def test_values(got, expected, tolerance, same):
    assert same_value(got, expected, tolerance=tolerance) is same
    assert same_value(expected, got, tolerance=tolerance) is same


def test_values_stored_as_json_forget_tuples_and_integer_keys():
    assert same_value((1, (2, 3)), [1, [2, 3]], sequences="json")
    assert same_value({1: "x"}, {"1": "x"}, sequences="json")
    assert not same_value((1, 2), "12", sequences="json")


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("1 2\n3\n", "1 2 3", True),
        ("1 2", "1 2 3", False),
        ("YES", "Yes", False),
        ("0.333333", "0.3333333333", True),
        ("1", "1.0", True),
        ("1e3", "1000.0", True),
        ("1000001", "1000002", False),
        ("1000001", "1000002.0", True),  # a millionth apart, and one of them a decimal
        ("0.1", "0.2", False),
        ("nan", "1.0", False),
        ("inf", "1.0", False),
        ("1_0.0", "10", True),
        ("", "", True),
        ("", "1", False),
    ],
)
def test_outputs(got, expected, same):
    assert same_output(got, expected) is same


@pytest.mark.parametrize(
    ("got", "expected", "atol", "same"),
    [
        (1, True, 0, True),  # equal in Python
        (1.0, 1, 0, True),
        (1.0 + 9e-7, 1.0, 0, True),
        (1.0 + 2e-6, 1.0, 0, False),
        (1e9 + 90, 1e9, 0, True),  # relative 1e-7
        (1e9 + 110, 1e9, 0, False),
        (1 + 1e-9, 1, 0, False),  # an expected integer has no tolerance
        (1 + 1e-9, 1, 1e-4, False),  # nor may the type differ
        ([0.1 + 0.2], [0.3], 0, True),
        ((0.1 + 0.2,), [0.3], 0, False),
        ([0.1 + 0.2, 1], [0.3, 1], 0, False),  # not all floats
        ([0.1 + 0.2, 1], [0.3, 1], 1e-6, True),
        ([[0.1 + 0.2]], [[0.3]], 0, False),
        ([[0.1 + 0.2]], [[0.3]], 1e-6, True),
        ([0.3], [0.3, 0.3], 0, False),
        ("0.3", "0.30", 1e-4, False),
        ({1: 0.1 + 0.2}, {1: 0.3}, 1e-4, False),
        (complex(1, 1e-5), 1 + 0j, 1e-4, True),
        (10**400, 1.0, 1e-4, False),
    ],
)
def test_a_reference_is_compared_as_evalplus_does(got, expected, atol, same):
    assert same_as_reference(got, expected, atol=atol) == same


def test_items_and_roots():
    assert same_items((1, 2, 2), [2, 1]) and not same_items([1], [1, 2]) and not same_items("ab", ["a", "b"])
    assert not same_items([[1]], [[1]])  # EvalPlus makes sets of them, which lists cannot be in
    assert is_root([-6, 11, -6, 1], 2.0, 1e-9)  # (x - 1)(x - 2)(x - 3)
    assert not is_root([-6, 11, -6, 1], 2.5, 1e-9) and not is_root([1, 2], "x", 1e-9)


# --- names -----------------------------------------------------------------------------------------------


def test_free_names_are_those_a_test_borrows():
    test = (
        "import math\nLIMIT = 3\n\ndef check(candidate):\n    from random import choice\n"
        "    rows = [poly(x) for x in range(LIMIT)]\n"
        "    assert candidate(choice(rows)) == math.pi + sorted(rows)[0]\n"
        "    class Local:\n        size = Node(1)\n    assert (lambda q: q + bias)(1)\n"
    )
    assert names.free_names(test) == {"poly", "Node", "bias"}


def test_the_part_before_the_entry_point():
    program = (
        "import math\n\ndef poly(x):\n    return x\n\n@cached\ndef zero(x):\n    return 0\n"
        "\ndef poly(x):\n    return 9\n"
    )
    before, functions = names.part_before(program, "zero")
    assert before == "import math\n\ndef poly(x):\n    return x\n\n" and functions == {"poly"}
    assert names.part_before("def zero(:", "zero") == ("", set())
    assert names.part_before("x = 1", "zero") == ("", set())


# --- filters ---------------------------------------------------------------------------------------------


def run_filter(program, number, argument=0, arch=None):
    """A plain interpreter of the few BPF instructions that are used, in place of the kernel."""
    import platform

    arch = filters._AUDIT_ARCH[platform.machine()] if arch is None else arch
    data = struct.pack("<IIQ6Q", number, arch, 0, argument, *[0] * 5)
    position, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("HBBI", program, position * 8)
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x15:
                position += if_true if accumulator == value else if_false
            case 0x45:
                position += if_true if accumulator & value else if_false
            case 0x35:
                position += if_true if accumulator >= value else if_false
            case 0x06:
                return value


ALLOW, PERMISSION = 0x7FFF0000, 0x00050001


@pytest.mark.skipif(not kernel.NUMBERS, reason="no table of system calls for this machine")
def test_filters_refuse_what_they_name_and_nothing_else():
    n = kernel.NUMBERS
    outer = filters.outer_filter()
    inner = filters.program_filter(has_namespaces=True)
    alone = filters.program_filter(has_namespaces=False, pid=77)
    for number in range(460):
        refused = number in {n[name] for name in filters.NOBODY if name in n}
        assert run_filter(outer, number) == (PERMISSION if refused else ALLOW), number
    plain = {n[x] for x in filters.PROGRAM if x in n} | {n["clone3"]}
    for number in set(range(460)) - plain - {n["clone"], n["socket"]}:
        assert run_filter(inner, number) == ALLOW, number
    assert run_filter(inner, n["clone3"]) == 0x00050026  # ENOSYS: the C library falls back
    assert (
        run_filter(inner, n["clone"], 17) == ALLOW and run_filter(inner, n["clone"], 0x10000011) == PERMISSION
    )
    assert run_filter(inner, n["socket"], 1) == ALLOW
    assert {run_filter(inner, n[name], 1) for name in filters.OWN} == {PERMISSION}
    assert {run_filter(inner, n["socket"], family) for family in (0, 2, 10, 16, 17, 40)} == {PERMISSION}
    assert run_filter(alone, n["socket"], 1) == PERMISSION
    assert run_filter(alone, n["clone"], 17) == PERMISSION
    assert run_filter(alone, n["clone"], 0x3D0F00) == ALLOW  # pthread_create
    assert run_filter(alone, n["kill"], 77) == ALLOW and run_filter(alone, n["kill"], 78) == PERMISSION
    assert run_filter(alone, n["kill"], 2**32 - 1) == PERMISSION
    assert run_filter(outer, n["kill"], arch=0x40000003) == 0x80000000  # another machine's calls: killed


def test_system_call_numbers_are_the_kernels():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists() or kernel._COLUMN != 1:
        pytest.skip("needs the kernel's header for this machine")
    defined = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
    assert {name: int(defined[name]) for name in kernel.NUMBERS} == kernel.NUMBERS
