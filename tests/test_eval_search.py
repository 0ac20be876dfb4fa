"""Searches worked by hand on scripted models, and the engine that runs them."""

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from data.errors import UserError
from data.schema import Problem, Sample
from eval.search.choose import choose
from eval.search.engine import run_plans
from eval.search.plans import best, distinct
from eval.search.rules import Candidate, Models, Rules
from eval.votes import vote_key

EOS = 0
PROBLEM = Problem(id="p0", text="q", answer="9")


class Scripted:
    """A TextGenerator that takes its next texts from a script by prompt; one token a character.

    A text that ends in "$" ends the sequence. Stop strings and limits are honoured as a real one does.
    """

    def __init__(self, script: dict[str, list[str]]) -> None:
        self.script = {prompt: itertools.cycle(texts) for prompt, texts in script.items()}
        self.calls: list[tuple[list[str], int, tuple[str, ...], int]] = []

    def generate(self, prompts, sampling):
        self.calls.append((list(prompts), sampling.n, sampling.stop, sampling.max_new_tokens))
        return [
            [self._sample(prompt, next(self.script[prompt]), sampling) for _ in range(sampling.n)]
            for prompt in prompts
        ]

    def _sample(self, prompt, text, sampling):
        ids = [EOS if c == "$" else ord(c) for c in text]
        ends = [text.find(stop) + len(stop) for stop in sampling.stop if stop in text]
        ids = ids[: min([*ends, sampling.max_new_tokens])]
        shown = "".join(chr(i) for i in ids if i != EOS)
        cuts = [shown.find(stop) for stop in sampling.stop if stop in shown]
        ended = bool(cuts) or ids[-1] == EOS
        shown = shown[: min(cuts)] if cuts else shown
        prompt_ids = tuple(map(ord, prompt))
        return Sample(prompt_ids, tuple(ids), (0.0,) * len(ids), shown, "stop" if ended else "length")


