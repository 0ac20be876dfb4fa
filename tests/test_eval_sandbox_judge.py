"""The judge faces hostile answers: they change nothing that it judges by, and it outlives them all."""

import sys

import pytest

from eval.sandbox import Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is for Linux")


@pytest.fixture(scope="module")
def namespaces():
    with Sandbox() as one:
        yield one


def test_programs_that_work_in_place_are_judged_by_what_they_leave(namespaces):
    def status(body, before, after):
        test = f"def check(candidate):\n    x = {before}\n    candidate(x)\n    assert x == {after}, x"
        return namespaces.run_check(f"def f(x):\n    {body}", test, "f").status

    assert status("x.sort()", [3, 1, 2], [1, 2, 3]) == "passed"
    assert status("x.append(1)", [], [1]) == "passed"
    assert status("x[0].append(1)", [[]], [[1]]) == "passed"
    assert status("x['a'] = 1", {}, {"a": 1}) == "passed"
    assert status("pass", [3, 1, 2], [1, 2, 3]) == "failed"


EMPTYING = """
import sys
wire = sys.modules["eval.sandbox.wire"]
decode = wire.decode
wire.decode = lambda form, r=None: list(decode(form, r)) if type(form) is list else decode(form, r)
def f(x):
    x[:] = [0] * KEPT
    return ANSWER
"""


def test_a_program_cannot_rewrite_what_it_is_judged_by(namespaces):
    def status(kept, answer, *task, **options):
        program = EMPTYING.replace("KEPT", str(kept)).replace("ANSWER", str(answer))
        return namespaces.run_calls(program, "f", *task, **options).status

    # The polynomial whose zero is asked for is the argument itself.
    assert status(4, 0.0, [[[-6, 11, -6, 1]]], [1.0], compare="root", tolerance=1e-4) == "failed"
    # Argument and expected value are one object here, which marshal preserves.
    for both in ([3, 1, 2], [[1], [2]]):
        assert status(0, [], [[both]], [both]) == "failed"
        assert status(0, [], [[both], [both]], [both, both]) == "failed"


HUNG_UP = "import sys\nwire = sys.modules['eval.sandbox.wire']\nreceive, count = wire.receive, [0]\n"
HUNG_UP += "def counting(*a, **k):\n    count[0] += 1\n    message = receive(*a, **k)\n"
HUNG_UP += "    return message if count[0] < 2 else INSTEAD\nwire.receive = counting\n"


def test_no_answer_leaves_a_program_unjudged(namespaces):
    """Neither a value that cannot be compared nor one that cannot be shown stops the judge."""
    decimal = "from decimal import Decimal\ndef f(x):\n    return "
    values = ("Decimal('sNaN')", "[Decimal('sNaN')]", "[object()]", "[Decimal('sNaN'), object(), f]")
    namespaces.isolation()
    judge_pid = namespaces._pair[0].pid
    for value in values:
        for compare in ("value", "reference", "set", "truth", "root"):
            for expected in (1, [1]):
                task = (decimal + value, "f", [[[1]]], [expected])
                verdict = namespaces.run_calls(*task, compare=compare, count=True)
                assert verdict.status == ("passed" if compare == "truth" else "failed"), (verdict, compare)
    # What the assert says is the program's, and has no text.
    for value in ("object()", "10 ** 5000"):
        test = "def check(candidate):\n    assert candidate(1) is None, candidate(1)"
        verdict = namespaces.run_check(decimal + value, test, "f")
        assert verdict.status == "failed" and not verdict.is_fault, verdict
    # It is asked for the test's names before the test begins.
    test = "def check(candidate):\n    assert candidate(1) == LIMIT"
    for instead in ("b'[]'", "sys.exit(0)", 'b\'{"op":"none"}\'', "1 / 0"):
        program = "def f(x):\n    return x\n" + HUNG_UP.replace("INSTEAD", instead)
        verdict = namespaces.run_check(program, test, "f")
        assert verdict.status == "error" and not verdict.is_fault, verdict
    # A reason that begins like those of the sandbox's own faults.
    raises = "class sandbox(Exception): pass\ndef f(x):\n    raise sandbox('the judge died')\n"
    for program in (raises, f"{raises}f(1)"):
        verdict = namespaces.run_check(program, "def check(c):\n    assert c(1) == 1", "f")
        assert verdict.reason.startswith("sandbox: the judge died") and not verdict.is_fault, verdict
        assert not namespaces.run_calls(program, "f", [[1]], [1]).is_fault
    verdict = namespaces.run_stdio(f"{raises}f(1)", [("", "1")])
    assert verdict.reason.startswith("sandbox: the judge died") and not verdict.is_fault, verdict
    assert namespaces._pair[0].pid == judge_pid
