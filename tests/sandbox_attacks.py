# ruff: noqa: E501 - programs stand as they run
"""Programs that try to be judged right without being right, or to reach out of the sandbox.

Each is judged by TEST. Those of FORGERIES know no answer; those of BREACHES return the right sum only where their
breach worked. So "passed" is a hole in every case.
"""

from textwrap import dedent

TEST = """
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(20, 22) == 42
    assert candidate(-5, 5) == 0
"""

_FORGERIES = {
    "exit 0 at import": "import sys\nsys.exit(0)",
    "exit 0 in the call": "import sys\ndef add(a, b):\n    sys.exit(0)",
    "os._exit 0": "import os\nos._exit(0)",
    "os._exit 0 in the call": "import os\ndef add(a, b):\n    os._exit(0)",
    "print a sentinel": "print('passed')\nprint('{\"status\": \"passed\"}')\ndef add(a, b):\n    return None",
    "always-equal object": """
        class Equal:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def add(a, b): return Equal()
    """,
    "always-equal int": """
        class Equal(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
        def add(a, b): return Equal(7)
    """,
    "always-equal inside a list": """
        class Equal(float):
            __eq__ = lambda self, other: True
        def add(a, b): return [Equal(7)][0]
    """,
    "true in any company": "class Any:\n    def __bool__(self): return True\n    def __eq__(self, o): return self\n"
    "def add(a, b):\n    return Any()",
    "type with an always-equal metaclass": """
        class Meta(type):
            def __eq__(cls, other): return True
            __hash__ = type.__hash__
        class Sum(metaclass=Meta): pass
        def add(a, b): return Sum
    """,
    "assert made to do nothing": """
        import builtins
        builtins.AssertionError = type("Quiet", (Exception,), {})
        builtins.__build_class__ = None
        def add(a, b): return 0
    """,
    "builtins replaced": """
        import builtins, operator
        builtins.all = builtins.any = builtins.isinstance = lambda *a: True
        operator.eq = lambda a, b: True
        builtins.abs = lambda x: 0
        def add(a, b): return 0
    """,
    "check and candidate defined": "def check(candidate):\n    pass\ncandidate = check\ndef add(a, b):\n    return 0",
    "expected values looked for in the frames": """
        import sys
        def add(a, b):
            frame, seen = sys._getframe(), []
            while frame:
                for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
                    if isinstance(value, dict):
                        seen += [v for k, v in value.items() if k in ("expected", "test", "wanted")]
                frame = frame.f_back
            return a + b if seen else 0
    """,
    "expected values looked for in memory": """
        import gc
        def add(a, b):
            texts = [o for o in gc.get_objects() if isinstance(o, (str, dict, list))]
            return a + b if any("candidate(20," in repr(o)[:100000] for o in texts[:20000]) else 0
    """,
    "frames overwritten": """
        import sys, ctypes
        def add(a, b):
            frame = sys._getframe()
            while frame:
                for name in list(frame.f_locals):
                    if name in ("status", "verdict", "outcome", "reply", "result"):
                        frame.f_locals[name] = "passed"
                        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), 0)
                frame = frame.f_back
            return 0
    """,
    "a tracer that jumps": """
        import sys
        def tracer(frame, event, arg):
            frame.f_trace_lines = True
            try: frame.f_lineno += 1
            except Exception: pass
            return tracer
        sys.settrace(tracer)
        def add(a, b): return 0
    """,
    "verdicts on every descriptor": """
        import os, struct
        frame = b'{"status":"passed","reason":""}'
        for descriptor in range(256):
            for text in (frame, struct.pack("!I", len(frame)) + frame):
                try: os.write(descriptor, text)
                except OSError: pass
        def add(a, b): return 0
    """,
    "replies in advance": """
        import os, struct
        for descriptor in range(3, 256):
            for _ in range(9):
                frame = b'{"v":{"x":1}}'
                try: os.write(descriptor, struct.pack("!I", len(frame)) + frame)
                except OSError: pass
        def add(a, b): return 0
    """,
    "the sender replaced": """
        import sys
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").endswith("wire"):
                module.encode = lambda *a: {"r": [0, "int"]}
                module.dumps = lambda *a: b'{"status":"passed"}'
        def add(a, b): return 0
    """,
    "an exception that ends loops": "def add(a, b):\n    raise StopIteration",
    "an exception that is not caught": "def add(a, b):\n    raise BaseException('passed')",
    "an exception with its own text": """
        class Odd(AssertionError):
            def __str__(self): import os; os._exit(0)
        def add(a, b): raise Odd
    """,
    "a generator instead of a value": "def add(a, b):\n    while True:\n        yield a + b",
    "arguments swallowed": "class Sum:\n    def __new__(cls, *a): return NotImplemented\nadd = Sum",
    "exit handler": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b):\n    return 0",
    "no entry point": "def sum_of(a, b):\n    return a + b",
    "does not compile": "def add(a, b) return a + b",
    "crash": "import ctypes\nctypes.string_at(0)\ndef add(a, b):\n    return a + b",
}