class Table:
    """A StepScorer by step text; counts what it is asked."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores, self.seen = scores, []

    def score(self, problems, solutions):
        self.seen += [tuple(steps) for steps in solutions]
        return [[self.scores[step] for step in steps] for steps in solutions]


def models(script, scores=None, stop=()):
    return Models(
        generator=Scripted(script),
        render=lambda text: text + ":",
        has_ended=lambda sample: sample.token_ids[-1] == EOS,
        scorer=Table(scores) if scores else None,
        stop=stop,
    )


def rules(method, n, **over):
    return Rules(method, n, **({"width": 2, "max_new_tokens": 20} | over))


# --- the searches by hand ---------------------------------------------------------------------------------


def test_beam_keeps_the_best_n_over_m_prefixes_and_doubles_them() -> None:
    # N 4, M 2. Round 1: a b c d from the empty prefix, the best two are b and d. Round 2: two of each.
    script = {
        "q:": ["a\n", "b\n", "c\n", "d\n"],
        "q:b\n": ["1$", "2$"],
        "q:d\n": ["3$", "4$"],
    }
    scores = {"a": 0.1, "b": 0.9, "c": 0.2, "d": 0.8, "1": 0.3, "2": 0.7, "3": 0.6, "4": 0.1}
    used = models(script, scores)
    (outcome,) = run_plans([PROBLEM], rules("beam", 4), used, seed=0)
    assert [(c.text, c.state, c.step_scores) for c in outcome.candidates] == [
        ("b\n1", "ended", (0.9, 0.3)),
        ("d\n3", "ended", (0.8, 0.6)),
        ("b\n2", "ended", (0.9, 0.7)),
        ("d\n4", "ended", (0.8, 0.1)),
    ]
    assert [c.score for c in outcome.candidates] == [0.3, 0.6, 0.7, 0.1]
    # 4 x "x\n" and 4 x "k$"; read: "q:" once, then both prefixes once for their two rows.
    assert (outcome.tokens, outcome.read_tokens, outcome.num_scored, outcome.num_rounds) == (16, 10, 8, 2)
    assert [call[:2] for call in used.generator.calls] == [(["q:"], 4), (["q:b\n", "q:d\n"], 2)]


def test_a_beam_that_ended_leaves_the_pool_and_the_rows_stay_n() -> None:
    script = {"q:": ["a$", "b\n", "c\n", "d\n"], "q:b\n": ["1$"], "q:c\n": ["2$"]}
    scores = {"a": 0.99, "b": 0.9, "c": 0.8, "d": 0.1, "1": 0.5, "2": 0.5}
    used = models(script, scores)
    (outcome,) = run_plans([PROBLEM], rules("beam", 4), used, seed=0)
    assert Counter(c.text for c in outcome.candidates) == {"a": 1, "b\n1": 2, "c\n2": 2}
    assert used.generator.calls[1][:2] == (["q:b\n", "q:c\n"], 2)


def test_copies_of_a_beam_crowd_out_the_others_unless_they_must_differ() -> None:
    script = {"q:": ["a\n", "a\n", "b\n", "c\n"], "q:a\n": ["1$"], "q:b\n": ["1$"]}
    scores = {"a": 0.9, "b": 0.5, "c": 0.1, "1": 0.5}
    for is_distinct, expected in ((False, {"a\n1": 4}), (True, {"a\n1": 2, "b\n1": 2})):
        used = models(script, scores)
        (outcome,) = run_plans([PROBLEM], rules("beam", 4, distinct=is_distinct), used, seed=0)
        assert Counter(c.text for c in outcome.candidates) == expected


def test_dvts_trees_never_meet_and_return_their_last_expansion() -> None:
    # Two trees of two. Tree 1 draws a, b and keeps b; tree 2 draws c, d and keeps c, though a beats it.
    script = {
        "q:": ["a\n", "b\n", "c\n", "d\n"],
        "q:b\n": ["1$", "2$"],
        "q:c\n": ["3$", "4\n"],
        "q:c\n4\n": ["5$"],
    }
    scores = {"a": 0.8, "b": 0.9, "c": 0.3, "d": 0.2, "1": 0.5, "2": 0.6, "3": 0.1, "4": 0.7, "5": 0.4}
    used = models(script, scores)
    (outcome,) = run_plans([PROBLEM], rules("dvts", 4), used, seed=0)
    assert [c.text for c in outcome.candidates] == ["b\n1", "b\n2", "c\n4\n5", "c\n4\n5"]
    assert outcome.num_rounds == 3
    assert used.generator.calls[2][:2] == (["q:c\n4\n"], 2)  # the finished tree rests


def test_the_last_round_runs_to_the_end_of_the_response() -> None:
    script = {"q:": ["a\n"], "q:a\n": ["b\nc\nd$"]}
    used = models(script, dict.fromkeys("abcd", 0.5))
    (outcome,) = run_plans([PROBLEM], rules("beam", 2, max_rounds=2), used, seed=0)
    assert {c.text for c in outcome.candidates} == {"a\nb\nc\nd"}
    assert [call[2] for call in used.generator.calls] == [("\n",), ()]


def test_independent_samples_are_drawn_whole_in_one_call() -> None:
    used = models({"q:": ["a\nb$", "c$"]})
    (outcome,) = run_plans([PROBLEM], rules("majority", 3), used, seed=0)
    assert [c.text for c in outcome.candidates] == ["a\nb", "c", "a\nb"]
    assert used.generator.calls == [(["q:"], 3, (), 20)] and outcome.tokens == 10


# --- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["majority", "best_of_n", "beam", "dvts"])
@pytest.mark.parametrize("budget", [20, 27, 45, 64, 100, 333])
def test_a_budget_is_never_exceeded_and_leaves_something_to_choose(method, budget) -> None:
    class Endless:
        """Steps never end by themselves; a whole response takes from 2 tokens to the limit, and ends."""

        def generate(self, prompts, sampling):
            rng = random.Random(len(prompts[0]) + sampling.n)
            return [[self.one(sampling, rng) for _ in range(sampling.n)] for _ in prompts]

        def one(self, sampling, rng):
            size = rng.randint(2, sampling.max_new_tokens) if sampling.max_new_tokens > 1 else 1
            ids = (1,) * (size - 1) + ((2,) if sampling.stop else (EOS,))
            return Sample((1,), ids, (0.0,) * size, rng.choice("ab") * 2, "stop")

    used = Models(Endless(), str, lambda s: s.token_ids[-1] == EOS, Table({"aa": 0.5, "bb": 0.6}))
    rule = rules(method, 8, token_budget=budget, step_tokens=4, max_rounds=5)
    (outcome,) = run_plans([PROBLEM], rule, used, seed=0)
    assert 0 < outcome.tokens <= budget
    assert any(one.state == "ended" for one in outcome.candidates)


def test_more_budget_buys_more_rows_at_the_end() -> None:
    script = {"q:": ["a\n", "b\n"], "q:a\n": ["1$"], "q:b\n": ["1$"]}
    scores = {"a": 0.4, "b": 0.9, "1": 0.5}
    texts = {}
    for budget in (28, 50, 68):  # after two rows of at most 4 tokens are left: 24, 46, 64
        (outcome,) = run_plans(
            [PROBLEM],
            rules("beam", 2, width=1, step_tokens=4, token_budget=budget, max_new_tokens=20),
            models(script, scores),
            seed=0,
        )
        texts[budget] = [c.text for c in outcome.candidates]
    assert texts == {28: ["b\n1"], 50: ["b\n1", "a\n1"], 68: ["b\n1", "a\n1"]}


def test_a_response_at_its_limit_is_cut_and_never_chosen() -> None:
    used = models({"q:": ["aaaaaaaa\n", "b\n"], "q:b\n": ["9$"]}, {"aaaa": 0.9, "b": 0.5, "9": 0.5})
    (outcome,) = run_plans([PROBLEM], rules("beam", 2, step_tokens=4), used, seed=0)
    states = {c.text: c.state for c in outcome.candidates}
    assert states == {"aaaa": "cut", "b\n9": "ended"}
    assert choose(outcome.candidates, [None] * len(outcome.candidates), "best") == next(
        k for k, c in enumerate(outcome.candidates) if c.state == "ended"
    )


def test_a_stop_string_that_spans_two_steps_ends_the_response() -> None:
    script = {"q:": ["a\n"], "q:a\n": ["Question: more\n"]}
    used = models(script, {"a": 0.5}, stop=("\nQuestion:",))
    (outcome,) = run_plans([PROBLEM], rules("beam", 1), used, seed=0)
    assert [(c.text, c.state) for c in outcome.candidates] == [("a", "ended")]


def test_a_blank_line_is_no_step_and_is_scored_as_nothing() -> None:
    script = {"q:": ["\n"], "q:\n": ["a$"]}
    used = models(script, {"a": 0.5})
    (outcome,) = run_plans([PROBLEM], rules("beam", 1), used, seed=0)
    assert [(c.text, c.step_scores) for c in outcome.candidates] == [("\na", (0.5,))]
    assert used.scorer.seen == [("a",)]


def test_no_text_is_scored_twice_and_votes_need_no_scorer() -> None:
    used = models({"q:": ["a$", "a$", "b$"]}, {"a": 0.5, "b": 0.5})
    (outcome,) = run_plans([PROBLEM], rules("best_of_n", 6), used, seed=0)
    assert sorted(used.scorer.seen) == [("a",), ("b",)] and outcome.num_scored == 2
    # A budget of two responses at a time: later rounds draw the same texts again.
    used = models({"q:": ["a$", "b$"]}, {"a": 0.5, "b": 0.5})
    (outcome,) = run_plans([PROBLEM], rules("best_of_n", 6, token_budget=44), used, seed=0)
    assert outcome.num_rounds > 1 and len(used.scorer.seen) == outcome.num_scored == 2
    (outcome,) = run_plans([PROBLEM], rules("majority", 6), models({"q:": ["a$"]}), seed=0)
    assert outcome.num_scored == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "beam", "n": 6, "width": 4}, "n 6 is not divisible by width 4; use n 4 or 8"),
        ({"method": "dvts", "n": 9, "width": 4}, "use n 8 or 12"),
        ({"method": "majority", "n": 2, "token_budget": 10}, "less than one response of max_new_tokens 512"),
    ],
)
def test_rules_that_contradict_each_other_say_so(settings, said) -> None:
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        Rules(**settings)


# --- choosing ----------------------------------------------------------------------------------------------


def made(*scores: float | None, states: str = "") -> list[Candidate]:
    names = {"e": "ended", "c": "cut", "o": "open"}
    letters = states or "e" * len(scores)
    return [
        Candidate(f"t{k}", names[letter], 1, (), score)
        for k, (score, letter) in enumerate(zip(scores, letters, strict=True))
    ]


def test_the_three_choices_by_hand() -> None:
    # Sums: x 0.9, y 0.5 + 0.6 = 1.1, z 0.3 x 3 = 0.9.
    candidates = made(0.9, 0.5, 0.6, 0.3, 0.3, 0.3)
    answers = ["x", "y", "y", "z", "z", "z"]
    assert choose(candidates, answers, "best") == 0
    assert choose(candidates, answers, "weighted") == 2  # of y's two the better one
    assert choose(candidates, answers, "majority") == 3
    assert choose(made(0.5, 0.5), ["a", "b"], "weighted") == 0  # of equals the first
    assert choose(made(0.1, 0.1), ["b", "a"], "majority") == 0


def test_only_what_ended_counts_and_only_answers_vote() -> None:
    candidates = made(0.9, 0.8, None, 0.2, states="ceee")
    assert choose(candidates, [None, None, "7", "5"], "best") == 1
    assert choose(candidates, [None, None, "7", "5"], "weighted") == 3  # an unscored vote weighs nothing
    assert choose(candidates, [None, None, "7", "7"], "majority") == 2
    assert choose(candidates, [None] * 4, "weighted") == 1
    assert choose(made(0.9, 0.9, states="co"), [None, None], "best") is None
    assert choose([], [], "majority") is None


def test_weighted_choice_equals_a_plain_sum_over_random_pools() -> None:
    rng = random.Random(0)
    for _ in range(200):
        pool = made(*(rng.random() for _ in range(rng.randrange(1, 9))))
        answers = [rng.choice("abc") for _ in pool]
        sums = {a: math.fsum(c.score for c, b in zip(pool, answers, strict=True) if a == b) for a in answers}
        chosen = choose(pool, answers, "weighted")
        assert answers[chosen] == max(sums, key=sums.get)
        assert pool[chosen].score == max(
            c.score for c, a in zip(pool, answers, strict=True) if a == answers[chosen]
        )


@pytest.mark.parametrize(
    ("spellings", "other"),
    [
        (["0.5", ".5", "1/2", r"\frac12", r"\dfrac{1}{2}", "0.50"], "1/3"),
        (["14", "14.", "+14", "$14$", "14.0"], "-14"),
        (["1,000", "1000"], "100"),
        ([r"\text{Monday}", "Monday"], "Tuesday"),
    ],
)
def test_spellings_of_one_answer_vote_together(spellings, other) -> None:
    assert len({vote_key(text) for text in spellings}) == 1
    assert vote_key(other) != vote_key(spellings[0])
    assert vote_key("1/0") == "1/0"


def test_best_and_distinct_keep_the_first_of_equals() -> None:
    a, b, c = (Candidate(t, "open", 0, (), s) for t, s in (("a", 0.5), ("b", 0.5), ("c", None)))
    ended = replace(a, state="ended", score=0.9)
    assert best([c, a, b, ended], 2) == [a, b]
    assert distinct([a, b, a, c]) == [a, b, c]
