"""What a labelling run refuses, and how its rows agree with each other."""

from dataclasses import replace

import pytest
from test_prm_labelling import SMALL, completer, planted, world

from data.arithmetic import judge_steps
from data.errors import UserError
from data.schema import Sampling, Verdict
from eval.benchmarks import BENCHMARKS
from prm.labelling.judge import JudgeFormat
from prm.labelling.prefixes import PrefixValues, revive, to_labels
from prm.labelling.run import Judge, label_problems
from prm.labelling.settings import LabelConfig, LabelSettings
from prm.pairs import find_pairs
from reasoning_rl.labelling import label_benchmark


@pytest.mark.parametrize("name", [name for name, b in BENCHMARKS.items() if b.judges == "program"])
def test_programs_are_not_cut_into_steps(name):
    with pytest.raises(
        UserError, match=f"{name}: answers are programs, whose indentation splitter 'newline' loses"
    ):
        label_benchmark(name, LabelConfig(model="never read", source="never read"))


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_trees_rows_hold_sibling_pairs_the_oracle_confirms(tmp_path, labels):
    problems = world(20)
    settings = LabelSettings(method="omega_prm", labels=labels, **SMALL)
    found = label_problems(problems, settings, completer=completer(problems), output_dir=tmp_path)
    pairs = find_pairs(found.solutions, "steps")
    assert len(pairs) >= 40
    by_text = {p.text: p for p in problems}
    for pair in pairs:
        chosen, rejected = (
            [v == "right" for v in judge_steps(by_text[pair.problem], (*pair.prefix, *side))]
            for side in (pair.chosen, pair.rejected)
        )
        assert all(chosen) and all(rejected[:-1]) and not rejected[-1]


def test_edited_solutions_or_problems_are_another_run(tmp_path):
    problems = world(2)
    settings = LabelSettings(method="binary_search", **SMALL)

    def label(error, problems=problems):
        given = {p.id: [planted(p, error)] for p in problems}
        run = {"completer": completer(problems), "output_dir": tmp_path, "given": given}
        return label_problems(problems, settings, **run).solutions

    assert [s.steps for s in label(2)] == [s.steps for s in label(2)]
    with pytest.raises(UserError, match="made with other given_solutions; restore"):
        label(3)
    with pytest.raises(UserError, match="made with other problem_texts; restore"):
        label(2, [replace(problems[0], answer="7"), problems[1]])


def test_a_right_continuation_anywhere_revives_the_prefixes_before_it():
    # Too few rollouts missed "a b" twice, and a right solution and a longer prefix come through it.
    found = [
        PrefixValues(("a", "b", "c", "d"), (None, 0.0, None, 0.0), 1, 2, False),
        PrefixValues(("a", "b", "x", "y", "z"), (1.0, 0.0, 0.5, 0.0, 0.0), 1, 4, False),
        PrefixValues(("a", "b", "c"), (None, None, 1.0), -1, 0, True),
        PrefixValues(("q", "b"), (0.0, 0.0), 0, 1, False),
    ]
    revived = revive(found)
    assert [to_labels(values, "hard") for values in revived] == [
        (1.0, 1.0, 1.0, 0.0),
        (1.0, 1.0, 1.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        (0.0, 0.0),
    ]
    # "a b c" is right as a whole, so that the first row's error is its last step.
    assert [values.first_error for values in revived] == [3, 3, -1, 0]
    assert revive(found[:1] + found[3:]) == found[:1] + found[3:]
    # Without the right solution "c" is unknown, and so is the first error.
    assert revive(found[:2])[0].first_error is None


@pytest.mark.parametrize("method", ["monte_carlo", "binary_search", "omega_prm"])
def test_hard_labels_of_a_file_never_contradict_each_other(tmp_path, method):
    problems = world(30)
    settings = LabelSettings(method=method, labels="hard", **SMALL | {"k": 2})
    rows = label_problems(
        problems, settings, completer=completer(problems, 0.4), output_dir=tmp_path
    ).solutions
    alive = {
        (s.problem, s.steps[: j + 1]) for s in rows for k, y in enumerate(s.labels) if y for j in range(k + 1)
    }
    zeros = [(s.problem, s.steps[: k + 1]) for s in rows for k, y in enumerate(s.labels) if y == 0]
    assert zeros and not alive & set(zeros)
    assert all(s.labels[s.first_error] in (0, None) for s in rows if (s.first_error or 0) > 0)


def test_the_refusal_names_what_came_in_the_way(tmp_path):
    problems = world(2)
    settings = LabelSettings(method="monte_carlo", **SMALL)

    def label(folder, **over):
        run = {"completer": completer(problems), "output_dir": tmp_path / folder} | over
        label_problems(problems, settings, **run)

    unjudged = completer(problems)
    unjudged.grader = lambda *_: Verdict("unjudged")
    with pytest.raises(UserError, match="the grader cannot judge their answers"):
        label("a", completer=unjudged)

    class Mute:
        def generate(self, prompts, sampling):
            return completer(problems).generator.generate([problems[0].text] * len(prompts), sampling)

    form = JudgeFormat(lambda *_: "", lambda *_: None)
    with pytest.raises(UserError, match="the judge agrees with none"):
        label("b", judge=Judge(Mute(), Sampling(), form))
    with pytest.raises(UserError, match="nothing to label"):
        label("c", given={})
    alike = LabelSettings(method="omega_prm", **SMALL)
    with pytest.raises(UserError, match="all right or all wrong"):
        label_problems(problems, alike, completer=completer(problems, 1.0), output_dir=tmp_path / "d")
