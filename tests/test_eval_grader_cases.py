"""The test cases of other graders (tests/grader_cases.jsonl): our verdict is theirs, or our ruling.

A row: source (repository and commit), test, gold, answer, same (their label), and where we rule otherwise
ruling and why. Long responses are cut to the part that holds the answer.
"""

from collections import Counter
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
    # What the other side's parser cannot read may stay open, but is never taken for correct.
    assert verdict.status in (wanted, "unjudged" if wanted == "wrong" else wanted), (case, verdict)


def test_rulings_differ_from_the_label_and_say_why() -> None:
    rulings = [case for case in CASES if "ruling" in case]
    assert all(case["ruling"] != case["same"] and case["why"] for case in rulings)
    assert len(rulings) == 20
    sources = Counter(case["source"].split()[0] for case in CASES)
    assert sources["math-verify"] >= 290 and len(sources) == 4
