"""The arithmetic world: its oracle is the reference that everything else is measured against."""

import re
from random import Random

import pytest

from data.arithmetic import (
    CORRUPTIONS,
    MAX_NUMBER,
    Habits,
    corrupt,
    demonstrate,
    judge_steps,
    label_solution,
    make_problems,
    vocabulary,
)
from data.errors import UserError
from data.world_tokenizer import character_tokenizer, word_tokenizer


def solve_from_text(text: str) -> int:
    """An independent solver that reads only the problem's words."""
    known: dict[str, int] = {}
    open_: list[tuple[str, str, int, str]] = []
    for sentence in re.split(r"(?<=[.?]) ", text):
        if match := re.fullmatch(r"(\w+) has (\d+)\.", sentence):
            known[match[1]] = int(match[2])
        elif match := re.fullmatch(r"(\w+) has (\d+) (more|fewer) than (\w+)\.", sentence):
            open_.append((match[1], match[3], int(match[2]), match[4]))
        elif match := re.fullmatch(r"(\w+) has (\d+) times as many as (\w+)\.", sentence):
            open_.append((match[1], "times", int(match[2]), match[3]))
        else:
            asked = re.fullmatch(r"How many does (\w+) have\?", sentence)[1]
    while open_:
        for relation in list(open_):
            person, word, number, source = relation
            if source in known:
                left = known[source]
                known[person] = {"more": left + number, "fewer": left - number, "times": left * number}[word]
                open_.remove(relation)
    return known[asked]


@pytest.mark.parametrize("difficulty", ["standard", "hard", "shuffled"])
def test_every_answer_follows_from_the_words_alone(difficulty: str) -> None:
    for problem in make_problems(200, 3, difficulty=difficulty):
        assert solve_from_text(problem.text) == int(problem.answer)
        assert problem.solution.endswith(f"#### {problem.answer}")


def test_gold_solutions_are_right_at_every_step_and_have_level_plus_one_steps() -> None:
    for difficulty in ("standard", "hard"):
        for problem in make_problems(100, 1, difficulty=difficulty):
            solution = label_solution(problem, problem.solution)
            assert solution.first_error == -1 and solution.answer_correct
            assert len(solution.steps) == problem.level + 1
            assert set(solution.labels) == {1.0}


def test_splits_never_share_a_problem_and_seeds_repeat() -> None:
    # One seed draws one stream of problems: without the splits all would be shared.
    texts = {s: {p.text for p in make_problems(300, 5, split=s)} for s in ("train", "validation", "test")}
    assert not texts["train"] & texts["test"] and not texts["validation"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert make_problems(20, 9) == make_problems(20, 9)
    assert make_problems(20, 9) != make_problems(20, 8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_corruption_is_caught_exactly_where_it_was_planted(kind: str) -> None:
    for problem in make_problems(100, 2):
        gold = problem.solution.split("\n")
        broken = corrupt(problem, Random(problem.id), kind).split("\n")
        planted = next(k for k, line in enumerate(broken) if k >= len(gold) or line != gold[k])
        assert label_solution(problem, "\n".join(broken)).first_error == planted


def test_the_oracle_by_hand() -> None:
    problem = next(p for p in make_problems(500, 0) if [r.op for r in p.meta["chain"]] == ["-", "*"])
    first, second, answer = problem.solution.split("\n")
    assert judge_steps(problem, [first, second, answer]) == ["right", "right", "right"]
    # The second line needs the first; the answer stands on its own.
    assert judge_steps(problem, [second, first, answer]) == ["wrong", "right", "right"]
    assert judge_steps(problem, [first, first, second, answer]) == ["right", "wrong", "right", "right"]
    assert judge_steps(problem, [answer, first]) == ["right", "not_a_step"]
    assert judge_steps(problem, ["", "hello", first + " "]) == ["not_a_step"] * 3
    assert judge_steps(problem, []) == []


def test_prefix_labels_stay_zero_after_the_first_error_though_the_answer_is_right() -> None:
    problem = next(p for p in make_problems(200, 0) if p.level == 2)
    first, second, answer = problem.solution.split("\n")
    solution = label_solution(problem, "\n".join(["so", first, second, answer]))
    assert solution.labels == (0.0, 0.0, 0.0, 0.0)
    assert solution.first_error == 0 and solution.answer_correct


def test_habits_make_the_mistakes_they_name_at_their_rate() -> None:
    rng = Random(0)
    problems = make_problems(1500, 4)
    asked = wrong = 0
    for problem in problems:
        lines = demonstrate(problem, rng, Habits(fewer_as_more=0.5)).split("\n")
        for relation, line in zip(problem.meta["chain"], lines, strict=False):
            if relation.op == "-":
                asked += 1
                wrong += f" + {relation.operand} =" in line
            else:
                assert f" {relation.op} {relation.operand} =" in line
    assert 0.46 < wrong / asked < 0.54
    assert all(demonstrate(p, rng, Habits()) == p.solution for p in problems[:50])


def test_no_number_leaves_the_vocabulary_and_word_tokens_round_trip() -> None:
    tokenizer, characters = word_tokenizer(), character_tokenizer()
    habits = Habits(fewer_as_more=0.9, times_as_more=0.1, slip=0.2)
    for problem in make_problems(300, 6, difficulty="hard"):
        text = f"{problem.text}\n{demonstrate(problem, Random(1), habits)}"
        assert max(map(int, re.findall(r"\d+", text))) <= MAX_NUMBER
        for kind in (tokenizer, characters):
            ids = kind(text)["input_ids"]
            assert kind.unk_token_id not in ids
            assert kind.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(vocabulary()) == len(set(vocabulary()))


def test_unknown_names_say_what_is_known() -> None:
    with pytest.raises(UserError, match="unknown difficulty 'hrd'; did you mean 'hard'"):
        make_problems(1, 0, difficulty="hrd")
    with pytest.raises(UserError, match="unknown split 'dev'"):
        make_problems(1, 0, split="dev")
