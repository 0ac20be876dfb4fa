"""Choosing among samples by score, rows of samples files, and two runs compared problem by problem."""

import json
import math
import random

import pytest

from data.errors import UserError
from data.schema import Problem, Verdict
from eval.compare import compare_runs
from eval.metrics import (
    best_of_n,
    paired_interval,
    sign_test,
    weighted_vote,
    weighted_vote_index,
)
from eval.run import evaluate
from eval.sample_files import read_sample_scores, read_samples


def test_best_of_n_takes_the_highest_score_of_the_first_k():
    scores, correct = [0.2, 0.9, None, 0.95], [True, False, True, True]
    assert [best_of_n(scores, correct, k) for k in (1, 2, 3, 4)] == [1.0, 0.0, 0.0, 1.0]
    assert best_of_n([0.5, 0.5], [True, False], 2) == 1.0  # a tie goes to the first
    assert best_of_n([-3.0, None], [True, False], 2) == 1.0  # logits; a sample without score is chosen last


def test_weighted_vote_sums_the_scores_of_an_answer():
    answers = ["1", "2", "1", None, "2"]
    # 1: 0.3 + 0.3 = 0.6, 2: 0.5 + 0.2 = 0.7
    assert weighted_vote_index(answers, [0.3, 0.5, 0.3, 0.99, 0.2]) == 1
    assert weighted_vote_index(answers, [0.3, 0.5, 0.3, 0.99, None]) == 0
    assert weighted_vote_index([None], [0.4]) is None
    assert weighted_vote(answers, [0.3, 0.5, 0.3, 0.9, 0.2], [False, True, False, False, True], 5) == 1.0
    assert weighted_vote(answers, [0.3, 0.5, 0.3, 0.9, 0.2], [False, True, False, False, True], 1) == 0.0


def test_weighted_vote_of_equal_scores_is_the_majority_vote():
    from eval.metrics import majority_index

    rng = random.Random(0)
    for _ in range(200):
        answers = [rng.choice(["a", "b", "c", None]) for _ in range(7)]
        assert weighted_vote_index(answers, [0.5] * 7) == majority_index(answers)


def test_paired_interval_is_narrow_where_the_runs_agree():
    rng = random.Random(1)
    first = [float(rng.random() < 0.5) for _ in range(400)]
    second = [1.0 if k % 20 == 0 else value for k, value in enumerate(first)]
    low, high = paired_interval(first, second)
    difference = sum(second) / 400 - sum(first) / 400
    assert low <= difference <= high and low > 0 and high - low < 0.04
    # The standard error by hand: sd of the differences over sqrt(n).
    variance = sum((b - a - difference) ** 2 for a, b in zip(first, second, strict=True)) / 400
    assert (high - low) == pytest.approx(2 * 1.96 * math.sqrt(variance / 400), rel=0.15)


@pytest.mark.parametrize(("up", "down", "p"), [(0, 0, 1.0), (5, 0, 2 / 32), (8, 2, 0.109375), (3, 3, 1.0)])
def test_sign_test_by_hand(up, down, p):
    assert sign_test(up, down) == pytest.approx(p)
    assert sign_test(down, up) == pytest.approx(p)


PROBLEMS = [Problem(f"gsm8k/{k}", f"{k} + 1 ?", str(k + 1)) for k in range(6)]


def grader(problem, response):
    return Verdict("unjudged" if response == "?" else "correct" if response == problem.answer else "wrong")


def run(tmp_path, name, responses, benchmark="gsm8k", **more):
    samples = {p.id: [r] for p, r in zip(PROBLEMS, responses, strict=False) if r is not None}
    settings = {"benchmark": benchmark, **more}
    evaluate(PROBLEMS, out_dir=tmp_path / name, grader=grader, samples=samples, settings=settings)
    return tmp_path / name


def test_two_runs_are_compared_on_the_problems_they_share(tmp_path):
    first = run(tmp_path, "a", ["1", "2", "0", "0", "?", "6"], template="plain")
    second = run(tmp_path, "b", ["1", "0", "3", "4", "5", None], template="other")
    found = compare_runs(first, second)
    assert (found.num_problems, found.num_left_out) == (4, 2)
    assert (found.first, found.second, found.difference) == (0.5, 0.75, 0.25)
    lost = {"gsm8k/1": (1.0, 0.0)}
    assert found.flipped == lost | {"gsm8k/2": (0.0, 1.0), "gsm8k/3": (0.0, 1.0)}
    assert next(iter(found.flipped)) == "gsm8k/1"  # what was lost first
    assert found.p_value == pytest.approx(1.0) and found.interval[0] <= 0.25 <= found.interval[1]
    assert found.differing_settings == {"template": ("plain", "other")}
    shown = dict(found.rows())
    assert shown["gained / lost"] == "2 / 1 of 4 problems" and shown["difference"].startswith("+25.0 points")


def test_a_run_against_itself_differs_in_nothing(tmp_path):
    folder = run(tmp_path, "a", ["1", "2", "0", "0", "?", "6"])
    found = compare_runs(folder, folder)
    assert found.difference == 0 and found.interval == (0, 0) and not found.flipped and found.p_value == 1


def test_of_one_problem_there_is_no_interval(tmp_path):
    found = compare_runs(run(tmp_path, "a", ["1"]), run(tmp_path, "b", ["0"]))
    assert dict(found.rows())["difference"].endswith("points  (no interval of one problem)")


