"""Finding the final answer in a response."""

import time

import pytest

from data.errors import UserError
from eval.answers import CHAINS, CONVENTIONS, extract_answer


@pytest.mark.parametrize(
    ("convention", "response", "answer"),
    [
        ("hash", "3 + 4 = 7\n#### 7", "7"),
        ("hash", "#### 1\nno, wait\n####  2 apples ", "2 apples"),
        ("hash", "#### 5\n####", "5"),  # an empty mark is no answer
        ("hash", "### 7", None),
        ("boxed", r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("boxed", r"\boxed{1} then \boxed{2}", "2"),
        ("boxed", r"\fbox{a^{b^{c}}}", "a^{b^{c}}"),
        ("boxed", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # escaped braces do not count
        ("boxed", r"\boxed 5", "5"),
        ("boxed", r"\boxed{3} and \boxed{never closed", "3"),
        ("boxed", r"\boxed{}", None),
        ("boxed", r"\boxed{x = \boxed{3}}", "3"),  # the last that begins
        ("answer_is", "The answer is 12.", "12"),
        ("answer_is", "The final answer is $x+1$. I hope it is correct.", "$x+1$"),
        ("answer_is", "**Answer:** 3.5 metres", "3.5 metres"),
        ("answer_is", "Answer: 4\nAnswer: 5", "5"),
        ("answer_is", "so 9\nA: 9", "9"),
        ("answer_is", "I cannot say.", None),
        ("last_number", "3 apples and -4.5 pears", "-4.5"),
        ("last_number", "it costs $1,234.50.", "1,234.50"),
        ("last_number", "5 - 3", "3"),  # a minus between terms is no sign
        ("last_number", "odds of 3/4", "3/4"),
        ("last_number", "up by 20%", "20%"),
        ("last_number", "no digits", None),
        ("dollars", r"first $a$, then $\frac{b}{c}$ is it", r"\frac{b}{c}"),
        ("dollars", r"hence \(x=2\)", "x=2"),
        ("dollars", "costs 5 dollars", None),
        ("hash", r"#### \frac{1}{2}", r"\frac{1}{2}"),
        ("hash", "The answer is 4\n#### 1,234", "1,234"),
        ("boxed", r"\boxed{\text{if } x=\frac{a}{\sqrt{b}}}", r"\text{if } x=\frac{a}{\sqrt{b}}"),
        ("boxed", r"$\boxed{3}$ and $\boxed{5}$", "3, 5"),  # one answer in two boxes
        ("boxed", r"First $\boxed{3}$. I check this by hand, and get $\boxed{5}$", "5"),
        ("boxed", r"\boxed{\left\{x \mid x>0\right\}}", r"\left\{x \mid x>0\right\}"),
        ("answer_is", "So the answer is: 7 apples, because 3 + 4 = 7.", "7 apples"),
        ("answer_is", "The answer is 3. No: the answer is $\\frac{1}{2}$, I think", "$\\frac{1}{2}$"),
        ("answer_is", "the answer is 3.5", "3.5"),  # a point inside a number ends no sentence
        ("last_number", "between 3 and 1,000,000 men", "1,000,000"),
        ("last_number", "in 2,3 or .5", ".5"),
        ("choice", "The answer is (B).", "B"),
        ("choice", "so the correct answer is B: 12 metres", "B"),
        ("choice", r"Hence $\boxed{\textbf{(D)}\ 12}$.", "D"),
        ("choice", r"\boxed{C}", "C"),
        ("choice", r"\boxed{\text{(a)}}", "A"),
        ("choice", "(A) is too small, (B) too large, which leaves (C).", "C"),
        ("choice", "I compute 12.\n\nE", "E"),
        ("choice", "**Answer:** D) 12", "D"),
        ("choice", "Answer: A triangle", "A"),  # a letter before its text cannot be told from an article
        ("choice", "The answer is 12", None),
        ("choice", "A man bought 3 apples", None),
        ("choice", r"\boxed{B^2}", None),
        ("code", "Look:\n```python\nx = 1\n```\n", "x = 1\n"),
        ("code", "```\na\n```\n```py\nlonger = 1\n```\n```bash\nls -la /a/long/command\n```", "longer = 1\n"),
        ("code", "```python\nnever = closed", "never = closed"),
        ("code", "  ```python\n  indented = 1\n  ```", "  indented = 1\n"),
        ("code", "x = 1", None),
    ],
)
def test_each_convention_finds_what_it_marks(convention: str, response: str, answer: str | None) -> None:
    assert extract_answer(response, convention) == answer


def test_chain_prefers_the_more_explicit_mark() -> None:
    response = "The answer is 3\n" + r"\boxed{4}" + "\n#### 5\nand 6"
    assert extract_answer(response, "gsm8k") == "5"
    assert extract_answer(response, "math") == "4"
    assert extract_answer(response, ("answer_is", "hash")) == "3"
    assert extract_answer("and 6", "gsm8k") == "6"


def test_arithmetic_is_strict() -> None:
    assert extract_answer("the answer is 6", "arithmetic") is None
    assert extract_answer("#### 6", "arithmetic") == "6"


def test_chains_name_known_conventions() -> None:
    assert CHAINS["gsm8k"] == ("hash", "boxed", "answer_is", "last_number")
    assert CHAINS["math"] == ("final_answer", "boxed", "answer_is", "hash", "last_value")
    assert {name for chain in CHAINS.values() for name in chain} <= set(CONVENTIONS)


def test_unknown_convention_names_the_near_one() -> None:
    with pytest.raises(UserError, match="boxed"):
        extract_answer("", "boxes")


@pytest.mark.parametrize(
    "unit",
    ["{", "}", "\\boxed{", "$", "\\(", "\\[", "#### ", "answer ", "9", "1,", "-", " ", "\n", "A:", "\ud800"],
)
def test_extraction_is_linear_on_hostile_text(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    for chain in CHAINS:
        extract_answer(text, chain)
    assert time.process_time() - start < 3.0
