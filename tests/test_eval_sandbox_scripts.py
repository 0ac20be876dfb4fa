"""Scripts on standard input and output: run as under `python program.py`, judged by what they write."""

import sys

import pytest

from eval.sandbox import Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is for Linux")


@pytest.fixture(scope="module", params=["namespaces", "landlock"])
def sandbox(request):
    with Sandbox(request.param) as one:
        if one.isolation().level != request.param:
            pytest.skip(f"this machine has no {request.param}: {one.isolation().missing}")
        yield one


SCRIPTS = {  # name: (program, input, output)
    "a thread that nobody joins": (
        "import threading, time\ndef main():\n    time.sleep(0.1)\n    print(input())\n"
        "threading.Thread(target=main).start()",
        *("5", "5"),
    ),
    "a thread with a large stack": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\n"
        "def depth(n):\n    return n and 1 + depth(n - 1)\n"
        "threading.Thread(target=lambda: print(depth(20000))).start()",
        *("", "20000"),
    ),
    "a pool of threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "ThreadPoolExecutor(2).submit(lambda: print(input()))",
        *("5", "5"),
    ),
    "exit handlers": ("import atexit\natexit.register(print, 2)\natexit.register(print, 1)", "", "1 2"),
    "output collected until the end": (
        "import atexit, io, sys\nsys.stdout = io.StringIO()\n"
        "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint(input())",
        *("7", "7"),
    ),
    "the first standard output": ("import sys\nsys.__stdout__.write('1')", "", "1"),
    "the first standard input": ("import sys\nprint(sys.__stdin__.readline())", "4", "4"),
    "a second file on the output": ("out = open(1, 'w')\nout.write('3')", "", "3"),
    "input by another name": ("print(open('/dev/stdin').read(), open('/dev/stdin').read())", "abc", "abc"),
    "input by another name, as bytes": (
        "from pathlib import Path\nprint(Path('/dev/stdin').read_bytes().decode())",
        *("abc", "abc"),
    ),
    "input by number": ("print(open(0).read())", "abc", "abc"),
    "output by another name": ("print(1, file=open('/dev/stdout', 'w'))", "", "1"),
    "input wrapped anew": (
        "import io, sys\nsys.stdin = io.TextIOWrapper(sys.stdin.buffer, encoding='utf-8')\nprint(input())",
        *("ü", "ü"),
    ),
    "what streams say of themselves": (
        "import sys\nprint(sys.stdin.mode, sys.stdout.mode, sys.stdin.name, sys.stdin.fileno())",
        *("", "r w <stdin> 0"),
    ),
    "its own name": (
        "import os, sys\nprint(__name__, os.path.basename(__file__), sys.argv)",
        *("", "__main__ program.py ['program.py']"),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_behave_as_under_python(sandbox, name):
    program, given, printed = SCRIPTS[name]
    verdict = sandbox.run_stdio(program, [(given, printed)], timeout_s=5.0)
    assert verdict.status == "passed", verdict
    assert sandbox.run_stdio(program, [(given, printed + " more")], timeout_s=5.0).status == "failed"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("import atexit\natexit.register(print, 1)\n1 / 0", "error"),  # handlers change no exit code
        ("import atexit, os\nprint(1)\natexit.register(os._exit, 3)", "error"),
        ("import atexit\nprint(1)\natexit.register(lambda: 1 / 0)", "passed"),
        ("import atexit\natexit.register(lambda: [0 for _ in iter(int, 1)])\nprint(1)", "timeout"),
        (
            "import threading, time\nprint(1)\nthreading.Thread(target=time.sleep, args=(99,)).start()",
            "timeout",
        ),
        (
            "import threading, time\nprint(1)\n"
            "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
            "passed",
        ),
        ("print(1)\nclass Late:\n    def __del__(self): raise SystemExit(3)\nlate = Late()", "passed"),
    ],
)
def test_the_end_of_a_script_is_judged_too(sandbox, program, status):
    assert sandbox.run_stdio(program, [("", "1")], timeout_s=1.0).status == status


def test_a_case_with_too_much_output_does_not_spoil_the_next(sandbox):
    program = "n = int(input())\nprint('x' * (20 << 20) if n == 1 else n)"
    verdict = sandbox.run_stdio(program, [("1", "1"), ("2", "2"), ("3", "3")], count=True)
    assert verdict.num_passed == 2 and verdict.reason.startswith("case 1: more than"), verdict
