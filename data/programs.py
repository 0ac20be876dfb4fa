"""The built-in world of programs: a sentence for each line of a small function, and tests that nobody shows.

    # Subtract b from a. Multiply by 3. If it is 9 or more, subtract 4.
    # f(7, 4) == 5, f(2, 6) == -12
    def f(a, b):
        x = a - b
        x = x * 3
        if x >= 9:
            x = x - 4
        return x

A problem's text ends with the `def` line; the response is the body. Two calls are shown with their values,
more are kept for judging. meta has them all in the form "calls" of data.code_readers, and the shown ones
under "public", so the sandbox judges these programs as any benchmark's. In difficulty "unsaid" one sentence
names no operation ("Use 3."): only the shown calls tell which.

Demonstrations can carry bad habits on purpose (`ProgramHabits`): operands in the order in which they are
said, "at least" as min, "or more" as `>`. The imitated policy then knows the right line but prefers a wrong
one, and the tests can tell: room for reinforcement learning, without any download.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from random import Random
from typing import Any, Literal

from data.errors import UserError, did_you_mean
from data.program_lines import FIRST, NEXT, PROBES, TESTS, Line, Vector, parse_line, words
from data.schema import Problem, StepSolution
from data.steps import step_texts

HEADER = "def f(a, b):"
LAST_LINE = "    return x"
MAX_NUMBER = 199
"""No problem shows a larger number, so it is the vocabulary's bound too."""
MAX_VALUE = 9_999
NUM_SHOWN = 2
NUM_HIDDEN = 8

SWAPPED = {
    "difference": "difference_back",
    "difference_back": "difference",
    "subtract_from": "subtract",
}
CLAMPED = {"at_least": "at_most", "at_most": "at_least"}
BOUNDARY = {">=": ">", "<=": "<"}

ProgramCorruption = Literal["operation", "operand", "missing", "repeat", "name", "syntax", "chatter"]
PROGRAM_CORRUPTIONS: tuple[ProgramCorruption, ...] = (
    "operation",
    "operand",
    "missing",
    "repeat",
    "name",
    "syntax",
    "chatter",
)


@dataclass(frozen=True, slots=True)
class ProgramHabits:
    """Rates of the mistakes in a demonstration."""

    swapped: float = 0.0
    """Chance of writing a difference's operands the other way round."""
    clamped: float = 0.0
    """Chance of "at least" as min and "at most" as max."""
    boundary: float = 0.0
    """Chance of "or more" and "or less" without the equals sign."""
    confusion: float = 0.0
    """Chance of any other operation in a line."""


@dataclass(frozen=True, slots=True)
class ProgramDifficulty:
    """How problems are drawn."""

    min_lines: int
    """Statements before the return, as `max_lines`."""
    max_lines: int
    unsaid: int = 0
    """Sentences that hide their operation."""


PROGRAM_DIFFICULTIES = {
    "standard": ProgramDifficulty(2, 4),
    "hard": ProgramDifficulty(5, 6),
    "unsaid": ProgramDifficulty(2, 3, unsaid=1),
}


def make_programs(
    count: int, seed: int, *, split: str = "test", difficulty: str | ProgramDifficulty = "standard"
) -> list[Problem]:
    """Return `count` problems, the same for the same arguments.

    Splits ("train", "validation", "test") never share a function, however it is said: a hash of its values on
    PROBES decides. `level` is the number of statements. Raises UserError for an unknown split or difficulty.
    """
    if isinstance(difficulty, str):
        if difficulty not in PROGRAM_DIFFICULTIES:
            nearest = did_you_mean(difficulty, PROGRAM_DIFFICULTIES)
            raise UserError(f"unknown difficulty '{difficulty}' of the world of programs{nearest}")
        difficulty = PROGRAM_DIFFICULTIES[difficulty]
    if split not in ("train", "validation", "test"):
        raise UserError(f"unknown split '{split}' of the world of programs; known: train, validation, test")
    rng = Random(f"programs {seed} {difficulty}")
    problems: list[Problem] = []
    while len(problems) < count:
        lines, values = _draw(rng, rng.randint(difficulty.min_lines, difficulty.max_lines))
        if _split_of(values[-1]) == split:
            name = f"programs-{split}-{seed}-{len(problems)}"
            problems.append(_problem(rng, name, lines, values, difficulty.unsaid))
    return problems


