"""n@k: programs handed in after the public tests."""

import itertools

import pytest

from data.schema import Problem, Verdict
from eval.metrics import pass_at_k
from eval.result import summarise
from eval.run import evaluate
from eval.submissions import expected_n_at_k, n_at_k


def test_n_at_k_submits_what_passes_the_public_tests():
    public = [False, True, True, True, True]
    correct = [True, False, False, True, False]
    assert n_at_k(public, correct, 2, 5) == 0.0  # submits 1 and 2
    assert n_at_k(public, correct, 3, 5) == 1.0  # and 3
    assert n_at_k(public, correct, 3, 3) == 0.0
    # Clusters u = {1, 2, 4} and v = {3}: one of each in turn.
    assert n_at_k(public, correct, 2, 5, behaviours=["x", "u", "u", "v", "u"]) == 1.0
    assert n_at_k([False] * 5, correct, 2, 5) == 0.0


def mean_over_orders(public: list[bool], correct: list[bool], n: int, k: int) -> float:
    """The definition: every order in which the samples could have come is as likely."""
    orders = list(itertools.permutations(range(len(public))))
    hits = [n_at_k([public[i] for i in order], [correct[i] for i in order], n, k) for order in orders]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("n, k", [(1, 2), (2, 3), (1, 5), (3, 5), (5, 5)])
@pytest.mark.parametrize("num_public, num_correct", [(0, 0), (2, 1), (3, 1), (3, 2), (5, 2), (4, 4)])
def test_expected_n_at_k_is_the_mean_over_all_orders(n, k, num_public, num_correct):
    public = [i < num_public for i in range(5)]
    correct = [i < num_correct for i in range(5)]
    expected = expected_n_at_k(5, num_public, num_correct, n, k)
    assert expected == pytest.approx(mean_over_orders(public, correct, n, k), rel=1e-12)


def test_expected_n_at_k_by_hand():
    # 4 samples, 2 pass the public tests, 1 of them is correct; draw 2, hand in 1. Both drawn (1 of 6 draws):
    # right half the time. One of the two drawn (4 of 6): right half the time. None (1 of 6): never.
    assert expected_n_at_k(4, 2, 1, 1, 2) == pytest.approx(5 / 12)
    assert expected_n_at_k(1000, 1000, 37, 100, 100) == pytest.approx(pass_at_k(1000, 37, 100), rel=1e-12)
    assert 0 < expected_n_at_k(1000, 40, 8, 10, 1000) < 1


def row(verdict, public, **more):
    return {"verdict": verdict, "public": public, "reason": "", "seconds": 0.0, "finish_reason": None} | more


def test_a_result_reports_n_at_k_of_the_problems_with_public_tests():
    empty = {"num_tokens": None, "generation_seconds": None}
    rows = {
        "a": [row("correct", True, **empty), row("wrong", True, **empty)],
        "b": [row("wrong", False, **empty), row("wrong", False, **empty)],
        "c": [row("correct", None, **empty), row("wrong", None, **empty)],  # shows no tests
    }
    result = summarise(rows, settings={})
    (estimate,) = result.submitted_at.values()
    assert list(result.submitted_at) == [(1, 2)] and estimate.num_problems == 2
    assert estimate.value == pytest.approx(0.25) and estimate.low < 0.25 < estimate.high
    assert result.to_dict()["submitted_at"]["1@2"]["value"] == pytest.approx(0.25)
    assert ("1@2 by public tests, 2 problems", "25.0%") in [(k, v.split()[0]) for k, v in result.rows()]
    plain = {"a": [row("correct", None, **empty)] * 2}
    assert not summarise(plain, settings={}).submitted_at


def test_an_evaluation_records_the_public_tests(tmp_path):
    problems = [Problem("a", "", "x")]
    result = evaluate(
        problems,
        out_dir=tmp_path,
        samples={"a": ["good", "fooled", "bad", "bad"]},
        grader=lambda problem, response: Verdict("correct" if response == "good" else "wrong"),
        passes_public=lambda problem, response: response != "bad",
    )
    # One of two candidates is right: 1@4 is a half, and the filter is worth more than pass@1.
    assert result.submitted_at[1, 4].value == pytest.approx(0.5) and result.accuracy.value == 0.25
