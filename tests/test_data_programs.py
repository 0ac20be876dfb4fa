"""The world of programs: problems, their tests, the oracle, the splitters of programs and the tokenizer."""

import re
from random import Random

import pytest

from data.errors import UserError
from data.program_lines import FIRST, NEXT, PROBES, TESTS, Line, parse_line
from data.programs import (
    BOUNDARY,
    CLAMPED,
    LAST_LINE,
    PROGRAM_CORRUPTIONS,
    SWAPPED,
    ProgramHabits,
    corrupt_program,
    judge_blocks,
    label_program,
    make_programs,
    write_program,
)
from data.steps import split_steps, step_texts
from data.world_tokenizer import program_tokenizer

TRAIN = make_programs(400, 3, split="train")


def compiled(problem, body):
    """The function itself, by Python and not by the world's own arithmetic."""
    namespace = {}
    exec(f"{problem.text}\n{body}", namespace)
    return namespace["f"]


def passes(problem, body, tests=None):
    tests = tests or problem.meta
    function = compiled(problem, body)
    try:
        return all(
            function(*arguments) == value
            for arguments, value in zip(tests["calls"], tests["expected"], strict=True)
        )
    except (NameError, TypeError, ZeroDivisionError):
        return False


def test_the_reference_passes_its_tests_and_the_shown_calls_are_true():
    for problem in [*TRAIN[:100], *make_programs(50, 0, difficulty="hard")]:
        assert passes(problem, problem.solution)
        shown = re.findall(r"f\((-?\d+), (-?\d+)\) == (-?\d+)", problem.text)
        function = compiled(problem, problem.solution)
        assert len(shown) == 2
        assert all(function(int(a), int(b)) == int(value) for a, b, value in shown)
        public = problem.meta["public"]
        assert [[int(a), int(b)] for a, b, _ in shown] == public["calls"]
        assert len(problem.meta["calls"]) == 10


def test_problems_are_the_same_for_the_same_arguments_and_splits_share_no_function():
    assert make_programs(20, 3, split="train") == TRAIN[:20]

    def values(problem):
        return tuple(compiled(problem, problem.solution)(a, b) for a, b in PROBES)

    held_out = make_programs(60, 5, split="test") + make_programs(60, 5, split="validation")
    assert not {values(p) for p in TRAIN} & {values(p) for p in held_out}
    with pytest.raises(UserError, match="split 'dev'"):
        make_programs(1, 0, split="dev")
    with pytest.raises(UserError, match=r"difficulty 'standart'.*standard"):
        make_programs(1, 0, difficulty="standart")


def test_the_tests_tell_the_habits_mistakes():
    """Otherwise a bad habit would be paid, and nothing could unlearn it."""
    mistaken = {"hidden": 0, "public": 0, "all": 0}
    habits = ProgramHabits(swapped=1.0, clamped=1.0, boundary=1.0)
    for problem in TRAIN:
        wrong = write_program(problem, Random(0), habits)
        function, right = compiled(problem, wrong), compiled(problem, problem.solution)
        if all(function(a, b) == right(a, b) for a, b in PROBES):
            continue
        mistaken["all"] += 1
        mistaken["hidden"] += not passes(problem, wrong)
        mistaken["public"] += not passes(problem, wrong, problem.meta["public"])
    assert mistaken["all"] > 250
    assert mistaken["hidden"] == mistaken["all"]
    assert mistaken["public"] > 0.9 * mistaken["all"]


def test_habits_write_the_wrong_line_at_their_rate():
    problem = next(p for p in TRAIN if "    x = a - b" in p.solution)
    wrong = write_program(problem, Random(1), ProgramHabits(swapped=1.0))
    assert "    x = b - a" in wrong and "    x = a - b" not in wrong
    assert write_program(problem, Random(1), ProgramHabits()) == problem.solution
    rng, habits = Random(2), ProgramHabits(swapped=0.25)
    share = sum("b - a" in write_program(problem, rng, habits) for _ in range(2000)) / 2000
    assert abs(share - 0.25) < 0.04
    for table, kinds in ((SWAPPED, FIRST | NEXT), (CLAMPED, NEXT), (BOUNDARY, TESTS)):
        assert all(a in kinds and b in kinds for a, b in table.items())


def test_a_line_says_writes_and_computes_the_same():
    """Every statement of the language, run by Python over the probes."""
    operands = (3, "a", "b")
    lines = [Line(kind) for kind in FIRST] + [Line(kind, v) for kind in NEXT for v in operands]
    lines += [Line("subtract", 4, test, 9) for test in TESTS]
    start = tuple(a + b for a, b in PROBES)
    for line in lines:
        program = f"def f(a, b, x):\n{line.code}\n    return x"
        namespace = {}
        exec(program, namespace)
        try:
            expected = tuple(namespace["f"](a, b, x) for (a, b), x in zip(PROBES, start, strict=True))
        except ZeroDivisionError:
            expected = None
        assert line.run(start) == expected, line
        assert parse_line(line.code) == line
    assert Line("subtract", 4, ">=", 9).sentence == "If it is 9 or more, subtract 4."
    assert Line("at_least", "b").sentence == "Make it at least b."
    assert Line("add", 2).run(None) is None


