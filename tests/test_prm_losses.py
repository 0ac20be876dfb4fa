import math

import pytest
import torch
from test_prm_train import TOKENIZER

from data.schema import StepSolution
from prm.examples import label_solutions
from prm.losses import step_cross_entropy, supervision_mask


def test_cross_entropy_by_hand():
    # softmax(0, ln 3) = (1/4, 3/4); softmax(ln 4, 0) = (4/5, 1/5).
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0], [0.0, 0.0]])
    loss, stats = step_cross_entropy(logits, torch.tensor([1.0, 1.0, 0.0]))
    assert float(loss) == pytest.approx(-math.log(3 / 4) - math.log(1 / 5) - math.log(1 / 2), rel=1e-6)
    # The tie of the third step counts as "correct", against its label; the second step is judged wrong.
    assert (int(stats.correct), float(stats.positive)) == (1, 2.0)
    assert float(stats.score) == pytest.approx(3 / 4 + 1 / 5 + 1 / 2)


def test_a_soft_label_weighs_both_classes():
    # P(correct) = 3/4, label 0.6: -(0.6 ln 3/4 + 0.4 ln 1/4).
    loss, _ = step_cross_entropy(torch.tensor([[0.0, math.log(3)]]), torch.tensor([0.6]))
    assert float(loss) == pytest.approx(-(0.6 * math.log(0.75) + 0.4 * math.log(0.25)), rel=1e-6)


def test_a_soft_label_is_the_mixture_of_hard_ones():
    torch.manual_seed(0)
    logits = torch.randn(7, 2, dtype=torch.float64)
    soft = torch.rand(7, dtype=torch.float64)
    mixed = sum(
        y * step_cross_entropy(row[None], torch.ones(1))[0]
        + (1 - y) * step_cross_entropy(row[None], torch.zeros(1))[0]
        for row, y in zip(logits, soft, strict=True)
    )
    torch.testing.assert_close(
        step_cross_entropy(logits, soft)[0].double(), mixed.double(), rtol=1e-5, atol=0
    )


def test_the_gradient_vanishes_exactly_where_the_score_equals_the_label():
    logits = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    step_cross_entropy(logits, torch.tensor([0.75]))[0].backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 2), rtol=0, atol=1e-7)


def test_extreme_logits_stay_finite():
    loss, _ = step_cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([1.0]))
    assert float(loss) == pytest.approx(2e4)


@pytest.mark.parametrize(
    ("labels", "mode", "expected"),
    [
        ([1, 0, 1, 0], "all", [True, True, True, True]),
        ([1, 0, 1, 0], "first_error", [True, True, False, False]),
        ([1, 1], "first_error", [True, True]),
        ([0], "first_error", [True]),
        ([], "first_error", []),
        # An unrated step is never supervised and ends nothing.
        ([1, None, 1, 0, None, 1], "first_error", [True, False, True, True, False, False]),
        ([None, None], "all", [False, False]),
        # A soft label ends the supervision below one half.
        ([0.9, 0.5, 0.4, 0.9], "first_error", [True, True, True, False]),
    ],
)
def test_supervised_steps(labels, mode, expected):
    assert supervision_mask(labels, mode) == expected


@pytest.mark.parametrize(
    ("labels", "first_error", "expected"),
    [
        # A value of rollouts is an error at 0 only, or where the row says so.
        ([0.9, 0.4, 0.1, 0.0, 0.2], None, [True, True, True, True, False]),
        ([0.9, 0.4, None, 0.0, 0.2], 2, [True, True, False, False, False]),
        ([0.9, 0.0, 0.2], -1, [True, True, True]),
    ],
)
def test_values_of_rollouts_end_at_an_error_not_at_one_half(labels, first_error, expected):
    assert supervision_mask(labels, "first_error", kind="mc_soft", first_error=first_error) == expected
    row = StepSolution("p", ("a",) * len(labels), tuple(labels), "", "", "mc_soft", first_error)
    (example,) = label_solutions(TOKENIZER, [row], joiner="\n", supervise="first_error")
    assert len(example.labels) == sum(expected)
