"""The benchmarks by name: where their problems come from, how they are put to a model, how they are graded.

    problems = read_benchmark("gsm8k", limit=100)
    verdict = make_grader("gsm8k")(problems[0], response)

A benchmark is one line of BENCHMARKS. Nothing is generated here: that is eval.run.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data.errors import UserError, did_you_mean
from data.own import OwnGrader, listed
from data.plugins import Call, installed, is_plugin, load_plugin
from data.protocols import Grader
from data.schema import Problem, Verdict
from data.sources import HubError, Source
from eval.answers import CHAINS

NO_ANSWER = "no answer"
"""Reason of the verdict on a response without an answer in the benchmark's form; eval.run counts these."""
NUM_MADE = 500
"""Problems of a built-in world unless told otherwise: it has no end."""

# A number of more than 40 digits is no answer of this world, and int() refuses thousands of them.
_ANSWER_LINE = re.compile(r"####[ \t]*(-?[0-9]{1,40})")


@dataclass(frozen=True, slots=True)
class Benchmark:
    name: str
    description: str
    template: str
    """Prompt template of data.prompts that it is usually put in."""
    chain: tuple[str, ...]
    """Answer conventions of eval.answers, tried in this order."""
    max_new_tokens: int
    """Usual length limit of a response, in tokens."""
    read: Callable[..., list[Problem]]
    """(source, *, split, limit, difficulty, seed) -> problems."""
    judges: Literal["answer", "program"] = "answer"
    """program: the response is code, which the sandbox runs; `chain` plays no part."""
    validation_split: str | None = None
    """Split to watch while training on "train"; None: it has none besides the one that is reported."""
    grade: Callable[..., object] | None = None
    """A grader of the user's own (data.own.OwnGrader says what it takes and returns); None: by `judges`."""


def _read_made(
    name: str, source: str | Path | None, *, split: str | None, limit: int | None, difficulty: str, seed: int
) -> list[Problem]:
    """Problems of a built-in world."""
    from data.arithmetic import make_problems
    from data.programs import make_programs

    if source is not None:
        raise UserError(f"benchmark '{name}' makes its own problems, got source '{source}'; leave source out")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}; leave it out for {NUM_MADE} problems")
    make = {"arithmetic": make_problems, "programs": make_programs}[name]
    return make(NUM_MADE if limit is None else limit, seed, split=split or "test", difficulty=difficulty)


def _read_prompts(
    source: str | Path | None,
    *,
    split: str | None,
    limit: int | None,
    difficulty: str,  # noqa: ARG001 - has none
    seed: int,  # noqa: ARG001 - the rows are fixed
) -> list[Problem]:
    from data.preference_readers import read_prompts

    if source is None:
        raise UserError("benchmark 'prompts' has no data of its own; give a file of rows with a prompt")
    return read_prompts(source, split=split or "train", limit=limit)


def _read_stored(
    name: str,
    is_code: bool,
    source: Source | None,
    *,
    split: str | None,
    limit: int | None,
    difficulty: str,
    seed: int,  # noqa: ARG001 - the rows are fixed
) -> list[Problem]:
    from data.code_readers import read_code_problems
    from data.task_readers import read_problems

    if difficulty != "standard":
        raise UserError(
            f"benchmark '{name}' has no difficulty '{difficulty}'; only the built-in worlds take one"
        )
    read = read_code_problems if is_code else read_problems
    try:
        return read(name, source, split=split, limit=limit)
    except HubError as error:
        if source is not None:
            raise
        raise UserError(
            f"{name}: {error.place} cannot be had from the hub ({error.reason}); "
            "give the file or folder of its problems with --source"
        ) from error


def _programs(name: str, description: str, template: str, max_new_tokens: int) -> Benchmark:
    read = partial(_read_stored, name, True)
    return Benchmark(name, description, template, (), max_new_tokens, read, judges="program")


def _answers(name: str, description: str, template: str, chain: str, max_new_tokens: int) -> Benchmark:
    read = partial(_read_stored, name, False)
    return Benchmark(name, description, template, CHAINS[chain], max_new_tokens, read)


BENCHMARKS: dict[str, Benchmark] = {
    b.name: b
    for b in (
        Benchmark(
            "arithmetic",
            "built-in offline world: who has how many, 2-8 dependent operations",
            "plain",
            ("hash",),
            128,
            partial(_read_made, "arithmetic"),
            validation_split="validation",
        ),
        Benchmark(
            "programs",
            "built-in offline world: a small function from a sentence for each line, hidden tests",
            "plain",
            (),
            96,
            partial(_read_made, "programs"),
            judges="program",
            validation_split="validation",
        ),
        _answers("gsm8k", "grade-school word problems, 1,319 in the test split", "gsm8k_cot", "gsm8k", 512),
        _answers("gsm_hard", "GSM8K with large numbers, 1,319", "gsm8k_cot", "gsm8k", 512),
        _answers("svamp", "one-step word problems with distractors, 1,000", "gsm8k_cot", "gsm8k", 512),
        _answers("mawps", "one- and two-step word problems, 2,065", "gsm8k_cot", "gsm8k", 512),
        _answers("math500", "500 competition problems of the MATH test split", "boxed_chat", "math", 2048),
        _answers("math", "competition mathematics, 5,000 in the test split", "boxed_chat", "math", 2048),
        _answers("aime24", "AIME 2024 I and II, 30 answers from 0 to 999", "boxed_chat", "math", 4096),
        _answers("amc23", "AMC 12 2023, 40 problems with a number as answer", "boxed_chat", "math", 4096),
        _answers("olympiadbench", "olympiad problems in English, 675", "boxed_chat", "math", 4096),
        _answers("minerva_math", "undergraduate science, 272 problems", "boxed_chat", "math", 2048),
        Benchmark(
            "prompts",
            "rows with a prompt and no answer, such as dialogues: for a reward model to judge",
            "raw",
            (),
            256,
            _read_prompts,
        ),
        _answers(
            "rows", "your own rows: a problem under any usual name, an answer", "boxed_chat", "math", 1024
        ),
        _programs("humaneval", "164 Python functions to complete, hand-written tests", "code_complete", 512),
        _programs("humaneval_plus", "HumanEval with EvalPlus' many more inputs", "evalplus_humaneval", 768),
        _programs("mbpp", "974 short Python tasks, 3 asserts each; the test split has 500", "code_task", 512),
        _programs("mbpp_plus", "378 MBPP tasks with EvalPlus' many more inputs", "evalplus_mbpp", 768),
        _programs("apps", "contest and interview problems, call-based or stdin/stdout", "code_chat", 2048),
        _programs("codecontests", "competitive programming, stdin/stdout", "code_chat", 2048),
    )
}


