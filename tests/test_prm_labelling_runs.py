"""What a labelling run refuses, and how its rows agree with each other."""

import pytest

from data.errors import UserError
from eval.benchmarks import BENCHMARKS
from prm.labelling.settings import LabelConfig
from reasoning_rl.labelling import label_benchmark


@pytest.mark.parametrize("name", [name for name, b in BENCHMARKS.items() if b.judges == "program"])
def test_programs_are_not_cut_into_steps(name):
    with pytest.raises(UserError, match=f"{name}: answers are programs, whose indentation is lost"):
        label_benchmark(name, LabelConfig(model="never read", source="never read"))