CALLS = """
import ctypes, platform, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
RESULTS = {}
def call(name, numbers, *arguments):
    number = numbers[platform.machine() == "aarch64"]
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *arguments)]
    result = libc.syscall(*words)
    RESULTS[name] = result, ctypes.get_errno() if result < 0 else 0
array = ctypes.create_string_buffer(struct.pack("5I", 2, 4, 4, 1, 0) + bytes(100))  # type, key, value, entries
clock = ctypes.create_string_buffer(struct.pack("2I3QQ", 1, 112, 0, 0, 0, 0) + bytes(8) + bytes(64))
struct.pack_into("Q", clock, 40, 0x60)  # without kernel and hypervisor: what an ordinary user may count
call("bpf", (321, 280), 0, array, 120)  # BPF_MAP_CREATE
call("keyctl", (250, 219), 0, -2, 1)  # KEYCTL_GET_KEYRING_ID of the process, created
call("add_key", (248, 217), b"user", b"stepwell", b"x", 1, -2)
call("perf_event_open", (298, 241), clock, 0, -1, -1, 0)
call("userfaultfd", (323, 282), 1)  # UFFD_USER_MODE_ONLY
call("io_uring_setup", (425, 425), 1, ctypes.create_string_buffer(120))
"""
"""System calls that work outside: a test shows that. BPF is refused to ordinary users by most kernels, so inside
only the missing capability can be seen to stop it; that the filter names it too is seen in its table alone."""

# After each of these an honest program must pass, which for "kill everything" and "stop the parent" is all that can
# be learnt: no program could tell that they worked. Those that define add themselves show that the judge bears it.
_BREACHES = {
    "read the user's files": """
        import os
        for path in ("/etc/passwd", "/etc/shadow", "/root/.bashrc", "/proc/1/environ", "/proc/self/status"):
            try: BROKEN = bool(open(path).read())
            except OSError: continue
    """,
    "see the checkout": "import os\nBROKEN = os.path.exists(os.path.join(CHECKOUT, 'pyproject.toml'))",
    "see other processes": "import os\nBROKEN = os.path.exists('/proc/1') or os.getppid() > 1",
    "write outside": """
        import os, sys
        for folder in ("/", "/usr", "/etc", "/var/tmp", sys.base_prefix, os.path.dirname(os.__file__)):
            try:
                open(os.path.join(folder, "stepwell-was-here"), "w").close()
                BROKEN = True
            except OSError: pass
    """,
    "delete outside": """
        import os
        try: os.unlink(os.__file__); BROKEN = True
        except OSError: pass
    """,
    "connect to the network": """
        import socket
        for kind, address in ((socket.AF_INET, ("127.0.0.1", 22)), (socket.AF_INET, ("1.1.1.1", 53))):
            try: socket.socket(kind).connect(address)
            except ConnectionRefusedError: BROKEN = True
            except OSError: pass
    """,
    "open a raw, netlink or vsock socket": """
        import socket
        for family in (socket.AF_PACKET, socket.AF_NETLINK, getattr(socket, "AF_VSOCK", 40)):
            for kind in (socket.SOCK_RAW, socket.SOCK_STREAM):
                try: socket.socket(family, kind); BROKEN = True
                except OSError: pass
    """,
    "kill everything": """
        import os, signal
        for pid in (os.getppid(), 1):
            try: os.kill(pid, signal.SIGKILL)
            except OSError: pass
        BROKEN = os.getppid() not in (0, 1)
    """,
    "stop the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nBROKEN = False",
    "trace the parent": """
        import ctypes, os
        BROKEN = ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0
    """,
    "limit and slow down the parent": """
        import os, resource
        parent = os.getppid()
        for call in (
            lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (1, 1)),
            lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
            lambda: os.sched_setaffinity(parent, {0}),
        ):
            try: call(); BROKEN = True
            except OSError: pass
        try: os.kill(parent, 2)  # the first process of a namespace: sent, and without effect
        except OSError: pass
    """,
    "mount": """
        import ctypes
        BROKEN = ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, 0) == 0
    """,
    "a new user namespace": """
        import ctypes
        BROKEN = ctypes.CDLL(None).unshare(0x10000000) == 0
    """,
    "become root": """
        import os
        for call in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0)):
            try: call(); BROKEN = open("/etc/shadow").read() != ""
            except OSError: pass
    """,
    "raise the limits": """
        import resource
        try:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            BROKEN = True
        except (OSError, ValueError): pass
    """,
    "escape by chroot": """
        import os
        try:
            os.mkdir("x"); os.chroot("x"); BROKEN = True
        except OSError: pass
    """,
    "load BPF, io_uring, keys": CALLS + "BROKEN = any(result >= 0 for result, _ in RESULTS.values())",
    "leave shared memory behind": """
        import ctypes
        BROKEN = ctypes.CDLL(None).shmget(4711, 4096, 0o1666) >= 0
    """,
    "inherit secrets": """
        import os
        BROKEN = any("TOKEN" in name or "KEY" in name or "HOME" in name and v != os.getcwd()
                     for name, v in os.environ.items())
    """,
    "memory": """
        blocks = []
        for _ in range(4096): blocks.append(bytearray(1 << 20))
        BROKEN = True
    """,
    "memory in one piece": "x = bytearray(8 << 30)\nBROKEN = True",
    "fill the disk": """
        try:
            for number in range(200):
                with open(f"f{number}", "wb") as file: file.write(bytes(8 << 20))
            BROKEN = True
        except OSError: pass
    """,
    "a return value of 100 MB": "def add(a, b):\n    return 'x' * (100 << 20)\nBROKEN = False",
    "nesting 100,000 deep": """
        def add(a, b):
            x = []
            for _ in range(100000): x = [x]
            return x
        BROKEN = False
    """,
    "an integer of a million digits": "def add(a, b):\n    return 10 ** 1000000\nBROKEN = False",
}

