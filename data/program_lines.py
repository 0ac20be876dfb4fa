"""The language of the world of programs: one statement a line, as text, as a sentence, and as what it does.

    line = Line("subtract", 4, test=">=", bound=9)
    line.sentence     # "If it is 9 or more, subtract 4."
    line.code         # "    if x >= 9:\\n        x = x - 4"

Not an interpreter of Python: it knows these statements and no others. Programs are judged by running them
(eval.sandbox); this is how problems are made, and what the exact oracle compares.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import add, floordiv, ge, gt, le, lt, mod, mul, sub
from random import Random

Vector = tuple[int, ...]
"""The value of x for each of PROBES."""


def _probes() -> tuple[tuple[int, int], ...]:
    pairs = [(a, b) for a in range(-9, 21) for b in range(-9, 21)]
    return tuple(Random("probes of the world of programs").sample(pairs, 40))


PROBES = _probes()
"""Arguments (a, b) by whose values functions are compared, and from which tests are chosen."""
_A, _B = (tuple(column) for column in zip(*PROBES, strict=True))


@dataclass(frozen=True, slots=True)
class Operation:
    """How it is said, how it is written, and what it does."""

    phrase: str
    code: str
    run: Callable[[int, int], int]
    """Of (a, b) in a first line, of (x, operand) in a later one."""


FIRST = {
    "sum": Operation("add a and b", "x = a + b", add),
    "difference": Operation("subtract b from a", "x = a - b", sub),
    "difference_back": Operation("subtract a from b", "x = b - a", lambda a, b: b - a),
    "product": Operation("multiply a by b", "x = a * b", mul),
    "larger": Operation("take the larger of a and b", "x = max(a, b)", max),
    "smaller": Operation("take the smaller of a and b", "x = min(a, b)", min),
}
NEXT = {
    "add": Operation("add {}", "x = x + {}", add),
    "subtract": Operation("subtract {}", "x = x - {}", sub),
    "subtract_from": Operation("subtract it from {}", "x = {} - x", lambda x, v: v - x),
    "multiply": Operation("multiply by {}", "x = x * {}", mul),
    "divide": Operation("divide by {}", "x = x // {}", floordiv),
    "remainder": Operation("keep the remainder by {}", "x = x % {}", mod),
    "at_least": Operation("make it at least {}", "x = max(x, {})", max),
    "at_most": Operation("make it at most {}", "x = min(x, {})", min),
}
TESTS: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    ">": ("if it is above {}", gt),
    ">=": ("if it is {} or more", ge),
    "<": ("if it is below {}", lt),
    "<=": ("if it is {} or less", le),
}
UNSAID = "use {}"
"""A sentence that hides its operation."""


@dataclass(frozen=True, slots=True)
class Line:
    """One statement: `x = ...`, or the same under an `if`."""

    kind: str
    operand: int | str | None = None
    """A number, "a", "b", or None in a first line."""
    test: str | None = None
    bound: int = 0

    @property
    def sentence(self) -> str:
        """What the task says of the line."""
        phrase = self.operation.phrase.format(self.operand)
        if self.test:
            phrase = f"{TESTS[self.test][0].format(self.bound)}, {phrase}"
        return _as_sentence(phrase)

    @property
    def hidden_sentence(self) -> str:
        """The sentence that names the operand only."""
        return _as_sentence(UNSAID.format(self.operand))

    @property
    def code(self) -> str:
        """The statement, indented as in the function's body."""
        code = self.operation.code.format(self.operand)
        return f"    if x {self.test} {self.bound}:\n        {code}" if self.test else f"    {code}"

    @property
    def operation(self) -> Operation:
        """The line's operation, as the first line or a later one has it."""
        return FIRST[self.kind] if self.kind in FIRST else NEXT[self.kind]

    def run(self, x: Vector | None) -> Vector | None:
        """Return x after the line; None where it has none (x read before it is set, division by zero)."""
        is_first = self.kind in FIRST
        if x is None and (self.test or not is_first):
            return None
        left, right = (_A, _B) if is_first else (x or (), self._operands())
        try:
            after = tuple(map(self.operation.run, left, right))
        except ZeroDivisionError:  # of some probe, perhaps not of those under the `if`: no line of ours
            return None
        if self.test is None or x is None:
            return after
        holds = TESTS[self.test][1]
        return tuple(new if holds(old, self.bound) else old for old, new in zip(x, after, strict=True))

    def _operands(self) -> Vector:
        if isinstance(self.operand, int):
            return (self.operand,) * len(PROBES)
        return _A if self.operand == "a" else _B

    def alternatives(self) -> list["Line"]:
        """Return the line with every other operation in place of its own."""
        table = FIRST if self.kind in FIRST else NEXT
        return [replace(self, kind=kind) for kind in table if kind != self.kind]


def _as_sentence(phrase: str) -> str:
    return phrase[0].upper() + phrase[1:] + "."


def _pattern(code: str) -> re.Pattern[str]:
    return re.compile(re.escape(code).replace(r"\{\}", r"(\d{1,3}|[ab])"))


_FORMS = [(kind, _pattern(operation.code)) for kind, operation in {**FIRST, **NEXT}.items()]
_IF = re.compile(r" {4}if x (>=|<=|>|<) (\d{1,3}):\n {8}(x = .*)")


def parse_line(step: str) -> Line | None:
    """Return the statement that a step of a body is; None for whatever is not of the language."""
    match = _IF.fullmatch(step)
    if match is None and not step.startswith("    x"):
        return None
    code = match[3] if match else step[4:]
    for kind, pattern in _FORMS:
        found = pattern.fullmatch(code)
        if found:
            value = found[1] if pattern.groups else None
            operand = int(value) if value and value.isdigit() else value
            return Line(kind, operand, match[1], int(match[2])) if match else Line(kind, operand)
    return None


def words() -> list[str]:
    """Return every word and sign that sentences and code are made of, numbers apart."""
    phrases = [operation.phrase for operation in (*FIRST.values(), *NEXT.values())]
    phrases += [UNSAID, *(phrase for phrase, _ in TESTS.values())]
    found = {word for phrase in phrases for word in phrase.split() if "{" not in word}
    found |= {phrase.split()[0].capitalize() for phrase in phrases}
    found |= {"def", "f", "if", "max", "min", "return", "x"}
    return [*sorted(found), "==", ">=", "<=", "//", *"+-*%=><(),.:#"]
