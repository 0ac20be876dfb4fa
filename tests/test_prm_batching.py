import pytest

from data.errors import UserError
from prm.batching import cut_by_tokens, drop_overlong, plan_micro_batches


def test_micro_batches_stay_within_the_padded_budget():
    lengths = [9, 2, 3, 8, 3, 1]
    # By falling length 9 | 8 | 3 3 2 | 1: two rows of width 9 are 18 > 12, four of width 3 are 12.
    plan = plan_micro_batches(range(6), lengths, 12)
    assert [[lengths[row] for row in micro] for micro in plan] == [[9], [8], [3, 3, 2, 1]]
    assert cut_by_tokens([0], lengths, 4) == [[0]]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_batch_with_equal_numbers_of_micro_batches(world):
    lengths = [40, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    plans = [plan_micro_batches(range(12), lengths, 40, rank=rank, world=world) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    assert sorted(row for plan in plans for micro in plan for row in micro) == list(range(12))
    assert all(micro for plan in plans for micro in plan)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_an_odd_last_batch_leaves_no_row_out(count):
    lengths = [9, 8, 7, 6, 5]
    plans = [plan_micro_batches(range(count), lengths, 16, rank=rank, world=2) for rank in range(2)]
    assert len({len(plan) for plan in plans}) == 1
    assert sorted(row for plan in plans for micro in plan for row in micro) == list(range(count))


class Example(list):
    id = "p7"


def test_examples_beyond_the_limit_are_left_out_and_told_or_refused(caplog):
    short, long = Example([1, 2]), Example([1, 2, 3, 4])
    assert drop_overlong([short, long], 2, "skip") == ([short], 1)
    assert "1 of 2 examples exceed 2 tokens" in caplog.text
    assert drop_overlong([short, long], 4, "error") == ([short, long], 0)
    with pytest.raises(UserError, match=r"example p7 has 4 tokens, the limit is 3 \(1 of 2 exceed it\)"):
        drop_overlong([short, long], 3, "error")
