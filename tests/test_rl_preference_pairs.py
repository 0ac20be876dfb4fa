"""Which pairs and which chains are chosen from scored responses; worked out by hand."""

import pytest

from data.schema import Preference
from reasoning_rl.preference_pairs import rank_pairs, right_solutions, step_pairs
from reasoning_rl.sampled import Group, ScoredResponse, group_metrics, read_groups, write_groups


def response(text: str, outcome: float | None = None, scores=(), *, complete=True, reward=None):
    steps = tuple(text.split("\n"))
    return ScoredResponse(text, complete, len(text.split()), outcome, steps, tuple(scores), reward)


def group(*responses: ScoredResponse) -> Group:
    return Group("p", "problem", "prompt\n", responses)


def texts(pairs: list[Preference]) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in pairs]


def test_by_outcome_right_meets_wrong_in_the_order_of_sampling() -> None:
    of_six = group(*(response(t, o) for t, o in zip("abcdef", (0, 1, 0, 1, 1, None), strict=True)))
    assert texts(rank_pairs([of_six], most=1)) == [("b", "a")]
    assert texts(rank_pairs([of_six], most=9)) == [("b", "a"), ("d", "c")]  # no wrong one is left for e
    assert rank_pairs([group(response("a", 1), response("b", 1))], most=9) == []


def test_equal_texts_count_once_and_a_truncated_one_is_never_chosen() -> None:
    cut = response("c", 0.0, [0.9], complete=False)
    pairs = rank_pairs([group(response("a", 1, [0.5]), response("a", 1, [0.5]), cut)], most=9)
    assert texts(pairs) == [("a", "c")] and not pairs[0].rejected_ends and pairs[0].chosen_ends
    assert rank_pairs([group(cut, response("b", 0, [0.1]))], by="prm") == []  # the best that is whole is b


def test_both_puts_right_steps_first_among_right_answers() -> None:
    by_luck, by_reason = response("a", 1, [0.9, 0.1]), response("b", 1, [0.8, 0.7])
    near, far = response("c", 0, [0.9, 0.4]), response("d", 0, [0.0, 0.9])
    of_four = [group(by_luck, by_reason, near, far)]
    assert texts(rank_pairs(of_four, by="both", most=2)) == [("b", "d"), ("a", "c")]
    assert texts(rank_pairs(of_four, by="prm", most=1)) == [("b", "d")]
    assert texts(rank_pairs(of_four, by="prm", most=1, min_gap=0.7)) == []  # the gap is exactly 0.7


def test_a_wrong_answer_is_preferred_to_a_worse_one_unless_the_chosen_must_be_right() -> None:
    wrong = [response("a", 0, [0.9]), response("b", 0, [0.1])]
    right, unjudged = response("c", 1, [0.3]), response("d", None, [0.95])
    for by in ("prm", "both"):
        assert texts(rank_pairs([group(*wrong)], by=by)) == [("a", "b")]
        assert rank_pairs([group(*wrong)], by=by, require_right=True) == []
        assert texts(rank_pairs([group(*wrong, right, unjudged)], by=by, require_right=True)) == [("c", "b")]


def test_a_reward_model_ranks_by_its_rewards() -> None:
    of_three = [group(response("a", reward=-3.0), response("b", reward=2.5), response("c", reward=None))]
    assert texts(rank_pairs(of_three, by="reward_model", most=3)) == [("b", "a")]


def test_a_step_pair_shares_the_right_steps_before_it() -> None:
    right = response("s1\ns2\n#### 4", 1, [0.9, 0.8, 0.9])
    wrong = response("s1\nx2\n#### 5", 0, [0.9, 0.2, 0.1])
    (pair,) = step_pairs([group(right, wrong)])
    assert pair == Preference(
        "prompt\n", "s2\n", "x2\n", id="p/0", prefix="s1\n", chosen_ends=False, rejected_ends=False
    )


def test_a_last_step_brings_the_end_of_the_response() -> None:
    right, wrong = response("s1\n#### 4", 1, [0.9, 0.9]), response("s1\n#### 5", 0, [0.9, 0.1])
    (pair,) = step_pairs([group(right, wrong)])
    assert (pair.chosen, pair.rejected, pair.chosen_ends, pair.rejected_ends) == (
        "#### 4",
        "#### 5",
        True,
        True,
    )
    cut = response("s1\n#### 5", 0, [0.9, 0.1], complete=False)
    (pair,) = step_pairs([group(right, cut)])
    assert (pair.rejected, pair.rejected_ends) == ("#### 5\n", False)


def test_nothing_after_a_wrong_step_is_compared() -> None:
    a = response("x1\ns2", 0, [0.1, 0.9])
    b = response("x1\nx2", 0, [0.1, 0.1])
    assert step_pairs([group(a, b)]) == []


def test_distinct_right_chains_are_kept_up_to_a_number() -> None:
    chains = group(
        response("a\nb", 1, [0.9, 0.2]),
        response("a\n b ", 1, [0.9, 0.9]),  # the same chain
        response("c", 1, [0.8]),
        response("d", 0, [1.0]),
        response("e", 1, [0.9], complete=False),
    )
    assert right_solutions([chains]) == [("prompt\n", "a\nb"), ("prompt\n", "c")]
    assert right_solutions([chains], most=1) == [("prompt\n", "a\nb")]
    # A right answer by a wrong step is left out, its chain's other writing is not; the best comes first.
    assert right_solutions([chains], min_step_score=0.5) == [("prompt\n", "a\n b "), ("prompt\n", "c")]


def test_groups_are_written_and_read_back_equal(tmp_path) -> None:
    groups = [group(response("a\nb", 1, [0.9, None]), response("c", None, complete=False, reward=-1.5))]
    write_groups(tmp_path / "samples.jsonl", groups)
    assert read_groups(tmp_path / "samples.jsonl") == groups


def test_the_metrics_of_a_round_count_tokens_and_leave_the_unjudged_out() -> None:
    groups = [group(response("a b", 1), response("c", 0, complete=False), response("d", None))]
    metrics = group_metrics(groups)
    assert metrics["rollout/tokens"] == 4 and metrics["reward/outcome"] == 0.5
    assert [metrics["rollout/unjudged"], metrics["rollout/truncated"]] == pytest.approx([1 / 3, 1 / 3])
