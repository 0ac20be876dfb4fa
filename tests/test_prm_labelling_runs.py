"""What a labelling run refuses, and how its rows agree with each other."""

from dataclasses import replace

import pytest
from test_prm_labelling import SMALL, completer, planted, world

from data.arithmetic import judge_steps
from data.errors import UserError
from eval.benchmarks import BENCHMARKS
from prm.labelling.run import label_problems
from prm.labelling.settings import LabelConfig, LabelSettings
from prm.pairs import find_pairs
from reasoning_rl.labelling import label_benchmark


@pytest.mark.parametrize("name", [name for name, b in BENCHMARKS.items() if b.judges == "program"])
def test_programs_are_not_cut_into_steps(name):
    with pytest.raises(UserError, match=f"{name}: answers are programs, whose indentation is lost"):
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
