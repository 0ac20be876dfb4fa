r"""Judge a final answer: correct, wrong or unjudged, within a bounded time, whatever the text holds.

    grade(r"\frac{1}{2}", r"... so the answer is \boxed{0.5}").status      # "correct"
    grade("(1,2)", "[1,2]").status                                         # "wrong": other brackets

The cascade: normalise -> equal text -> exact rationals -> structures, element by element -> math-verify in a
process of its own. Nearly every answer stops before the last. docs/grading.md has the rules and the figures.
"""

import atexit
import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

from data.schema import Verdict
from eval.answers import extract_answer
from eval.normalise import (
    Quantity,
    Structure,
    is_prose,
    is_word,
    may_be_product,
    names_agree,
    read_quantity,
    read_structure,
    same_quantity,
    strip_name,
    tidy,
)

Status = Literal["correct", "wrong", "unjudged"]
Outcome = tuple[Status, str]

START_SECONDS = 60.0
"""How long the worker process may take to import sympy. Not counted in an answer's time limit."""

GRACE_SECONDS = 0.25
"""How long past an answer's limit the worker may take to report that its child was stopped."""

LONGEST_ANSWER = 4000
"""Characters of the longest final answer that is looked into; beyond, only equal text is judged."""

LONGEST_FOR_SYMPY = 2000
DEEPEST_NESTING = 50
LARGEST_EXPONENT = 999
LARGEST_FACTORIAL = 999
# Spaces carry no meaning, but "1 2" is not 12.
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")

MAX_ELEMENTS = 64
MAX_DEPTH = 6


def grade(gold: str, prediction: str, *, timeout_s: float = 2.0) -> Verdict:
    """Return the verdict on `prediction`, a bare answer or a whole response, against `gold`.

    `unjudged` means that equality could not be decided. Never raises, for any two strings. Takes at most
    `timeout_s` and a little, besides the wait for other threads' comparisons and one start of the worker.
    """
    start = time.monotonic()
    answer = find_answer(prediction)
    if answer is None or not answer.strip():
        status, reason = "wrong", "no answer"
    else:
        expected = extract_answer(gold, ("boxed", "hash")) or gold
        status, reason = _judge(expected, answer, start + timeout_s)
    return Verdict(status, reason, time.monotonic() - start)


def find_answer(text: str) -> str | None:
    """Return the final answer of a response; a bare answer is returned as it is."""
    marked = extract_answer(text, "marked")
    if marked is not None:
        return marked
    if not is_prose(text):
        return text
    found = extract_answer(text, "math")
    return text if found is None and is_word(tidy(text[:LONGEST_ANSWER])) else found


def _judge(gold: str, prediction: str, deadline: float) -> Outcome:
    if gold.strip() == prediction.strip():
        return "correct", "same text"
    if len(gold) > LONGEST_ANSWER or len(prediction) > LONGEST_ANSWER:
        return "unjudged", f"longer than {LONGEST_ANSWER} characters"
    return _compare(tidy(gold), tidy(prediction), deadline, 0)


def _compare(gold: str, prediction: str, deadline: float, depth: int) -> Outcome:
    """Compare two tidied answers."""
    if not names_agree(gold, prediction):
        return "wrong", "another variable"
    values = strip_name(gold), strip_name(prediction)
    if "=" not in "".join(values):  # else one is an equation, which "y =" may belong to
        gold, prediction = values
    if _SPACE.sub("", gold) == _SPACE.sub("", prediction):
        return "correct", "same text after normalising"
    if not prediction:
        return "wrong", "no answer"
    numbers = read_quantity(gold), read_quantity(prediction)
    if numbers[0] and numbers[1]:
        return _compare_quantities(numbers[0], numbers[1])
    if (is_word(gold) or is_word(prediction)) and not may_be_product(gold, prediction):
        if depth == 0 and not is_word(gold):
            return "wrong", "no answer"
        same = gold.casefold().split() == prediction.casefold().split()
        return ("correct", "same words") if same else ("wrong", "other words")
    structures = read_structure(gold), read_structure(prediction)
    if structures[0] or structures[1]:
        found = _compare_structures(*structures, deadline, depth) if depth < MAX_DEPTH else None
        if found:
            return found
    return _ask_sympy(gold, prediction, deadline)


def _compare_quantities(gold: Quantity, prediction: Quantity) -> Outcome:
    return ("correct", "equal numbers") if same_quantity(gold, prediction) else ("wrong", "different numbers")


def _compare_structures(
    gold: Structure | None, prediction: Structure | None, deadline: float, depth: int
) -> Outcome | None:
    """Compare element by element; None where the kinds do not settle it."""
    if gold is None or prediction is None:
        one = gold or prediction
        plain_list = one is not None and one.kind == "list"
        return ("wrong", "one value against several") if plain_list else None
    if "matrix" in (gold.kind, prediction.kind) and gold.kind != prediction.kind:
        return None
    if not gold.matches_kind(prediction):
        return "wrong", f"{gold.describe()} against {prediction.describe()}"
    if max(len(gold.items), len(prediction.items)) > MAX_ELEMENTS:
        return "unjudged", f"more than {MAX_ELEMENTS} elements"
    ordered = gold.ordered or prediction.ordered
    sets = gold.kind == prediction.kind == "set"
    if not sets and (len(gold.items) != len(prediction.items) or gold.shape != prediction.shape):
        return "wrong", "another number of elements"
    if ordered:
        outcomes = [
            _compare(g, p, deadline, depth + 1) for g, p in zip(gold.items, prediction.items, strict=True)
        ]
        return _all_of(outcomes)
    if sets:
        outcomes = [_any_of(g, prediction.items, deadline, depth) for g in gold.items]
        outcomes += [_any_of(p, gold.items, deadline, depth) for p in prediction.items]
        return _all_of(outcomes)
    return _match_multiset(gold.items, prediction.items, deadline, depth)


