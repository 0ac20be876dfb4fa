"""The judge of the consensus filter: what it is asked, how its answer is read, how votes count."""

from data.schema import Sample, Sampling
from prm.labelling.completer import Cost
from prm.labelling.judge import agree, ask_for_index, judge_solutions, read_boxed_index


def test_a_judges_answer_is_read_or_not():
    assert read_boxed_index(r"so \boxed{3}, no: \boxed{1}.", 4) == 1
    assert read_boxed_index(r"\boxed{ -1 }", 4) == -1
    for text in ("", r"\boxed{4}", r"\boxed{-2}", r"\boxed{one}", "1"):
        assert read_boxed_index(text, 4) is None
    asked = ask_for_index("How many?", ("a = 1", "b = 2"))
    assert "How many?" in asked and "[0] a = 1" in asked and "[1] b = 2" in asked


def test_judges_vote_and_a_tie_agrees_with_nothing():
    class Fixed:
        def generate(self, prompts, sampling):
            answers = [["2", "2", "1"], ["0", "1", ""], ["-1", "-1", "-1"]]
            return [
                [Sample((), (1,), (0.0,), rf"\boxed{{{a}}}", "stop") for a in row]
                for row in answers[: len(prompts)]
            ]

    cost = Cost()
    solutions = [("p", ("a", "b", "c"))] * 3
    assert judge_solutions(Fixed(), solutions, sampling=Sampling(n=3), cost=cost) == [2, None, -1]
    assert (cost.judge_calls, cost.judge_tokens) == (9, 9)
    assert agree(2, 2) and agree(-1, -1)
    assert not agree(None, None) and not agree(1, 2) and not agree(-1, None)