def write_program(problem: Problem, rng: Random, habits: ProgramHabits) -> str:
    """Return a body for the problem with mistakes at the given rates; with `ProgramHabits()` a right one."""
    lines = [_mistaken(line, rng, habits) for line in problem.meta["lines"]]
    return "\n".join([*(line.code for line in lines), LAST_LINE])


def corrupt_program(problem: Problem, rng: Random, kind: ProgramCorruption) -> str:
    """Return the right body with one planted mistake in a statement.

    operation (another), operand (a larger number, or the other argument), missing (left out), repeat (stands
    twice), name (reads a variable that does not exist), syntax (does not compile), chatter (a sentence of the
    problem stands before it).
    """
    lines: list[Line] = list(problem.meta["lines"])
    code = [line.code for line in lines]
    at = rng.randrange(1, len(lines)) if kind == "operand" else rng.randrange(len(lines))
    line = lines[at]
    match kind:
        case "operation":
            code[at] = rng.choice(line.alternatives()).code
        case "operand":
            code[at] = replace(line, operand=_other_operand(line, rng)).code
        case "missing":
            del code[at]
        case "repeat":
            code.insert(at, code[at])
        case "name":
            left, equals, right = code[at].rpartition("= ")
            code[at] = f"{left}{equals}f + {right}"
        case "syntax":
            code[at] = code[at] + rng.choice((" +", " (", " ="))
        case "chatter":
            code.insert(at, f"    {line.sentence}")
    return "\n".join([*code, LAST_LINE])