_SLOW = {
    "loop": "def add(a, b):\n    while True: pass",
    "loop at import": "while True: pass",
    "sleep": "import time\ndef add(a, b):\n    time.sleep(1000)",
    "a loop that catches all": "def add(a, b):\n    while True:\n        try:\n            while True: pass\n"
    "        except BaseException: pass",
    "signals ignored": "import signal\nfor s in (2, 14, 15, 24):\n    signal.signal(s, signal.SIG_IGN)\n"
    "def add(a, b):\n    while True: pass",
    "regular expression": "import re\ndef add(a, b):\n    re.match(r'(a+)+$', 'a' * 60 + 'b')",
    "big power": "def add(a, b):\n    return 9 ** 9 ** 9",
    "threads": "import threading\ndef spin():\n    while True: pass\n"
    "def add(a, b):\n    t = [threading.Thread(target=spin) for _ in range(4)]\n"
    "    [x.start() for x in t]\n    [x.join() for x in t]",
    "fork bomb": "import os\ndef add(a, b):\n    while True:\n        try: os.fork()\n        except OSError: pass",
    "output without end": "def add(a, b):\n    while True: print('x' * 100000)",
    "half a reply": "import os, time\nos.write(3, b'\\0\\0\\1')\ndef add(a, b):\n    time.sleep(1000)",
    "a lock never released": "import threading\ndef add(a, b):\n    threading.Semaphore(0).acquire()",
}

FORGERIES = {name: dedent(text) for name, text in _FORGERIES.items()}
BREACHES = {
    name: "BROKEN = False\n"
    + dedent(text)
    + ("" if "def add" in text else "\ndef add(a, b):\n    return a + b if BROKEN else None\n")
    for name, text in _BREACHES.items()
}
SLOW = {name: dedent(text) for name, text in _SLOW.items()}

_HONEST = {
    "plain": "def add(a, b):\n    return a + b",
    "numpy inside the program": "import numpy as np\ndef add(a, b):\n    return np.array([a, b]).sum()",
    "a file in the working folder": "def add(a, b):\n    with open('x.txt', 'w') as f: f.write(str(a + b))\n"
    "    return int(open('x.txt').read())",
    "tempfile": "import tempfile, os\ndef add(a, b):\n    with tempfile.TemporaryDirectory() as d:\n"
    "        p = os.path.join(d, 'x'); open(p, 'w').write(str(a + b)); return int(open(p).read())",
    "the working folder's name": "import os\ndef add(a, b):\n    assert os.path.isdir(os.getcwd())\n    return a + b",
    "threads": "from concurrent.futures import ThreadPoolExecutor\ndef add(a, b):\n"
    "    with ThreadPoolExecutor(4) as pool: return sum(pool.map(int, [a, b, 0, 0]))",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**6)\ndef depth(n):\n    return n and 1 + depth(n - 1)\n"
    "def add(a, b):\n    return a + b + depth(50000) - 50000",
    "caught recursion": "def f(): return f()\ndef add(a, b):\n    try: f()\n    except RecursionError: return a + b",
    "printing": "import sys\ndef add(a, b):\n    print('hm'); sys.stderr.write('hm'); return a + b",
    "reading nothing": "import sys\ndef add(a, b):\n    sys.stdin.read(); return a + b",
    "main block": "def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    raise SystemExit(input())",
    "dataclasses and enums": "from dataclasses import dataclass\nfrom enum import IntEnum\n"
    "class N(IntEnum):\n    A = 0\n@dataclass\nclass P:\n    x: int\ndef add(a, b):\n    return P(a + b).x + N.A",
    "asyncio": "import asyncio\nasync def s(a, b):\n    await asyncio.sleep(0); return a + b\n"
    "def add(a, b):\n    return asyncio.run(s(a, b))",
    "random numbers": "import random, os, uuid\ndef add(a, b):\n    random.random(); os.urandom(4); uuid.uuid4()\n"
    "    return a + b",
    "an int subclass": "class N(int): pass\ndef add(a, b):\n    return N(a + b)",
    "a float of the same value": "def add(a, b):\n    return float(a + b)",
    "future annotations": "from __future__ import annotations\ndef add(a: X, b: Y) -> Z:\n    return a + b",
}
HONEST = {name: dedent(text) for name, text in _HONEST.items()}
