"""Labels from rollouts: what each method asks for, finds, costs, and how a run continues."""

import json
import math
from collections.abc import Sequence
from random import Random

import pytest

from data.arithmetic import Difficulty, judge_steps, make_problems
from data.errors import UserError
from data.schema import Problem, Sample, Sampling, Verdict
from data.step_readers import read_steps
from eval.benchmarks import make_grader
from prm.labelling.completer import Completer, Continuation, Cost, Estimate, run_searches
from prm.labelling.judge import (
    JudgeFormat,
    read_boxed_index,
)
from prm.labelling.prefixes import PrefixValues, find_first_error, label_every_prefix, to_labels
from prm.labelling.run import Judge, label_problems
from prm.labelling.settings import LabelSettings
from prm.labelling.tree import State, Tree, TreeSettings, grow_tree, right_solutions, select
from prm.pairs import find_pairs


class Solver:
    """A TextGenerator that continues right prefixes rightly at a rate, wrong ones never.

    It reads problem and steps back out of its prompt, as a policy does.
    """

    def __init__(self, problems: Sequence[Problem], skill: float = 0.7) -> None:
        self.problems = {p.text: p for p in problems}
        self.skill = skill
        self.prompts: list[str] = []
        self.calls = 0

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Sample]]:
        self.calls += 1
        self.prompts += prompts
        rng = Random(sampling.seed)
        return [[self._sample(prompt, rng) for _ in range(sampling.n)] for prompt in prompts]

    def _sample(self, prompt: str, rng: Random) -> Sample:
        text, *steps = prompt.strip("\n").split("\n")
        problem = self.problems[text]
        gold = problem.solution.split("\n")
        is_right = all(v == "right" for v in judge_steps(problem, steps)) if steps else True
        rest = gold[len(steps) :]
        if not (is_right and rng.random() < self.skill) and rest:
            at = rng.randrange(len(rest))
            rest = [*rest[:at], *[_wrong(step) for step in rest[at:]]]
        text = "\n".join(rest)
        tokens = tuple(range(len(text.split()) + 1))
        return Sample((), tokens, (0.0,) * len(tokens), text, "stop")


def _wrong(step: str) -> str:
    if step.startswith("####"):
        return f"#### {int(step.split()[1]) + 1}"
    head, _, value = step.rpartition(" ")
    return f"{head} {int(value) + 1}"


def world(count: int = 6, operations: int = 5):
    return make_problems(count, 3, split="train", difficulty=Difficulty(operations, operations))


def completer(problems, skill: float = 0.7, k: int = 4) -> Completer:
    return Completer(
        Solver(problems, skill),
        make_grader("arithmetic"),
        prompt=lambda text: f"{text}\n",
        sampling=Sampling(n=k, seed=0),
    )


def planted(problem: Problem, at: int) -> tuple[str, ...]:
    gold = problem.solution.split("\n")
    return (*gold[:at], *[_wrong(step) for step in gold[at:]])


# --- values ----------------------------------------------------------------------------------------------


def test_a_value_is_the_share_of_judged_rollouts_that_are_right():
    (problem,) = world(1)
    texts = {0: ("#### 1", "stop"), 1: (f"#### {problem.answer}", "stop"), 2: ("?", "stop")}
    texts[3] = (f"#### {problem.answer}", "length")

    class Fixed:
        def generate(self, prompts, sampling):
            assert prompts == [f"{problem.text}\na\nb\n"]
            return [[Sample((), (1, 2), (0.0, 0.0), *texts[i]) for i in range(sampling.n)]]

    def grader(problem: Problem, response: str) -> Verdict:
        assert response.startswith("a\nb\n")
        status = "unjudged" if "?" in response else ("correct" if problem.answer in response else "wrong")
        return Verdict(status)

    asked = Completer(Fixed(), grader, prompt=lambda text: f"{text}\n", sampling=Sampling(n=4))
    (estimate,) = asked.evaluate([(problem, ("a", "b"))])
    # One wrong, one right, one unjudged, one right but cut off: 1 of 3.
    assert (estimate.correct, estimate.judged, estimate.value) == (1, 3, pytest.approx(1 / 3))
    assert asked.cost == Cost(evaluations=1, rollouts=4, tokens=8, unjudged=1)
    assert Estimate(()).value is None


