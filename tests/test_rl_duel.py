"""Duels: what each referee says, the numbers, and a duel of two policies with its resume."""

import json
from pathlib import Path

import pytest
from cli_cases import failure
from rl_world import tiny_policy

from data.arithmetic import make_problems
from data.schema import Problem, Sample, Verdict
from data.world_tokenizer import word_tokenizer
from eval.metrics import wilson_interval
from prm.checkpoint import save_model
from reasoning_rl.cli import main
from reasoning_rl.compose_duel import play, summarise
from reasoning_rl.duel import agree, by_answer, by_judge, by_reward, judge_text, read_choice

PROBLEMS = [Problem(str(k), f"q{k}", str(k)) for k in range(4)]
PROMPTS = [p.text for p in PROBLEMS]


class Longer:
    """A ResponseScorer: the longer the better; it reads nothing beyond 9 characters."""

    def score_responses(self, prompts, responses):
        return [float(len(r)) if len(r) < 10 else None for r in responses]


def test_a_reward_model_compares_rewards_up_to_a_margin() -> None:
    first, second = ["aaa", "a", "aa", "a"], ["a", "aaa", "a", "a" * 10]
    assert by_reward(Longer())(PROBLEMS, PROMPTS, first, second) == ["win", "lose", "win", "unjudged"]
    assert by_reward(Longer(), 1.0)(PROBLEMS, PROMPTS, first, second)[2] == "tie"


def test_a_right_answer_beats_a_wrong_one() -> None:
    def grade(problem: Problem, response: str) -> Verdict:
        if response == "?":
            return Verdict("unjudged")
        return Verdict("correct" if response == problem.answer else "wrong")

    verdicts = by_answer(grade)(PROBLEMS, PROMPTS, ["0", "x", "2", "?"], ["x", "1", "2", "3"])
    assert verdicts == ["win", "lose", "tie", "unjudged"]


@pytest.mark.parametrize(
    ("straight", "swapped", "verdict"),
    [
        ("A", "B", "win"),
        ("B", "A", "lose"),
        ("A", "A", "tie"),  # it favours the first place
        ("B", "B", "tie"),  # the second
        ("B", "C", "tie"),
        ("C", "A", "tie"),
        ("A", "C", "tie"),
        ("C", "B", "tie"),
        ("C", "C", "tie"),
        (None, "B", "unjudged"),
    ],
)
def test_a_judge_must_prefer_the_same_answer_in_both_places(straight, swapped, verdict) -> None:
    assert agree(straight, swapped) == verdict


def test_a_judgement_is_the_last_choice_it_names() -> None:
    assert read_choice("[[A]] seems good, but [[B]]") == "B"
    assert read_choice("A is better") is None


class FavoursLong:
    """A generator that judges: it prefers the longer answer; places play no part."""

    def __init__(self) -> None:
        self.asked = []

    def generate(self, prompts, sampling):
        self.asked += prompts
        said = []
        for text in prompts:
            a = text.split("[Answer A]\n")[1].split("\n\n[Answer B]")[0]
            b = text.split("[Answer B]\n")[1].split("\n\nGive")[0]
            choice = "C" if len(a) == len(b) else "A" if len(a) > len(b) else "B"
            said.append([Sample((), (), (), f"Because. [[{choice}]]", "stop")])
        return said


def test_a_judge_reads_every_pair_in_both_orders() -> None:
    judge = FavoursLong()
    verdicts = by_judge(judge, None, lambda text: text)(
        PROBLEMS, PROMPTS, ["long", "s", "same", "a"], ["s", "long", "same", "b"]
    )
    assert verdicts == ["win", "lose", "tie", "tie"]
    assert judge.asked[:2] == [judge_text("q0", "long", "s"), judge_text("q0", "s", "long")]


def test_the_numbers_are_shares_of_the_judged_with_wilsons_intervals() -> None:
    found = summarise(["win"] * 6 + ["lose"] * 2 + ["tie"] * 2 + ["unjudged"])
    assert (found["judged"], found["unjudged"]) == (10, 1)
    assert [found[name]["value"] for name in ("win", "tie", "lose")] == [0.6, 0.2, 0.2]
    assert (found["win"]["low"], found["win"]["high"]) == wilson_interval(6, 10)
    assert (found["win_rate"]["value"], found["win_rate"]["of"]) == (0.75, 8)
    assert found["p"] == pytest.approx(2 * (1 + 8 + 28) / 256)  # 2 or fewer of 8 heads, both sides


def test_a_duel_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    problems = [Problem(str(k), f"q{k}", "") for k in range(130)]  # three batches
    calls = []

    def policy(name: str):
        def respond(batch, seed):
            calls.append((name, len(batch), seed))
            return [(p.text, name * (1 + seed % 3)) for p in batch]

        return respond

    def duel(folder: Path):
        return play(problems, [policy("a"), policy("b")], by_reward(Longer()), folder, settings={"x": 1})

    whole = duel(tmp_path / "whole")
    assert [row["verdict"] for row in whole] == ["tie"] * 130 and len(calls) == 6
    duel(tmp_path / "torn")
    path = tmp_path / "torn" / "duel.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:70]) + lines[70][:10])
    calls.clear()
    assert duel(tmp_path / "torn") == whole
    assert [name for name, _, _ in calls] == ["a", "b", "a", "b"]  # the first batch was complete
    assert [json.loads(line) for line in path.read_text().splitlines()] == whole


def test_the_command_compares_two_policies(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    tokenizer = word_tokenizer()
    for seed, name in enumerate("ab"):
        save_model(tmp_path / name, tiny_policy(tokenizer, seed), tokenizer)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p.text + "\n"}) + "\n" for p in make_problems(6, 0)))
    args = ["duel", str(tmp_path / "a"), str(tmp_path / "b"), "--limit", "5", "--max-new-tokens", "8"]
    main([*args, "--output-dir", str(tmp_path / "answers")])
    assert "tie" in capsys.readouterr().out
    rows = (tmp_path / "answers" / "duel.jsonl").read_text().splitlines()
    assert len(rows) == 5 and json.loads((tmp_path / "answers" / "result.json").read_text())["judged"] == 5
    own = ["--problems", str(prompts), "--problems-format", "prompts", "--output-dir", str(tmp_path / "own")]
    assert "give --reward-model or --judge" in failure(capsys, *args, *own)
    main([*args, *own, "--judge", str(tmp_path / "a"), "--judge-max-new-tokens", "4"])
    assert json.loads((tmp_path / "own" / "result.json").read_text())["unjudged"] == 5  # it names no choice
    assert "undefined" in capsys.readouterr().out
    text = failure(capsys, *args, "--max-new-tokens", "9", "--output-dir", tmp_path / "answers")
    assert "max_new_tokens" in text
    assert "which policies?" in failure(capsys, "duel", tmp_path / "a")
    assert "at most one" in failure(capsys, *args, "--reward-model", "x", "--judge", "y")
