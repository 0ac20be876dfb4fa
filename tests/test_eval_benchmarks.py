"""The benchmark table: what is read, what is refused, and what counts as an answer."""

import pytest

from data.errors import UserError
from data.schema import Problem, Verdict
from eval.answers import extract_answer
from eval.benchmarks import BENCHMARKS, get_benchmark, make_grader, read_benchmark


def test_every_benchmark_names_an_existing_template_and_conventions():
    from data.prompts import get_template

    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and benchmark.description
        get_template(benchmark.template)
        assert extract_answer("nothing", benchmark.chain) is None


def test_an_unknown_benchmark_names_the_nearest():
    for call in (get_benchmark, read_benchmark, make_grader):
        with pytest.raises(UserError, match=r"'math50' is unknown; did you mean 'math500'"):
            call("math50")


def test_arithmetic_problems_are_500_unless_limited():
    assert len(read_benchmark("arithmetic")) == 500
    few = read_benchmark("arithmetic", limit=3, difficulty="hard", seed=4)
    assert len(few) == 3 and all(p.level >= 5 for p in few)
    assert few == read_benchmark("arithmetic", limit=3, difficulty="hard", seed=4)
    assert few[0].text != read_benchmark("arithmetic", limit=1, difficulty="hard", seed=5)[0].text


def test_settings_that_a_benchmark_would_ignore_are_refused(tmp_path):
    with pytest.raises(UserError, match="makes its own problems"):
        read_benchmark("arithmetic", source="x.jsonl")
    with pytest.raises(UserError, match="has no difficulty 'hard'"):
        read_benchmark("gsm8k", source="x.jsonl", difficulty="hard")
    with pytest.raises(UserError, match="at least 1"):
        read_benchmark("arithmetic", limit=0)


def test_a_stored_benchmark_is_read_from_a_file(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\\n#### 2"}\n')
    (problem,) = read_benchmark("gsm8k", source=path)
    assert (problem.text, problem.answer) == ("1 + 1?", "2")


@pytest.mark.parametrize(
    ("response", "status", "reason"),
    [
        ("Bob has 5 + 2 = 7\n#### 7", "correct", ""),
        ("#### 7\n\n  \n", "correct", ""),
        ("#### 07", "correct", ""),  # the integer counts
        ("#### -7", "wrong", ""),
        ("#### 70", "wrong", ""),
        ("#### 7\nBob has 7", "wrong", "no answer"),  # only the last line is an answer
        ("so #### 7", "wrong", "no answer"),
        ("#### 7.0", "wrong", "no answer"),
        ("#### 7 apples", "wrong", "no answer"),
        ("7", "wrong", "no answer"),
        ("", "wrong", "no answer"),
        ("#### " + "9" * 9000, "wrong", "no answer"),  # int() would raise
        ("#### \u0667", "wrong", "no answer"),
    ],
)
def test_arithmetic_takes_only_a_last_line_with_an_integer(response, status, reason):
    verdict = make_grader("arithmetic")(Problem("a", "?", "7"), response)
    assert (verdict.status, verdict.reason) == (status, reason)


def test_arithmetic_gold_solutions_are_correct():
    grade = make_grader("arithmetic")
    assert {grade(p, p.solution).status for p in read_benchmark("arithmetic", limit=50)} == {"correct"}


def test_graders_extract_by_the_benchmarks_conventions():
    gsm8k, math = make_grader("gsm8k"), make_grader("math500")
    problem = Problem("a", "?", "1200")
    assert gsm8k(problem, "Therefore\n#### 1,200").status == "correct"
    assert gsm8k(problem, "#### 12").status == "wrong"
    assert gsm8k(problem, "I do not know.") == Verdict("wrong", "no answer")
    half = Problem("b", "?", "\\frac{1}{2}")
    assert math(half, "Hence $x = \\boxed{0.5}$ and done.").status == "correct"
    assert math(half, "Hence \\boxed{\\frac{1}{3}}").status == "wrong"


def test_rounded_answers_may_be_off_by_what_the_problem_allows():
    grade = make_grader("minerva_math")
    problem = Problem("m", "?", "1.6", meta={"tolerance": "0.1"})
    for right in ("1.6", "1.5708", r"\\frac{\\pi}{2}", "1.7 cm", "d = 1.5"):
        assert grade(problem, f"so $\\boxed{{{right}}}$".replace("\\\\", "\\")).status == "correct", right
    for wrong in ("1.45", "16", r"\\pi", "x"):
        assert grade(problem, f"so $\\boxed{{{wrong}}}$".replace("\\\\", "\\")).status != "correct", wrong
    exact = Problem("m", "?", "1.6")
    assert grade(exact, "\\boxed{1.5708}").status == "wrong"
