"""The test cases of other graders (tests/grader_cases.jsonl): our verdict is theirs, or our ruling.

A row: source (repository and commit), test, gold, answer, same (their label), and where we rule otherwise
ruling and why. Long responses are cut to the part that holds the answer.
"""

import re
from pathlib import Path

import pytest

from data.files import read_jsonl
from eval.math_grader import WORKER, grade

CASES = [row for _, row in read_jsonl(Path(__file__).parent / "grader_cases.jsonl")]


@pytest.fixture(scope="module", autouse=True)
def close_worker():
    yield
    WORKER.close()


@pytest.mark.parametrize("case", CASES, ids=range(1, len(CASES) + 1))
def test_a_published_case_is_judged_as_there_or_as_ruled(case) -> None:
    verdict = grade(case["gold"], case["answer"], timeout_s=30)
    wanted = "correct" if case.get("ruling", case["same"]) else "wrong"
    assert verdict.status == wanted, (case, verdict)


def test_a_ruling_differs_from_the_label_and_says_why() -> None:
    """That it is what the grader says, the test above shows: no verdict differs from a label without one."""
    contested = [case for case in CASES if "ruling" in case or "why" in case]
    assert contested and all(case["ruling"] is not case["same"] and case["why"] for case in contested)


RULINGS = re.findall(
    r"^\| `(.+?)` \| `(.+?)` \| (correct|wrong|unjudged) \|",
    (Path(__file__).parent.parent / "docs" / "grading.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("gold", "answer", "verdict"), RULINGS)
def test_the_documented_rulings_are_what_the_grader_says(gold: str, answer: str, verdict: str) -> None:
    assert len(RULINGS) >= 25, "the table was not found"
    assert grade(gold, answer, timeout_s=30).status == verdict