@pytest.mark.parametrize(
    "text",
    ["x = a + b", "    x = a + b ", "    x = y + 2", "    y = x", "    x = x ** 2", "", "    return x"],
)
def test_what_is_not_of_the_language_is_no_line(text):
    assert parse_line(text) is None


def test_the_oracle_knows_the_first_wrong_statement():
    problem = next(p for p in TRAIN if len(p.meta["lines"]) == 3)
    steps = step_texts(problem.solution, "code_block")
    assert judge_blocks(problem, steps) == [True] * 4
    assert label_program(problem, problem.solution).first_error == -1
    other = problem.meta["lines"][1].alternatives()[0].code
    assert judge_blocks(problem, [steps[0], other, *steps[2:]]) == [True, False, False, False]
    assert judge_blocks(problem, [*steps[:2], LAST_LINE]) == [True, True, False]  # returns too early
    assert judge_blocks(problem, [*steps, steps[-1]])[-1] is False  # behind the return
    # Another way to the same value of x is as right.
    assert judge_blocks(problem, [steps[0], "    x = x + 1", "    x = x - 1"]) == [True, False, False]
    assert judge_blocks(problem, []) == []


@pytest.mark.parametrize("kind", PROGRAM_CORRUPTIONS)
def test_a_planted_mistake_fails_the_tests_and_the_oracle_sees_it(kind):
    rng, wrong, agreed = Random(7), 0, 0
    for problem in TRAIN[:150]:
        body = corrupt_program(problem, rng, kind)
        assert body != problem.solution
        labelled = label_program(problem, body)
        try:
            is_right = passes(problem, body)
        except SyntaxError:
            is_right = False
        wrong += not is_right
        agreed += is_right == labelled.answer_correct
    assert wrong > (0.4 if kind == "repeat" else 0.75) * 150  # a line said twice may change nothing
    assert agreed >= 0.94 * 150


def test_steps_of_programs_keep_their_indentation():
    body = "    x = a + b\n    if x > 3:\n        x = x - 1\n    else:\n        x = 2\n\n    return x\n"
    assert step_texts(body, "code_block") == [
        "    x = a + b",
        "    if x > 3:\n        x = x - 1\n    else:\n        x = 2",
        "    return x",
    ]
    assert step_texts(body, "code_line")[1:3] == ["    if x > 3:", "        x = x - 1"]
    assert "\n".join(step_texts(body, "code_line")) == body.replace("\n\n", "\n").rstrip()


def test_a_head_is_a_block_of_its_own_and_brackets_close_theirs():
    program = (
        "import sys\n\ndef solve(n):\n    values = [\n        1,\n    ]\n    for v in values:\n"
        "        try:\n            n += v\n        except ValueError:\n            pass\n    return n\n"
        "print(solve(2))"
    )
    *first, loop, last, call = step_texts(program, "code_block")
    assert first == ["import sys", "def solve(n):", "    values = [\n        1,\n    ]"]
    assert loop.startswith("    for v in values:\n") and loop.endswith("\n            pass")
    assert (last, call) == ("    return n", "print(solve(2))")
    assert split_steps(" \n\t\n", "code_block") == []
    assert step_texts("no program at all", "code_block") == ["no program at all"]


@pytest.mark.parametrize("splitter", ["code_line", "code_block"])
def test_spans_of_random_text_are_ordered_and_lose_no_character(splitter):
    rng = Random(5)
    for _ in range(300):
        text = "".join(rng.choices("a \n\t:)", k=rng.randint(0, 40))) + rng.choice(("", "\nelse", "def f"))
        spans = split_steps(text, splitter)
        assert all(a < b for a, b in spans)
        assert all(b <= c for (_, b), (c, _) in zip(spans, spans[1:], strict=False))
        covered = set().union(*(range(a, b) for a, b in spans))
        assert all(i in covered for i, c in enumerate(text) if not c.isspace())


def test_texts_of_the_world_round_trip():
    tokenizer = program_tokenizer()
    for problem in TRAIN[:200] + make_programs(50, 1, difficulty="unsaid"):
        text = f"{problem.text}\n{problem.solution}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_an_unsaid_sentence_names_only_its_operand():
    for problem in make_programs(50, 2, difficulty="unsaid"):
        plain = [line for line in problem.meta["lines"][1:] if not line.test]
        assert problem.text.count(" Use ") == min(1, len(plain))
        assert not plain or any(f" {line.hidden_sentence}" in problem.text for line in plain)
