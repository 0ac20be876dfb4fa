"""The built-in offline world: word problems about who has how many, with an oracle exact for every step.

A problem is a chain of dependent relations; its solution has one step a line and ends in GSM8K's "#### N":

    Ann has 12. Bob has 5 fewer than Ann. Cal has 2 times as many as Bob. How many does Cal have?

    Bob has 12 - 5 = 7
    Cal has 7 * 2 = 14
    #### 14

Nothing here is learned or downloaded: it exists so that a policy, a reward model and a whole alignment run
can be trained and *checked* in minutes on a laptop. Demonstrations can carry bad habits on purpose
(`Habits`): the imitated policy then knows the right move but prefers a wrong one, which leaves honest room
for reinforcement learning.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from data.errors import UserError, did_you_mean
from data.schema import Problem, StepSolution
from data.steps import step_texts

NAMES = ("Ann", "Bob", "Cal", "Dan", "Eva", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned")
PHRASES = {"+": "{} more than", "-": "{} fewer than", "*": "{} times as many as"}
MAX_NUMBER = 150
"""No step shows a larger number, not even a wrong demonstration: it is the vocabulary's bound too."""

StepVerdict = Literal["right", "wrong", "not_a_step"]
Corruption = Literal["operation", "operand", "slip", "person", "repeat", "chatter", "answer"]
CORRUPTIONS: tuple[Corruption, ...] = (
    "operation",
    "operand",
    "slip",
    "person",
    "repeat",
    "chatter",
    "answer",
)


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How problems are drawn. Difficulty grows with the number of dependent operations."""

    min_operations: int
    max_operations: int
    distractors: int = 0
    """Relations that the answer does not need."""
    shuffle: bool = False
    """State the relations in random order instead of in the order in which they are needed."""
    max_value: int = 60


DIFFICULTIES = {
    "standard": Difficulty(2, 4),
    "hard": Difficulty(5, 8, distractors=2),
    "shuffled": Difficulty(3, 6, distractors=1, shuffle=True),
}


@dataclass(frozen=True, slots=True)
class Habits:
    """Rates of the mistakes in a demonstration. Later steps follow consistently from a wrong value."""

    fewer_as_more: float = 0.0
    """Chance of solving "fewer than" with +."""
    times_as_more: float = 0.0
    """Chance of solving "times as many as" with +."""
    slip: float = 0.0
    """Chance of a result that is off by one."""
    confusion: float = 0.0
    """Chance of solving a step with an operation drawn at random from the wrong two."""


@dataclass(frozen=True, slots=True)
class Relation:
    """`person` has `operand` `op` `source`; a given amount has op "" and its value as operand."""

    person: str
    op: str
    operand: int
    source: str
    value: int
    """What the person truly has."""

    @property
    def sentence(self) -> str:
        """What the problem says of the person."""
        if not self.op:
            return f"{self.person} has {self.operand}."
        return f"{self.person} has {PHRASES[self.op].format(self.operand)} {self.source}."


def make_problems(
    count: int, seed: int, *, split: str = "test", difficulty: str | Difficulty = "standard"
) -> list[Problem]:
    """Return `count` problems, the same for the same arguments.

    Splits ("train", "validation", "test") never share a problem text: a hash of the text decides. `level` is
    the number of operations needed. Raises UserError for an unknown split or difficulty.
    """
    if isinstance(difficulty, str):
        if difficulty not in DIFFICULTIES:
            raise UserError(f"unknown difficulty '{difficulty}'" + did_you_mean(difficulty, DIFFICULTIES))
        difficulty = DIFFICULTIES[difficulty]
    if split not in ("train", "validation", "test"):
        raise UserError(f"unknown split '{split}' of the arithmetic world; known: train, validation, test")
    rng = Random(f"arithmetic {seed} {difficulty}")
    problems: list[Problem] = []
    while len(problems) < count:
        problem = _draw(rng, difficulty, f"arithmetic-{split}-{seed}-{len(problems)}")
        if _split_of(problem.text) == split:
            problems.append(problem)
    return problems


def demonstrate(problem: Problem, rng: Random, habits: Habits) -> str:
    """Return a worked solution with mistakes at the given rates; with `Habits()` it is the gold solution."""
    mistaken = {"-": habits.fewer_as_more, "*": habits.times_as_more}
    while True:
        lines = []
        shown = {r.person: r.value for r in problem.meta["relations"] if not r.op}
        for relation in problem.meta["chain"]:
            op = relation.op
            if rng.random() < mistaken.get(op, 0.0):
                op = "+"
            if habits.confusion and rng.random() < habits.confusion:
                op = rng.choice([o for o in "+-*" if o != relation.op])
            left = shown[relation.source]
            value = _apply(op, left, relation.operand)
            if rng.random() < habits.slip:
                value += rng.choice((-1, 1))
            if not 0 <= value <= MAX_NUMBER:
                break  # outside the vocabulary: draw the mistakes again
            shown[relation.person] = value
            lines.append(_line(relation.person, left, op, relation.operand, value))
        else:
            return "\n".join([*lines, f"#### {shown[problem.meta['asked']]}"])


_STEP = re.compile(r"(\w+) has (\d+) ([+\-*]) (\d+) = (\d+)")
_ANSWER = re.compile(r"#### (-?\d+)")


def judge_steps(problem: Problem, steps: Sequence[str]) -> list[StepVerdict]:
    """Return the exact verdict on each step by itself, whatever text it is.

    A step is right when its person, left operand, operation, operand and value are those of a relation of the
    problem whose source is given or was rightly derived before, and it repeats nothing; the answer line is
    right when its number is the true answer. Text of neither form, or after the answer line, is not a step.
    """
    relations = {r.person: r for r in problem.meta["relations"]}
    known = {r.person for r in relations.values() if not r.op}
    verdicts: list[StepVerdict] = []
    answered = False
    for step in steps:
        answer, match = _ANSWER.fullmatch(step), _STEP.fullmatch(step)
        if answered or not (answer or match):
            verdicts.append("not_a_step")
            continue
        if answer:
            answered = True
            verdicts.append("right" if answer[1] == problem.answer else "wrong")
            continue
        assert match
        person, left, op, operand, value = match[1], int(match[2]), match[3], int(match[4]), int(match[5])
        relation = relations.get(person)
        right = (
            relation is not None
            and person not in known
            and relation.source in known
            and (op, operand, value) == (relation.op, relation.operand, relation.value)
            and left == relations[relation.source].value
        )
        if right:
            known.add(person)
        verdicts.append("right" if right else "wrong")
    return verdicts


def label_solution(problem: Problem, response: str) -> StepSolution:
    """Return the response cut into steps with prefix labels: 1 while every step so far is right, then 0."""
    steps = step_texts(response, "newline")
    verdicts = judge_steps(problem, steps)
    wrong = [v != "right" for v in verdicts]
    first_error = wrong.index(True) if True in wrong else -1
    labels = [1.0 if first_error < 0 or k < first_error else 0.0 for k in range(len(steps))]
    answer = _ANSWER.fullmatch(steps[-1]) if steps else None
    return StepSolution(
        problem=problem.text,
        steps=tuple(steps),
        labels=tuple(labels),
        id=problem.id,
        source="arithmetic",
        label_kind="oracle",
        first_error=first_error,
        answer_correct=bool(answer and answer[1] == problem.answer),
    )


def corrupt(problem: Problem, rng: Random, kind: Corruption) -> str:
    """Return the gold solution with one planted mistake of a kind; what follows it is left as it was.

    operation, operand, slip (result off by one), person (another name), repeat (a line twice), chatter (a
    line that is no step), answer (wrong last line).
    """
    lines = demonstrate(problem, rng, Habits()).split("\n")
    at = len(lines) - 1 if kind == "answer" else rng.randrange(len(lines) - 1)
    if kind == "answer":
        lines[at] = f"#### {_other(int(problem.answer), rng)}"
    elif kind == "repeat":
        lines.insert(at + 1, lines[at])
    elif kind == "chatter":
        lines.insert(at, rng.choice(("How many does Ann have?", "Bob has", "####", "= = =")))
    else:
        match = _STEP.fullmatch(lines[at])
        assert match, lines[at]
        person, op = match[1], match[3]
        left, operand, value = int(match[2]), int(match[4]), int(match[5])
        if kind == "operation":
            op = rng.choice([o for o in "+-*" if o != op and 0 <= _apply(o, left, operand) <= MAX_NUMBER])
            value = _apply(op, left, operand)
        elif kind == "operand":
            operand = rng.choice([n for n in range(2, 10) if n != operand])
            value = min(max(_apply(op, left, operand), 0), MAX_NUMBER)
        elif kind == "slip":
            value = _other(value, rng)
        elif kind == "person":
            person = rng.choice([n for n in NAMES if n != person])
        lines[at] = _line(person, left, op, operand, value)
    return "\n".join(lines)


def vocabulary() -> list[str]:
    """Return every word, number and sign of the world, each once, without spaces."""
    words = {"has", "more", "fewer", "than", "times", "as", "many", "How", "does", "have", "####"}
    return [*NAMES, *sorted(words), *"+-*=.?", *map(str, range(MAX_NUMBER + 1))]


def _draw(rng: Random, difficulty: Difficulty, name: str) -> Problem:
    count = rng.randint(difficulty.min_operations, difficulty.max_operations)
    people = rng.sample(NAMES, count + 1 + difficulty.distractors)
    start = rng.randint(3, min(40, difficulty.max_value))
    relations = [Relation(people[0], "", start, "", start)]
    for person in people[1 : count + 1]:
        relations.append(_relate(rng, person, relations[-1], difficulty.max_value))
    chain, asked = relations[1:], relations[-1]
    for person in people[count + 1 :]:
        at = rng.randrange(len(relations))
        distractor = _relate(rng, person, relations[at], difficulty.max_value)
        relations.insert(rng.randint(at + 1, len(relations)), distractor)
    if difficulty.shuffle:
        rng.shuffle(relations)
    question = f"How many does {asked.person} have?"
    return Problem(
        id=name,
        text=" ".join([*(r.sentence for r in relations), question]),
        answer=str(asked.value),
        source="arithmetic",
        solution="\n".join(
            [
                *(
                    _line(r.person, s.value, r.op, r.operand, r.value)
                    for s, r in _with_sources(chain, relations)
                ),
                f"#### {asked.value}",
            ]
        ),
        level=count,
        meta={"relations": tuple(relations), "chain": tuple(chain), "asked": asked.person},
    )


def _relate(rng: Random, person: str, source: Relation, max_value: int) -> Relation:
    """A new person's amount from a known one, within [1, max_value]."""
    while True:
        op = rng.choices("+-*", weights=(9, 6, 5))[0]
        operand = rng.randint(2, 3) if op == "*" else rng.randint(2, 9)
        value = _apply(op, source.value, operand)
        if 1 <= value <= max_value:
            return Relation(person, op, operand, source.person, value)


def _with_sources(
    chain: Sequence[Relation], relations: Sequence[Relation]
) -> list[tuple[Relation, Relation]]:
    by_name = {r.person: r for r in relations}
    return [(by_name[r.source], r) for r in chain]


def _line(person: str, left: int, op: str, operand: int, value: int) -> str:
    return f"{person} has {left} {op} {operand} = {value}"


def _apply(op: str, left: int, operand: int) -> int:
    return {"+": left + operand, "-": left - operand, "*": left * operand}[op]


def _other(value: int, rng: Random) -> int:
    return value + 1 if value == 0 or rng.random() < 0.5 else value - 1


def _split_of(text: str) -> str:
    bucket = zlib.crc32(text.encode()) % 20
    return {0: "test", 1: "validation"}.get(bucket, "train")
