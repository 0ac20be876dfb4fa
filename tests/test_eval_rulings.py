"""Where conventions differ: what counts as the same answer, by the table of docs/grading.md."""

import pytest

from eval.math_grader import WORKER, grade

SAME = [
    # degrees inside a function are degrees
    (r"\sin 10^\circ", r"\cos 80^\circ"),
    (r"\tan 45^\circ", "1"),
    (r"\sin 30^{\circ}", r"\frac12"),
    (r"\sin^2 60°", "3/4"),
    (r"\cos(90^\circ - x)", r"\sin x"),
    (r"\cos\left(\frac{45}{2}^\circ\right)", r"\frac{\sqrt{2+\sqrt2}}{2}"),
    (r"\sin 30°", r"\sin \frac{\pi}{6}"),
    (r"45^\circ", "45"),
    # an equation has two sides
    ("y = x", "x = y"),
    ("a=b", "b=a"),
    ("y = x + 1", "x = y - 1"),
    # sets by a condition
    (r"\{x \mid x > 2\}", r"(2, \infty)"),
    (r"\{x | x>2\}", "x>2"),
    ("(2,3]", r"\{y : 2 < y \le 3\}"),
    (r"\{x \mid x>2\}", r"\{t \in \mathbb{R} : t>2\}"),
    # several choices, and a choice with its text
    ("A,C", r"\boxed{A \text{ and } C}"),
    ("A, B, C", "C, A and B"),
    ("C", "C. 12 apples"),
    ("B", "(B) 12"),
    (r"\textbf{(C)}\ 12", "C"),
    (r"\text{(B)}", "B) 12 metres"),
    # ratios, and a value said again in words
    ("1:2:3", "2:4:6"),
    (r"\frac12 : 1 : 2", "1:2:4"),
    ("3/4", "0.75 (three quarters)"),
    ("1", r"\text{1 (one)}"),
    # log is decimal or natural, the same on both sides
    (r"\log 100", "2"),
    (r"\log_{10} 2", r"\log 2"),
    (r"\log x", r"\ln x"),
    # products of letters and decimal commas
    ("abc", "cab"),
    ("xyz", "zyx"),
    ("mn", "nm"),
    ("ma", "am"),
    ("AB", "BA"),
    ("2.74", "2,74"),
    ("0.5", "0,5"),
    ("x+y", "x+y=x+y"),
    ("4", "f(2) = 4"),
    ("6", "2*3=6"),
    ("4", "x = 4"),
    (r"\frac45", r"\sin x = \frac45"),
]

DIFFERENT = [
    (r"\tan 45", r"\tan 45^\circ"),
    (r"\sin 30", "1/2"),
    (r"\sin 10^\circ", r"\sin 80^\circ"),
    (r"\sin x", r"\sin 30^\circ"),
    ("x = 3", "y = 3"),
    ("y = x", "y = z"),
    ("y = x", "x = -y"),
    ("A = x", "S = x"),
    (r"\{x \mid x > 2\}", r"[2, \infty)"),
    (r"\{x \in \mathbb{Z} \mid x > 2\}", r"(2, \infty)"),
    ("A,C", r"\boxed{A \text{ and } B}"),
    ("A,C", "A"),
    ("C", "B. 12 apples"),
    ("B", "(A) 12"),
    ("B", r"(A) B"),
    ("(A) 12", "(A) 13"),
    ("1:2:3", "2:4:7"),
    ("1:2:3", "1:2"),
    ("1:30:00", "2:60:00"),
    ("3/4", "0.5 (three quarters)"),
    ("5", "6 (mod five)"),
    ("12", "11 (not twelve)"),
    (r"\log 100", "3"),
    (r"\ln 100", "2"),
    (r"\log 100", r"2 + \ln 1.5"),
    ("cat", "act"),
    ("seat", "east"),
    ("no", "on"),
    ("NO", "ON"),
    ("4", "x^2=4"),
    ("4", "2x + 1 = 4"),
    ("1.5", "1,5"),
    ("1,5", "1.5"),
    ("2", "x^3 = 2"),
]


@pytest.fixture(scope="module", autouse=True)
def close_worker():
    yield
    WORKER.close()


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_another_form_of_the_answer_is_correct(gold: str, answer: str) -> None:
    assert grade(gold, answer, timeout_s=30).status == "correct"


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_what_only_looks_alike_is_wrong(gold: str, answer: str) -> None:
    assert grade(gold, answer, timeout_s=30).status == "wrong"


def test_degrees_without_end_are_read_in_linear_time() -> None:
    for text in (r"\sin(" + "°" * 3900, r"\sin" + " " * 3900 + "°", "sin(" * 900 + "1°" + ")" * 90):
        assert grade("5", text, timeout_s=5).seconds < 1
