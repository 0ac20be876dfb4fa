"""Which problems an iteration takes: every one once an epoch, in an order that a resumed run goes on with."""

import pytest

from data.errors import UserError
from data.schema import Problem
from reasoning_rl.sampler import ProblemSampler

PROBLEMS = [Problem(id=str(k), text="", answer="") for k in range(5)]


def drawn(sampler: ProblemSampler, *counts: int) -> list[str]:
    return [problem.id for count in counts for problem in sampler.next(count)]


def test_every_problem_comes_once_an_epoch_whatever_the_draws_sizes() -> None:
    ids = drawn(ProblemSampler(PROBLEMS, seed=3), 2, 2, 2, 7, 2)
    epochs = [ids[k : k + 5] for k in (0, 5, 10)]
    assert all(sorted(epoch) == ["0", "1", "2", "3", "4"] for epoch in epochs)
    assert epochs[0] != epochs[1], "each epoch has an order of its own"
    assert ids == drawn(ProblemSampler(PROBLEMS, seed=3), 15)
    assert ids != drawn(ProblemSampler(PROBLEMS, seed=4), 15)


def test_a_restored_sampler_goes_on_where_the_first_one_was() -> None:
    first, second = ProblemSampler(PROBLEMS, seed=3), ProblemSampler(PROBLEMS, seed=3)
    drawn(first, 7)
    second.load_state_dict(first.state_dict())
    assert drawn(first, 9) == drawn(second, 9)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (ProblemSampler(PROBLEMS[:4], seed=3), "num_problems was 5 and is now 4"),
        (ProblemSampler(PROBLEMS, seed=4), "seed was 3 and is now 4"),
        (ProblemSampler(PROBLEMS[::-1], seed=3), "problems was [0-9a-f]+ and is now"),
    ],
)
def test_other_problems_or_another_seed_are_refused(other: ProblemSampler, what: str) -> None:
    with pytest.raises(UserError, match=f"cannot resume: {what}.*restore the run's settings"):
        other.load_state_dict(ProblemSampler(PROBLEMS, seed=3).state_dict())