def get_benchmark(name: str) -> Benchmark:
    """Return the benchmark. Raises UserError that names the nearest ones."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if is_plugin(name) or name in (others := installed("benchmark")):
        return _own_benchmark(name)
    raise UserError(
        f"benchmark '{name}' is unknown{did_you_mean(name, (*BENCHMARKS, *others))} (your own: module:name)"
    )


def _own_benchmark(name: str) -> Benchmark:
    """A `Benchmark`, or a function that returns problems or rows of them."""
    found = load_plugin(name, "benchmark")
    if isinstance(found, Benchmark):
        return replace(found, name=name)
    call = Call(name, "benchmark", found, ("source", "split", "limit", "difficulty", "seed"))

    def read(source: str | Path | None, *, limit: int | None, **options: Any) -> list[Problem]:
        made = listed(call({"source": source, "limit": limit, **options}, "its problems"), None, call, "it")
        if not all(isinstance(one, Problem) for one in made):
            return _read_stored("rows", False, made, limit=limit, **{**options, "difficulty": "standard"})
        return [one if one.source else replace(one, source=name) for one in made[:limit]]

    usual = BENCHMARKS["rows"]
    return replace(usual, name=name, description=str(found.__doc__ or name).splitlines()[0], read=read)


def read_benchmark(
    name: str,
    *,
    source: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    difficulty: str = "standard",
    seed: int = 0,
) -> list[Problem]:
    """Return its problems, the first `limit` of them (all; of the endless built-in worlds 500).

    `difficulty` and `seed` choose the problems of the built-in worlds; the others are fixed, and a difficulty
    other than "standard" is an error there. Raises UserError for unknown names and unreadable sources.
    """
    read = get_benchmark(name).read
    return read(source, split=split, limit=limit, difficulty=difficulty, seed=seed)


def make_grader(
    name: str,
    own: str | None = None,
    *,
    timeout_s: float | None = None,
    partial_credit: Literal["off", "tests", "errors"] = "off",
) -> Grader:
    """Return the function (problem, response) -> Verdict of a benchmark.

    It finds the answer by the benchmark's conventions and compares it with the problem's, or runs the program
    that is the response in the sandbox; without either the verdict is wrong, reason NO_ANSWER. `timeout_s`
    bounds one comparison or the tests of one program; 10 s unless given, so that a busy machine changes no
    verdict. A grader of programs judges many at once (data.grading.start_grading); `partial_credit` is what
    it gives wrong ones (eval.code_grader.PartialCredit); the others have no use for it.

    `own` is a grader of the user's, "module:function", in the benchmark's place.
    """
    if own is not None:
        return OwnGrader(own)
    benchmark = get_benchmark(name)
    if benchmark.grade is not None:
        return OwnGrader(name, benchmark.grade)
    if benchmark.judges == "program":
        from eval.code_grader import TIMEOUT_S, make_code_grader
        from eval.code_pool import CodePool

        return CodePool(
            lambda sandbox: make_code_grader(
                sandbox=sandbox, timeout_s=timeout_s or TIMEOUT_S, partial_credit=partial_credit
            )
        )
    if name == "arithmetic":
        return grade_arithmetic
    if not benchmark.chain:
        return lambda problem, response: Verdict("unjudged", "there is no answer to compare with")

    from eval.answers import extract_answer
    from eval.math_grader import grade

    def judge(problem: Problem, response: str) -> Verdict:
        answer = extract_answer(response, benchmark.chain)
        if answer is None:
            return Verdict("wrong", NO_ANSWER)
        tolerance = problem.meta.get("tolerance")
        allowed = Fraction(tolerance) if tolerance else None
        return grade(problem.answer, answer, timeout_s=timeout_s or 10.0, tolerance=allowed)

    return judge


def make_public_check(name: str) -> Callable[[Problem, str], bool | None] | None:
    """Return the function (problem, response) -> does it pass the tests shown in the statement; None for a
    benchmark of answers. It says None for a problem that shows no tests."""
    if get_benchmark(name).judges != "program":
        return None
    from eval.code_grader import make_public_check as of_grader

    return of_grader(make_grader(name))


def grade_arithmetic(problem: Problem, response: str) -> Verdict:
    """Compare integers exactly; only a last non-empty line "#### N" is an answer."""
    lines = response.rstrip().rsplit("\n", 1)
    match = _ANSWER_LINE.fullmatch(lines[-1].strip())
    if match is None:
        return Verdict("wrong", NO_ANSWER)
    return Verdict("correct" if int(match[1]) == int(problem.answer) else "wrong")