def _match_multiset(
    golds: tuple[str, ...], predictions: tuple[str, ...], deadline: float, depth: int
) -> Outcome:
    """Pair the elements off. Greedy is enough: equality is transitive."""
    left = list(predictions)
    outcomes: list[Outcome] = []
    for gold in golds:
        results = []
        for index, prediction in enumerate(left):
            results.append(_compare(gold, prediction, deadline, depth + 1))
            if results[-1][0] == "correct":
                del left[index]
                break
        outcomes.append(_best(results))
    return _all_of(outcomes)


def _any_of(element: str, others: tuple[str, ...], deadline: float, depth: int) -> Outcome:
    results = []
    for other in others:
        results.append(_compare(element, other, deadline, depth + 1))
        if results[-1][0] == "correct":
            break
    return _best(results)


def _best(results: list[Outcome]) -> Outcome:
    order: tuple[Status, ...] = ("correct", "unjudged", "wrong")
    return min(results, key=lambda result: order.index(result[0]), default=("wrong", "an element is missing"))


def _all_of(outcomes: list[Outcome]) -> Outcome:
    """Wrong if one element is, else unjudged if one is, else correct."""
    for status in ("wrong", "unjudged"):
        for outcome in outcomes:
            if outcome[0] == status:
                return status, f"an element: {outcome[1]}"
    return "correct", "equal elements"


def _ask_sympy(gold: str, prediction: str, deadline: float) -> Outcome:
    for side in (gold, prediction):
        if hazard := sympy_hazard(side):
            return "unjudged", hazard
    return WORKER.compare(gold, prediction, deadline - time.monotonic())


def sympy_hazard(text: str) -> str:
    """Return why a text must not be handed to sympy, or "": size, nesting, towers and huge exponents."""
    if len(text) > LONGEST_FOR_SYMPY:
        return f"longer than {LONGEST_FOR_SYMPY} characters"
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > DEEPEST_NESTING:
        return f"nested more than {DEEPEST_NESTING} deep"
    powers = text.replace("**", "^").replace(" ", "")
    if re.search(r"\^(?:\w+|\{[^{}]*|\([^()]*)\)?\^", powers) or re.search(r"\^\{[^{}]*\}\^", powers):
        return "a tower of powers"
    if any(int(n[:9]) > LARGEST_EXPONENT for n in re.findall(r"\^[-+{(]*(\d+)", powers)):
        return f"an exponent above {LARGEST_EXPONENT}"
    if re.search(r"!\)*!", powers) or any(
        int(n[:9]) > LARGEST_FACTORIAL for n in re.findall(r"(\d+)[)}]*!", powers)
    ):
        return f"a factorial above {LARGEST_FACTORIAL}!"
    if any(len(n) > 300 for n in re.findall(r"\d+", powers)):
        return "a number of more than 300 digits"
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in text):
        return "control characters"
    return ""


class Worker:
    """The client of one `eval.grade_worker` process, started at the first use. Safe in any thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # process id: after a fork the pipes belong to the parent
        self._lock = threading.Lock()

    def compare(self, gold: str, prediction: str, seconds: float) -> Outcome:
        """Return what the worker says; a worker that died is started again, once. Limit: `seconds`."""
        if seconds <= 0:
            return "unjudged", "the time limit has passed"
        request = json.dumps({"gold": gold, "prediction": prediction, "seconds": seconds})
        with self._lock:
            for _ in range(2):
                if not self._start():
                    return "unjudged", "the worker process does not start"
                reply = self._exchange(request.encode() + b"\n", seconds + GRACE_SECONDS)
                if reply is None:
                    self._stop()
                    return "unjudged", f"no result within {seconds:.3g} s"
                if reply:
                    result = json.loads(reply)
                    return result["status"], result["reason"]
                self._stop()
        return "unjudged", "the worker process died twice"

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None when none runs for this process."""
        return self._process.pid if self._process and self._owner == os.getpid() else None

    def close(self) -> None:
        """End the worker process; the next comparison starts another."""
        with self._lock:
            if self._process and self._process.stdin and self._owner == os.getpid():
                self._process.stdin.close()  # it ends by itself, and so accounts for its child's CPU time
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE_SECONDS * 2)
            self._stop()

    def reset_after_fork(self) -> None:
        self._process, self._lock = None, threading.Lock()

    def _start(self) -> bool:
        if self._process and self._owner == os.getpid():
            return True
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        self._owner = os.getpid()
        # -P: a folder called eval in the working folder must not shadow this package.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "eval.grade_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
        )
        if self._exchange(b"", START_SECONDS):
            return True
        self._stop()
        return False

    def _exchange(self, line: bytes, seconds: float) -> bytes | None:
        """Send a line and return the reply, b"" when the worker died, None when it is late."""
        assert self._process and self._process.stdin and self._process.stdout
        deadline = time.monotonic() + seconds
        try:
            self._process.stdin.write(line)
        except (BrokenPipeError, OSError):
            return b""
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        reply = b""
        while not reply.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            part = os.read(descriptor, 65536)
            if not part:
                return b""
            reply += part
        return reply

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close() if stream else None


WORKER = Worker()
atexit.register(WORKER.close)
os.register_at_fork(after_in_child=WORKER.reset_after_fork)