def judge_blocks(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """Return for each step (a statement, with what stands under it) whether the body is on the way after it.

    On the way: x has, for every probe, the value that it has after some line of the reference, none earlier
    than before. The return is right where x is the answer. What is no statement of the language is wrong, and
    so is everything behind a wrong step.
    """
    way: tuple[Vector, ...] = problem.meta["values"]
    verdicts: list[bool] = []
    x: Vector | None = None
    reached, is_right, has_returned = 0, True, False
    for step in steps:
        line = parse_line(step)
        if has_returned or not is_right:
            is_right = False
        elif step == LAST_LINE:
            has_returned, is_right = True, x == way[-1]
        else:
            x = line.run(x) if line else None
            later = [k for k in range(reached, len(way)) if way[k] == x]
            is_right = bool(later)
            reached = later[0] if later else reached
        verdicts.append(is_right)
    return verdicts


def label_program(problem: Problem, response: str) -> StepSolution:
    """Return the response cut into blocks, labelled by `judge_blocks`: 1 while it is on the way, then 0."""
    steps = step_texts(response, "code_block")
    rights = judge_blocks(problem, steps)
    return StepSolution(
        problem=problem.text,
        steps=tuple(steps),
        labels=tuple(map(float, rights)),
        id=problem.id,
        source="programs",
        label_kind="oracle",
        first_error=rights.index(False) if False in rights else -1,
        answer_correct=bool(rights) and rights[-1] and steps[-1] == LAST_LINE,
    )


def vocabulary() -> list[str]:
    """Return every word, number and sign of the world, each once, without spaces."""
    return [*words(), *map(str, range(MAX_NUMBER + 1))]


def _draw(rng: Random, count: int) -> tuple[list[Line], list[Vector]]:
    """Statements, and x after each: no two values of x are the same, so no statement is idle."""
    while True:
        lines: list[Line] = []
        values: list[Vector] = []
        while len(lines) < count:
            line = _draw_line(rng) if lines else Line(rng.choice(tuple(FIRST)))
            x = line.run(values[-1] if lines else None)
            if x is not None and x not in values:
                lines.append(line)
                values.append(x)
        right = values[-1]
        showable = sum(abs(value) <= MAX_NUMBER for value in right)
        if len(set(right)) > 4 and max(map(abs, right)) <= MAX_VALUE and showable >= NUM_SHOWN:
            return lines, values


def _draw_line(rng: Random) -> Line:
    kind = rng.choice((*NEXT, "if", "if"))
    if kind == "if":
        kind = rng.choice(("add", "subtract", "multiply"))
        return Line(kind, rng.randint(2, 9), rng.choice(tuple(TESTS)), rng.randint(2, 12))
    if kind in ("multiply", "divide"):
        return Line(kind, rng.randint(2, 3))
    if kind == "remainder" or rng.random() < 0.7:
        return Line(kind, rng.randint(2, 9))
    return Line(kind, rng.choice(("a", "b")))


def _problem(rng: Random, name: str, lines: list[Line], values: list[Vector], num_unsaid: int) -> Problem:
    right = values[-1]
    plain = [k for k, line in enumerate(lines) if k and not line.test]
    unsaid = rng.sample(plain, min(num_unsaid, len(plain)))
    mistaken: list[Vector] = []
    for k, line in enumerate(lines):
        # The calls alone tell of an unsaid line, so they must speak against all others.
        others = line.alternatives() if k in unsaid else _likely(line, rng)
        for other in others:
            x = other.run(values[k - 1] if k else None)
            for later in lines[k + 1 :]:
                x = later.run(x)
            if x is not None and x != right:
                mistaken.append(x)
    small = [k for k, value in enumerate(right) if abs(value) <= MAX_NUMBER]
    shown = _telling(rng, small, right, mistaken, NUM_SHOWN)
    hidden = _telling(rng, [k for k in range(len(PROBES)) if k not in shown], right, mistaken, NUM_HIDDEN)
    tests: dict[str, list[Any]] = {
        "calls": [list(PROBES[k]) for k in (*shown, *hidden)],
        "expected": [right[k] for k in (*shown, *hidden)],
    }
    sentences = [line.hidden_sentence if k in unsaid else line.sentence for k, line in enumerate(lines)]
    examples = [f"f({PROBES[k][0]}, {PROBES[k][1]}) == {right[k]}" for k in shown]
    meta: dict[str, Any] = {
        "form": "calls",
        "entry_point": "f",
        "prefix": HEADER + "\n",
        **tests,
        "public": {key: values[:NUM_SHOWN] for key, values in tests.items()},
        "lines": tuple(lines),
        "values": tuple(values),
    }
    return Problem(
        id=name,
        text=f"# {' '.join(sentences)}\n# {', '.join(examples)}\n{HEADER}",
        answer=sha256(json.dumps(tests).encode()).hexdigest()[:16],
        source="programs",
        solution="\n".join([*(line.code for line in lines), LAST_LINE]),
        level=len(lines),
        meta=meta,
    )


def _telling(
    rng: Random, choices: Sequence[int], right: Vector, wrong: Sequence[Vector], count: int
) -> list[int]:
    """Return `count` probes that tell `right` from as many of `wrong` as they can: greedily, then any."""
    order = rng.sample(choices, len(choices))
    left = list(wrong)
    chosen: list[int] = []
    while left and len(chosen) < count:
        told, best = max((sum(x[k] != right[k] for x in left), k) for k in order)
        if not told:
            break
        chosen.append(best)
        order.remove(best)
        left = [x for x in left if x[best] == right[best]]
    return chosen + order[: count - len(chosen)]


def _likely(line: Line, rng: Random) -> list[Line]:
    """The habits' mistakes in a line, another operation, another number."""
    found = [*_habitual(line), rng.choice(line.alternatives())]
    return found + ([replace(line, operand=line.operand + 1)] if isinstance(line.operand, int) else [])


def _habitual(line: Line) -> list[Line]:
    """The habits' mistakes in a line."""
    kinds = [table[line.kind] for table in (SWAPPED, CLAMPED) if line.kind in table]
    found = [replace(line, kind=kind) for kind in kinds]
    return found + ([replace(line, test=BOUNDARY[line.test])] if line.test in BOUNDARY else [])


def _mistaken(line: Line, rng: Random, habits: ProgramHabits) -> Line:
    if rng.random() < habits.confusion:
        return rng.choice(line.alternatives())
    for table, rate in ((SWAPPED, habits.swapped), (CLAMPED, habits.clamped)):
        if line.kind in table and rng.random() < rate:
            return replace(line, kind=table[line.kind])
    if line.test in BOUNDARY and rng.random() < habits.boundary:
        return replace(line, test=BOUNDARY[line.test])
    return line


def _other_operand(line: Line, rng: Random) -> int | str:
    if isinstance(line.operand, int):
        return line.operand + rng.choice((1, 2))
    return "b" if line.operand == "a" else "a"


def _split_of(values: Vector) -> str:
    bucket = zlib.crc32(json.dumps(values).encode()) % 20
    return {0: "test", 1: "validation"}.get(bucket, "train")