def test_monte_carlo_labels_every_prefix_in_one_batch():
    problems = world(3)
    asked = completer(problems, skill=1.0)
    solutions = [planted(p, at) for p, at in zip(problems, (0, 2, 5), strict=True)]
    found = run_searches(
        asked, [(p, label_every_prefix(s, False)) for p, s in zip(problems, solutions, strict=True)]
    )
    assert asked.generator.calls == 1
    assert [f.first_error for f in found] == [0, 2, 5]
    assert found[1].values == (1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    # The last step's value is the answer's verdict and costs nothing.
    assert asked.cost.evaluations == 15 and asked.cost.rollouts == 60


@pytest.mark.parametrize(
    ("correct", "first_error"),
    [((2, 1, 0, 0), 2), ((2, None, 0, 1), None), ((2, 0, None, 1), 1), ((2, None, 1, 1), None)],
)
def test_an_unjudged_prefix_leaves_the_first_error_open(correct, first_error):
    search = label_every_prefix(("a", "b", "c", "d", "e"), answer_correct=False)
    search.send(None)
    estimates = [
        Estimate(tuple(Continuation((), None if n is None else i < n, 1) for i in range(2))) for n in correct
    ]
    with pytest.raises(StopIteration) as stop:
        search.send(estimates)
    assert stop.value.value.first_error == first_error


def test_labels_by_hand():
    found = PrefixValues(("a", "b", "c", "d"), (0.25, 0.5, 0.0, 0.0), 2, 3, False)
    assert to_labels(found, "soft") == (0.25, 0.5, 0.0, 0.0)
    assert to_labels(found, "hard") == (1.0, 1.0, 0.0, 0.0)
    # A search saw b alive and c dead: a is alive through b, d was never asked.
    halved = PrefixValues(("a", "b", "c", "d", "e"), (None, 0.5, 0.0, None, 0.0), 2, 2, False)
    assert to_labels(halved, "hard") == (1.0, 1.0, 0.0, None, 0.0)
    assert to_labels(halved, "soft") == (None, 0.5, 0.0, None, 0.0)


@pytest.mark.parametrize("length", range(1, 18))
def test_a_binary_search_finds_a_planted_error_in_few_evaluations(length):
    for error in range(length):
        steps = tuple(f"step {k}" for k in range(length))
        search = find_first_error(steps, answer_correct=False)
        right = Estimate((Continuation(("x",), True, 1), Continuation(("y",), False, 1)))
        wrong = Estimate((Continuation(("x",), False, 1),))
        asked, answer = 0, None
        while True:
            try:
                (prefix,) = search.send(answer)
            except StopIteration as stop:
                found = stop.value
                break
            asked += 1
            answer = [right if len(prefix) <= error else wrong]
        assert found.first_error == error
        assert asked == found.evaluations <= math.ceil(math.log2(length)) + 1
        assert to_labels(found, "hard")[: error + 1] == (*[1.0] * error, 0.0)


def test_a_right_answer_and_an_unjudged_one_are_not_searched():
    with pytest.raises(StopIteration) as stop:
        find_first_error(("a", "b"), answer_correct=True).send(None)
    assert to_labels(stop.value.value, "hard") == (1.0, 1.0)
    with pytest.raises(StopIteration) as stop:
        find_first_error(("a", "b"), answer_correct=None).send(None)
    assert stop.value.value.first_error is None


def test_a_prefix_is_estimated_once_however_many_solutions_share_it():
    (problem,) = world(1)
    asked = completer([problem], skill=1.0)
    first, second = planted(problem, 3), planted(problem, 4)
    run_searches(asked, [(problem, label_every_prefix(s, False)) for s in (first, second)])
    assert asked.cost.evaluations == len({s[:k] for s in (first, second) for k in range(1, 6)}) == 5 + 2


# --- the tree --------------------------------------------------------------------------------------------


def state(prefix, correct, judged, visits=0):
    rollouts = tuple(Continuation((f"{i}",), i < correct, 10) for i in range(judged))
    return State(prefix, Estimate(rollouts), visits)


def test_selection_by_hand():
    shape = TreeSettings(alpha=0.5, beta=0.9, length_scale=10.0, c_puct=0.125)
    good, fair = state(("a",), 3, 4, visits=3), state((), 1, 4, visits=1)
    tree = Tree(states={("a",): good, (): fair})
    tree.pool = [(fair, Continuation(("x",), False, 10)), (good, Continuation(("y",), False, 20))]
    # fair: 0.5^0.75 0.9 + 0.125 2 / 2 = 0.660; good: 0.5^0.25 0.81 + 0.125 2 / 4 = 0.744.
    assert 0.5**0.75 * 0.9 + 0.125 < 0.5**0.25 * 0.81 + 0.0625
    assert select(tree, shape) == 1
    # Enough visits of the good one turn it round: 0.660 .. against 0.681 + 0.125 sqrt(41) / 41.
    good.visits = 40
    assert 0.5**0.75 * 0.9 + 0.125 * math.sqrt(41) / 2 > 0.5**0.25 * 0.81 + 0.125 * math.sqrt(41) / 41
    assert select(tree, shape) == 0


def test_a_tree_finds_the_first_errors_of_its_own_rollouts():
    problems = world(5)
    asked = completer(problems, skill=0.6, k=8)
    trees = run_searches(asked, [(p, grow_tree(TreeSettings(searches=6))) for p in problems])
    searched = 0
    for problem, tree in zip(problems, trees, strict=True):
        assert len(tree.found) == tree.searches <= 6
        assert sum(s.visits for s in tree.states.values()) == tree.searches
        # A search pays for the states it adds, not for those it meets again.
        assert 1 + sum(found.evaluations for found in tree.found) == len(tree.states)
        for found in tree.found:
            verdicts = judge_steps(problem, found.steps)
            assert found.first_error == [v != "right" for v in verdicts].index(True)
            assert found.evaluations <= math.ceil(math.log2(len(found.steps)))
            searched += 1
        for found in right_solutions(tree, 3):
            assert all(v == "right" for v in judge_steps(problem, found.steps))
        # Only states with some and not all continuations right feed the pool.
        assert all(0 < s.value < 1 for s, _ in tree.pool)
    assert searched >= 10
    assert asked.cost.evaluations == sum(len(tree.states) for tree in trees)


def test_a_problem_answered_alike_every_time_grows_no_tree():
    problems = world(2)
    for skill in (1.0, 0.0):
        asked = completer(problems, skill)
        trees = run_searches(asked, [(p, grow_tree(TreeSettings())) for p in problems])
        assert all(len(tree.states) == 1 and not tree.found for tree in trees)


# --- whole runs ------------------------------------------------------------------------------------------

SMALL = {"k": 4, "samples_per_problem": 3, "searches": 4, "batch_problems": 2, "seed": 5}


@pytest.mark.parametrize("method", ["monte_carlo", "binary_search", "omega_prm"])
def test_a_killed_run_continues_to_the_same_labels(tmp_path, method):
    problems = world(6)
    settings = LabelSettings(method=method, **SMALL)
    whole = label_problems(problems, settings, completer=completer(problems), output_dir=tmp_path / "a")
    solutions = read_steps(tmp_path / "a" / "labels.jsonl")
    assert [(s.steps, s.labels) for s in solutions] == [(s.steps, s.labels) for s in whole.solutions]
    assert {s.label_kind for s in solutions} == {"mc_soft"}

    def stop(done, total, numbers):
        if done == 4:  # problems: the second batch of two
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_problems(
            problems, settings, completer=completer(problems), output_dir=tmp_path / "b", on_progress=stop
        )
    with (tmp_path / "b" / "progress.jsonl").open("a") as file:
        file.write('{"batch": 2, "cost')  # torn by a crash
    again = completer(problems)
    label_problems(problems, settings, completer=again, output_dir=tmp_path / "b")
    assert (tmp_path / "b" / "labels.jsonl").read_bytes() == (tmp_path / "a" / "labels.jsonl").read_bytes()
    assert (tmp_path / "b" / "summary.json").read_bytes() == (tmp_path / "a" / "summary.json").read_bytes()
    # What was done was not done again: only the third batch's problems were asked about.
    asked = {prompt.split("\n")[0] for prompt in again.generator.prompts}
    assert asked == {p.text for p in problems[4:]}
    with pytest.raises(UserError, match="made with other k; restore"):
        label_problems(
            problems,
            settings.model_copy(update={"k": 5}),
            completer=completer(problems),
            output_dir=tmp_path / "a",
        )


def test_the_summary_adds_up(tmp_path):
    problems = world(6)
    asked = completer(problems)
    settings = LabelSettings(method="monte_carlo", labels="hard", **SMALL)
    labelled = label_problems(problems, settings, completer=asked, output_dir=tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    labels = [y for s in labelled.solutions for y in s.labels]
    assert summary["labels"] == len(labels) and set(labels) == {0.0, 1.0}
    prefixes = {(s.problem, s.steps[:k]) for s in labelled.solutions for k in range(1, len(s.steps))}
    assert summary["cost"]["evaluations"] == len(prefixes)
    assert summary["cost"]["rollouts"] == 6 * 3 + 4 * len(prefixes)
    assert summary["rollouts_per_label"] == pytest.approx(summary["cost"]["rollouts"] / len(labels))


def test_a_tree_labels_each_prefix_once_and_holds_pairs(tmp_path):
    problems = world(6)
    settings = LabelSettings(method="omega_prm", labels="hard", **SMALL)
    labelled = label_problems(problems, settings, completer=completer(problems), output_dir=tmp_path)
    seen = [
        (s.problem, s.steps[: k + 1])
        for s in labelled.solutions
        for k, label in enumerate(s.labels)
        if label is not None
    ]
    assert len(seen) == len(set(seen)) > 20
    by_text = {p.text: p for p in problems}
    for solution in labelled.solutions:
        verdicts = judge_steps(by_text[solution.problem], solution.steps)
        for k, label in enumerate(solution.labels):
            if label is not None:
                # This solver never recovers, so that hard labels are the oracle's.
                assert label == float(all(v == "right" for v in verdicts[: k + 1]))
    assert {s.answer_correct for s in labelled.solutions} == {True, False}
    assert find_pairs(labelled.solutions, "solutions")


def test_the_consensus_keeps_what_the_judge_confirms(tmp_path):
    problems = world(6)
    by_text = {p.text: p for p in problems}

    class Critic:
        """Right about the first error but for solutions whose error is in their first step."""

        def generate(self, prompts, sampling):
            out = []
            for prompt in prompts:
                text, *steps = prompt.split("\n")
                wrong = [v != "right" for v in judge_steps(by_text[text], steps)]
                index = wrong.index(True) if True in wrong else -1
                answer = rf"\boxed{{{1 if index == 0 else index}}}"
                out.append([Sample((), (1,), (0.0,), answer, "stop")] * sampling.n)
            return out

    form = JudgeFormat(lambda problem, steps: "\n".join((problem, *steps)), read_boxed_index)
    settings = LabelSettings(method="monte_carlo", **SMALL | {"k": 16})
    alone = label_problems(problems, settings, completer=completer(problems), output_dir=tmp_path / "a")
    both = label_problems(
        problems,
        settings,
        completer=completer(problems),
        output_dir=tmp_path / "b",
        judge=Judge(Critic(), Sampling(), form),
    )
    kept = [s for s in alone.solutions if s.first_error != 0]
    assert 0 < len(kept) < len(alone.solutions)
    assert [s.steps for s in both.solutions] == [s.steps for s in kept]
    assert both.counts["disagreed"] == len(alone.solutions) - len(kept)
    assert {s.label_kind for s in both.solutions} == {"consensus"}
    assert both.cost.judge_calls == len(alone.solutions)


def test_given_solutions_are_graded_and_labelled(tmp_path):
    problems = world(2)
    given = {
        problems[0].id: [planted(problems[0], 2)],
        problems[1].id: [tuple(problems[1].solution.split("\n")), ()],
    }
    labelled = label_problems(
        problems,
        LabelSettings(method="binary_search", labels="hard", **SMALL),
        completer=completer(problems, skill=1.0),
        output_dir=tmp_path,
        given=given,
    )
    assert [s.first_error for s in labelled.solutions] == [2, -1]
    assert labelled.counts["empty_or_unjudged"] == 1


def test_nothing_to_label_is_said(tmp_path):
    problems = world(2)
    with pytest.raises(UserError, match="could be labelled"):
        label_problems(
            problems,
            LabelSettings(method="omega_prm", **SMALL),
            completer=completer(problems, skill=1.0),
            output_dir=tmp_path,
        )
