"""Inequalities as intervals, by hand, and against the values they admit."""

import pytest

from eval.math_grader import grade
from eval.relations import as_interval, relations_in


@pytest.mark.parametrize(
    ("text", "name", "interval"),
    [
        ("x > 5", "x", r"(5,\infty)"),
        ("5 < x", "x", r"(5,\infty)"),
        (r"x \le 2", "x", r"(-\infty,2]"),
        (r"2 \ge x", "x", r"(-\infty,2]"),
        (r"2 < x \le 5", "x", "(2,5]"),
        (r"5 \ge x > 2", "x", "(2,5]"),
        (r"x \ne 3", "x", r"(-\infty,3)\cup(3,\infty)"),
        ("x < -1 or x > 1", "x", r"(-\infty,-1)\cup(1,\infty)"),
        (r"\mathbb{R}", "", r"(-\infty,\infty)"),
        (r"\mathbb{R} \setminus \{3\}", "", r"(-\infty,3)\cup(3,\infty)"),
    ],
)
def test_inequalities_become_intervals(text, name, interval):
    assert as_interval(text) == (name, interval)


@pytest.mark.parametrize(
    "text", ["x = 5", "x+y > 3", "x > x^2", "2 < x > 1", "x < 1 or y > 2", "5", "", "x <"]
)
def test_other_texts_are_no_interval(text):
    assert as_interval(text) is None


def test_signs_in_subscripts_do_not_count():
    assert relations_in(r"\sum_{k=1}^{4} k") == []
    assert relations_in(r"0 \le x < 1") == ["<=", "<"]


@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        (r"(5,\infty)", "5 < x", "correct"),
        (r"(5,\infty)", "5 > x", "wrong"),
        (r"(5,\infty)", r"x \ge 5", "wrong"),
        ("x > 5", "y > 5", "wrong"),
        (r"x \ne 3", r"(-\infty,3)\cup(3,\infty)", "correct"),
        ("-2 < x < 2", "(-2,2)", "correct"),
        ("-2 < x < 2", "[-2,2]", "wrong"),
    ],
)
def test_an_interval_and_its_inequality_are_the_same(gold, answer, status):
    # On a busy machine the last comparer may take longer than it is given by default.
    assert grade(gold, answer, timeout_s=30).status == status
    assert grade(answer, gold, timeout_s=30).status == status
