"""The sandbox from outside: what must not pass, what must, and that nothing is left afterwards."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandbox_attacks import BREACHES, CALLS, FORGERIES, HONEST, SLOW, TEST

from data.errors import UserError
from data.schema import Problem
from eval.code_grader import make_code_grader
from eval.code_pool import CodePool
from eval.sandbox import Sandbox, client, isolation

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is for Linux")


@pytest.fixture(scope="module", params=["namespaces", "landlock"])
def sandbox(request):
    with Sandbox(request.param) as one:
        if one.isolation().level != request.param:
            pytest.skip(f"this machine has no {request.param}: {one.isolation().missing}")
        yield one


@pytest.fixture(scope="module")
def namespaces():
    with Sandbox() as one:
        yield one


def judge(sandbox, program, test=TEST, **limits):
    program = program.replace("CHECKOUT", repr(str(ROOT)))
    return sandbox.run_check(program, test, "add", **({"timeout_s": 10.0, "memory_mb": 512} | limits))


@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_passes(sandbox, name):
    verdict = judge(sandbox, FORGERIES[name], timeout_s=3.0)
    assert verdict.status in ("failed", "error"), verdict
    assert not verdict.is_fault, verdict


@pytest.mark.parametrize("name", BREACHES)
def test_no_breach_works(sandbox, name):
    if sandbox.isolation().level == "landlock" and name in NOT_DEFENDED_BY_LANDLOCK:
        pytest.skip("documented: landlock alone does not hide this")
    verdict = judge(sandbox, BREACHES[name])
    assert verdict.status in ("failed", "error"), verdict
    assert not verdict.is_fault, verdict
    assert judge(sandbox, HONEST["plain"]).status == "passed"


def test_the_calls_that_are_refused_inside_work_outside():
    program = f"{CALLS}\nimport json\nprint(json.dumps(RESULTS))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)
    # Elsewhere an administrator, or a container, may forbid them; no argument of ours is the reason.
    assert all(code in (0, errno.EPERM, errno.EACCES, errno.ENOSYS) for _, code in results.values()), results
    assert len(results) == 6


NOT_DEFENDED_BY_LANDLOCK = ("see the checkout", "see other processes", "kill everything", "fill the disk")
"""Names of files and processes stay visible; reading and killing are refused (the other cases). The scratch
folder lies on the disk, with a limit on each file alone."""


@pytest.mark.parametrize("name", SLOW)
def test_what_takes_too_long_is_ended_in_time(sandbox, name):
    if sandbox.isolation().level == "landlock" and name not in ("loop", "sleep", "fork bomb"):
        pytest.skip("the clock is the same at every level")
    started = time.monotonic()
    verdict = judge(sandbox, SLOW[name], timeout_s=0.5)
    assert verdict.status == "timeout", verdict
    assert time.monotonic() - started < 5
    assert judge(sandbox, HONEST["plain"]).status == "passed"


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(sandbox, name):
    verdict = judge(sandbox, HONEST[name])
    assert verdict.status == "passed", verdict
    assert sandbox.isolation().level in verdict.isolation


def test_processes_are_allowed_where_they_can_be_counted(namespaces):
    program = (
        "import multiprocessing, subprocess\n"
        "def add(a, b):\n"
        "    with multiprocessing.Pool(2) as pool: values = pool.map(int, [a, b])\n"
        "    return sum(values) + int(subprocess.run(['echo', '0'], capture_output=True).stdout)\n"
    )
    if namespaces.isolation().level != "namespaces":
        pytest.skip("no namespaces here")
    assert judge(namespaces, program).status == "passed"


@pytest.mark.parametrize("level", ["namespaces", "landlock", "unsandboxed"])
def test_nothing_is_left_running_or_lying_about(level):
    mark = f"sw{os.getpid()}{level[:5]}"
    program = (
        "import ctypes, os, time\n"
        "def add(a, b):\n"
        "    open('left', 'w').close()\n"
        "    for _ in range(3):\n"
        "        try:\n"
        "            if os.fork() == 0:\n"
        "                try: os.setsid()\n"
        "                except OSError: pass\n"
        "                if os.fork() == 0:\n"
        f"                    ctypes.CDLL(None).prctl(15, b'{mark}')\n"
        "                    time.sleep(300)\n"
        "                os._exit(0)\n"
        "        except OSError: pass\n"
        "    time.sleep(0.2)\n"
        "    return a + b\n"
    )
    with Sandbox(level) as sandbox:
        assert judge(sandbox, program).status == "passed"
        assert mark not in _names()
        probe = "import os\ndef add(a, b):\n    return a + b if os.listdir('.') == [] else None"
        assert judge(sandbox, probe).status == "passed"
        children = [process.pid for process in sandbox._pair]
    folders = tuple(f"stepwell-{pid}-" for pid in children)
    assert [name for name in os.listdir("/tmp") if name.startswith(folders)] == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def _names():
    lines = []
    for file in Path("/proc").glob("[0-9]*/comm"):
        try:
            lines.append(file.read_text())
        except OSError:  # it ended in the meantime
            continue
    return "\n".join(lines)


def test_a_program_that_outlives_its_reply_is_killed(namespaces):
    program = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()\n"
        "def add(a, b):\n    return a + b"
    )
    verdict = judge(namespaces, program)
    assert verdict.status == "passed" and verdict.seconds < 3


def test_programs_do_not_see_one_another(namespaces):
    writer = (
        "open('note', 'w').write('x')\nimport builtins\nbuiltins.note = 1\ndef add(a, b):\n    return a + b"
    )
    reader = (
        "import os, builtins\ndef add(a, b):\n"
        "    return a + b if not os.path.exists('note') and not hasattr(builtins, 'note') else None"
    )
    assert [judge(namespaces, p).status for p in (writer, reader)] == ["passed"] * 2


def test_reasons_say_what_happened(namespaces):
    def reason(program, **limits):
        return judge(namespaces, program, **limits).reason

    assert "line 3 of the test" in reason("def add(a, b):\n    return 0")
    assert reason("def add(a, b):\n    return 1 // 0") == (
        "ZeroDivisionError: integer division or modulo by zero (line 2)"
    )
    assert "defines no 'add'" in reason("x = 1")
    assert "SyntaxError" in reason("def add(:")
    assert "0.3 s" in reason(SLOW["sleep"], timeout_s=0.3)
    assert "MemoryError" in reason(BREACHES["memory in one piece"])
    assert "signal 11" in reason(FORGERIES["crash"])
    assert "exit code 0" in reason(FORGERIES["os._exit 0"])


def test_a_broken_test_is_a_fault_and_not_the_programs(namespaces):
    honest = HONEST["plain"]
    for test in ("def check(candidate:", "x = 1"):
        verdict = judge(namespaces, honest, test)
        assert verdict.status == "error" and verdict.is_fault, verdict


def test_helpers_come_from_before_the_entry_point(namespaces):
    # HumanEval/32's form: the test calls a function of the prompt, which a completion could redefine.
    prompt = "def double(x):\n    return 2 * x\n\ndef half(x):\n    '''x / 2'''\n"
    test = "def check(candidate):\n    assert double(candidate(8)) == 8"
    right = prompt + "    return x / 2\n"
    forged = prompt + "    return 0\n\ndef double(x):\n    return 8\n"
    assert namespaces.run_check(right, test, "half").status == "passed"
    assert namespaces.run_check(forged, test, "half").status == "failed"
    # A whole program of the model's own: only the prompt says which double is meant.
    first = "def double(x):\n    return 8\n\ndef half(x):\n    return 0\n"
    assert namespaces.run_check(first, test, "half", prompt=prompt).status == "failed"
    assert namespaces.run_check(right, test, "half", prompt=prompt).status == "passed"


def test_tests_may_use_objects_functions_and_changed_arguments(namespaces):
    program = (
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n"
        "def total(node):\n    return node.v + (total(node.next) if node.next else 0)\n"
        "def apply(f, xs):\n    return [f(x) for x in xs]\n"
        "def clear(xs, d):\n    xs[0].append(1); d.clear(); xs.append([9])\n"
        "def adder(n):\n    return lambda x: x + n\n"
        "def squares():\n    return (i * i for i in range(4))\n"
    )
    test = (
        "a = Node(1)\na.next = Node(2)\nassert total(a) == 3 and a.next.v == 2\n"
        "assert apply(lambda x: x * x, [1, 2]) == [1, 4]\n"
        "xs, d = [[0]], {1: 2}\ninner = xs[0]\nclear(xs, d)\n"
        "assert xs == [[0, 1], [9]] and d == {} and inner is xs[0]\n"
        "assert adder(2)(3) == 5\nassert list(squares()) == [0, 1, 4, 9]\n"
    )
    verdict = namespaces.run_asserts(program, test, "total")
    assert verdict.status == "passed", verdict
    wrong = test.replace("== 5", "== 6")
    assert namespaces.run_asserts(program, wrong, "total").status == "failed"


def test_calls_compare_values_and_types(namespaces):
    def status(program, calls, expected, **options):
        return namespaces.run_calls(program, "f", calls, expected, timeout_s=5, **options).status

    same = "def f(x):\n    return x"
    values = [1, 2.5, "é\udc80", b"\xff", None, [1, (2, {3})], {"a": {(1, 2): 3}}, 1j, 10**400, float("inf")]
    assert status(same, [[v] for v in values], values) == "passed"
    assert status(same, [[(1, 2)]], [[1, 2]]) == "failed"
    assert status(same, [[(1, 2)]], [[1, 2]], sequences="json") == "passed"
    assert status(same, [[1.0000001]], [1.0]) == "failed"
    assert status(same, [[1.0000001]], [1.0], tolerance=1e-6) == "passed"
    assert status(same, [["1"]], [1]) == "failed"
    assert status("class S:\n    def f(self, x):\n        return x", [[1]], [1]) == "error"
    verdict = namespaces.run_calls("class S:\n    def f(self, x):\n        return x", "S.f", [[1]], [1])
    assert verdict.status == "passed"
    assert status("def f(x):\n    raise ValueError('no')", [[1]], [1]) == "error"


def test_scripts_are_judged_by_their_output(namespaces):
    def status(program, cases, **options):
        return namespaces.run_stdio(program, cases, **({"timeout_s": 5.0, "memory_mb": 512} | options)).status

    double = "print(int(input()) * 2)"
    assert status(double, [("4", "8\n"), ("5\n", "10")]) == "passed"
    assert status(double, [("4", "8"), ("5", "11")]) == "failed"
    assert status("import sys\nprint(sys.stdin.buffer.read().decode()[::-1])", [("abc", "cba")]) == "passed"
    assert status("import sys\nprint(open(0).read())\nsys.exit()", [("abc", "abc")]) == "passed"
    for leave in ("exit", "quit"):  # of the module site, which the sandbox does not run
        assert status(f"print(input())\n{leave}()\nprint(1)", [("abc", "abc")]) == "passed"
        assert status(f"print(input())\n{leave}(3)", [("abc", "abc")]) == "error"
    assert status("if __name__ == '__main__':\n    print(0.1 + 0.2)", [("", "0.3")]) == "passed"
    assert status("print(1)\nraise SystemExit(3)", [("", "1")]) == "error"
    assert status("print(1)\n1 / 0", [("", "1")]) == "error"
    assert status("while True: pass", [("", "")], timeout_s=0.5) == "timeout"
    assert status("while True: print('x' * 9999)", [("", "")], timeout_s=20.0) == "error"
    assert status("print('ok')", [("x" * 3_000_000, "ok")]) == "passed"  # it need not read its input
    assert status("import os\nos.write(1, b'7')\nos._exit(0)", [("", "7")]) == "passed"


def test_settings_that_make_no_sense_are_refused(namespaces):
    with pytest.raises(UserError, match="above 0"):
        judge(namespaces, HONEST["plain"], timeout_s=0)
    with pytest.raises(UserError, match="2 calls but 1 expected"):
        namespaces.run_calls("", "f", [[1], [2]], [1])
    with pytest.raises(UserError, match="must be plain"):
        namespaces.run_calls("", "f", [[object()]], [1])


SABOTAGE = {
    # at the start, in the middle and at the end of the new root; at the user map; at the first process inside
    "no mounts": "kernel.mount = refuse",
    "half a root": "kernel.make_read_only = refuse",
    "no scratch folder": "root.new_scratch = refuse",
    "no map": "zygote.namespaces.write_maps = lambda *a: os._exit(1)",
    "no process": "real = kernel.unshare; kernel.unshare = lambda f: (real(f), setattr(os, 'fork', refuse))",
    # what a program's process does after the fork
    "no capset": "kernel.drop_capabilities = os.setresuid = lambda *a: 1 / 0 if os.getpid() < 100 else None",
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_what_fails_half_way_in_starts_again_one_level_lower(monkeypatch, name, namespaces):
    if namespaces.isolation().level != "namespaces":
        pytest.skip("no namespaces here")
    sabotage(monkeypatch, SABOTAGE[name])
    with Sandbox() as sandbox:
        found = sandbox.isolation()
        assert found.level == "landlock" and "mount" not in found.layers, found
        assert any(reason.startswith("namespaces: ") for reason in found.missing), found
        assert judge(sandbox, HONEST["plain"]).status == "passed"
        for kind in ("user", "mnt", "net", "pid") if os.geteuid() == 0 else ():  # others may not look
            zygote = os.readlink(f"/proc/{sandbox._pair[1].pid}/ns/{kind}")
            assert zygote == os.readlink(f"/proc/self/ns/{kind}")


def sabotage(monkeypatch, statements):
    """Have the zygote run `statements` before it begins."""
    before = (
        "import os\nfrom eval.sandbox import kernel, root, zygote\n"
        "def refuse(*a): raise OSError(1, 'sabotage')\n"
    )
    start, main = client.CODE.split("; from eval", 1)
    code = (
        start
        + "\nif {module!r} == 'zygote': exec("
        + repr(before + statements).replace("{", "{{").replace("}", "}}")
        + ")\nfrom eval"
        + main
    )
    monkeypatch.setattr(client, "CODE", code)


def test_a_replaced_pair_is_not_weaker(monkeypatch):
    with Sandbox() as sandbox:
        if sandbox.isolation().level != "namespaces":
            pytest.skip("no namespaces here")
        sabotage(monkeypatch, "kernel.mount = refuse")
        sandbox._pair[0].kill()
        sandbox._pair[0].wait()
        with pytest.raises(UserError, match="only landlock is left"):
            judge(sandbox, HONEST["plain"])


def test_workers_are_not_weaker_than_what_was_checked(monkeypatch):
    if isolation().level != "namespaces":
        pytest.skip("no namespaces here")
    problem = Problem("x", "", "", meta={"form": "check", "test": TEST, "entry_point": "add"})
    sabotage(monkeypatch, "kernel.mount = refuse")
    pool = CodePool(lambda sandbox: make_code_grader(sandbox=sandbox), num_workers=1)
    verdict = pool(problem, HONEST["plain"])
    assert verdict.status == "unjudged" and "only landlock is left" in verdict.reason, verdict


def test_a_dead_judge_is_a_fault_and_is_replaced():
    with Sandbox() as sandbox:
        assert judge(sandbox, HONEST["plain"]).status == "passed"
        sandbox._pair[0].kill()
        sandbox._pair[0].wait()
        assert judge(sandbox, HONEST["plain"]).status == "passed"


def test_packages_beside_the_scratch_folder_are_found(monkeypatch, namespaces, tmp_path):
    """A checkout with its .venv may lie in /tmp, which programs see as their own empty folder."""
    if not str(tmp_path).startswith("/tmp/"):
        pytest.skip("pytest's folder is elsewhere")
    (tmp_path / "beside.py").write_text("VALUE = 3\n")
    tmp_path.chmod(0o755)
    real = client.sysconfig.get_paths
    monkeypatch.setattr(client.sysconfig, "get_paths", lambda: real() | {"platlib": str(tmp_path)})
    with Sandbox() as sandbox:
        program = "def add(a, b):\n    import beside\n    return a + b + beside.VALUE - 3"
        assert judge(sandbox, program).status == "passed"