def test_mistaken_folders_are_named(tmp_path):
    folder = run(tmp_path, "a", ["1"])
    with pytest.raises(UserError, match=r"settings.json: unreadable .*give the output folder of"):
        compare_runs(folder, tmp_path / "none")
    with pytest.raises(UserError, match="compare runs of one benchmark"):
        compare_runs(folder, run(tmp_path, "b", ["1"], benchmark="math"))
    with pytest.raises(UserError, match="no judged problem in common"):
        compare_runs(folder, run(tmp_path, "c", [None, "2"]))
    with pytest.raises(UserError, match="has difficulty None and .* has hard: other problems"):
        compare_runs(folder, run(tmp_path, "d", ["1"], difficulty="hard"))


def test_compare_from_the_command_line(tmp_path, capsys):
    from reasoning_rl.commands import run_compare

    folders = [str(run(tmp_path, "a", ["1", "2", "0"])), str(run(tmp_path, "b", ["1", "0", "3"]))]
    run_compare([*folders, "--flips", "1"])
    printed = capsys.readouterr().out
    assert "gained / lost" in printed and "gsm8k/1" in printed and "gsm8k/2" not in printed
    assert "1 of 2 problems that flipped" in printed
    with pytest.raises(UserError, match="which runs"):
        run_compare(folders[:1])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_choose_among_samples(tmp_path):
    rows = [
        {"question": "0 + 1 ?", "code": ["1", "7", "1"], "pred_score": [[0.2], [0.9], [0.1]]},
        {"question": "1 + 1 ?", "code": ["9", "9", "2"], "pred_score": [[0.2], [0.1], [0.8]]},
    ]
    path = write(tmp_path / "s.jsonl", rows)
    samples, scores = read_samples(path, PROBLEMS), read_sample_scores(path, PROBLEMS)
    assert samples["gsm8k/1"] == ["9", "9", "2"] and scores["gsm8k/1"] == [0.2, 0.1, 0.8]
    out = tmp_path / "out"
    result = evaluate(
        PROBLEMS, out_dir=out, grader=grader, samples=samples, scores=scores, extract=lambda text: text
    )
    # Best-of-3: 7 (wrong) and 2 (right). Vote: 1 (right) and 9 (wrong). Weighted: 7 (.9) and 2 (.8).
    assert result.best_at[3].value == 0.5 and result.maj_at[3].value == 0.5
    assert result.weighted_at[3].value == 0.5 and result.best_at[1].value == 0.5
    assert json.loads((out / "result.json").read_text())["best_at"]["3"]["value"] == 0.5
    assert "best-of-3 by score" in dict(result.rows())


def test_a_hundred_problems_in_qwens_form_give_90_94_96(tmp_path):
    # The shape of Qwen2.5-Math's example: 8 samples a problem, scores in lists of one. 90 problems have all 8
    # right; of the other 10 the first sample is wrong, 6 have a right one, and the score finds 4 of those.
    problems = [Problem(f"math/{k}", f"{k} ?", str(k)) for k in range(100)]
    rows = []
    for k in range(100):
        right = [1] * 8 if k < 90 else [0, 0, int(k < 96), 0, 0, 0, 0, 0]
        scores = [0.5] * 8 if k < 90 else [0.4, 0.3, 0.9 if k < 94 else 0.1, *[0.2] * 5]
        code = [str(k) if ok else "-1" for ok in right]
        rows.append({"question": f"{k} ?", "code": code, "pred_score": [[score] for score in scores]})
    path = write(tmp_path / "qwen.jsonl", rows)
    samples, scores = read_samples(path, problems), read_sample_scores(path, problems)
    result = evaluate(problems, out_dir=tmp_path / "o", grader=grader, samples=samples, scores=scores)
    first = {name: group[:1] for name, group in samples.items()}
    greedy = evaluate(problems, out_dir=tmp_path / "g", grader=grader, samples=first)
    assert greedy.accuracy.value == pytest.approx(0.90)
    assert result.best_at[8].value == pytest.approx(0.94)
    assert result.pass_at[8].value == pytest.approx(0.96)


def test_samples_without_scores_have_none(tmp_path):
    path = write(tmp_path / "s.jsonl", [{"id": "gsm8k/0", "response": "1"}])
    assert read_sample_scores(path, PROBLEMS) is None
    result = evaluate(PROBLEMS, out_dir=tmp_path / "o", grader=grader, samples=read_samples(path, PROBLEMS))
    assert result.best_at == {} and result.weighted_at == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "gsm8k/0", "response": "1", "score": "high"}], r"s.jsonl:1: field 'score'"),
        ([{"id": "gsm8k/0", "response": "1", "score": True}], r"s.jsonl:1: field 'score'"),
        (
            [{"id": "gsm8k/0", "response": "1", "score": 1}, {"id": "gsm8k/1", "response": "1"}],
            "give all or none",
        ),
        ([{"question": "0 + 1 ?", "code": ["1", "2"], "pred_score": [[1]]}], "one score a response"),
    ],
)  # fmt: skip
def test_broken_scores_are_named(rows, message, tmp_path):
    path = write(tmp_path / "s.jsonl", rows)
    with pytest.raises(UserError, match=message):
        read_sample_scores(path, PROBLEMS)
