"""Every objective's loss: a hand-worked case, an independent float64 version, its invariances."""

import math
import random

import pytest
import torch

from prm.losses import (
    bradley_terry,
    implicit_cross_entropy,
    pqm_ranking,
    step_binary_cross_entropy,
    step_squared_error,
    step_three_class,
)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def pqm_by_definition(values, labels, zeta):
    """Eq. 10 of arXiv:2410.11287 term by term, with the state before the first step as an anchor of Q 0."""
    right = [0.0] + [q for q, y in zip(values, labels, strict=True) if y >= 0.5]
    wrong = [q for q, y in zip(values, labels, strict=True) if y < 0.5]
    terms = []
    # The authors' code weighs the anchor's own term with "has a wrong step".
    for i, value in list(enumerate(right))[0 if wrong else 1 :]:
        below = sum(math.exp(q) for q in right[: i + 1]) + sum(math.exp(q + zeta) for q in wrong)
        terms.append(-math.log(math.exp(value) / below))
    return sum(terms) / len(terms)


# --- by hand ---------------------------------------------------------------------------------------------


def test_binary_cross_entropy_by_hand():
    # sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2; labels 1 and 0.2: -ln 3/4 - 0.2 ln 1/2 - 0.8 ln 1/2.
    loss, stats = step_binary_cross_entropy(torch.tensor([[math.log(3)], [0.0]]), torch.tensor([1.0, 0.2]))
    assert float(loss) == pytest.approx(math.log(4 / 3) + math.log(2), rel=1e-6)
    assert (float(stats.correct), float(stats.score)) == (1.0, pytest.approx(1.25))


def test_squared_error_by_hand():
    # (3/4 - 1)^2 + (1/2 - 0.2)^2
    loss, stats = step_squared_error(torch.tensor([[math.log(3)], [0.0]]), torch.tensor([1.0, 0.2]))
    assert float(loss) == pytest.approx(0.0625 + 0.09, rel=1e-6)
    assert float(stats.positive) == pytest.approx(1.2)


def test_three_classes_by_hand():
    # softmax(0, ln 2, ln 5) = (1/8, 2/8, 5/8): one step of each class costs ln 8, ln 4, ln 8/5.
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]]).repeat(3, 1)
    loss, stats = step_three_class(logits, torch.tensor([0.0, 0.5, 1.0]))
    assert float(loss) == pytest.approx(math.log(8) + math.log(4) + math.log(8 / 5), rel=1e-6)
    # Valid with 7/8 each: right about the neutral and the correct step.
    assert (float(stats.correct), float(stats.score)) == (2.0, pytest.approx(21 / 8))


def test_pqm_by_hand():
    # Q = (ln 2, wrong: 0), zeta 0. Anchor: e^0 / (1 + 1); c_1: 2 / (1 + 2 + 1). Mean of ln 2 and ln 2.
    values = torch.tensor([[math.log(2)], [0.0]])
    loss, _ = pqm_ranking(values, torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), zeta=0.0)
    assert float(loss) == pytest.approx(math.log(2), rel=1e-6)
    # zeta ln 3 makes the wrong step weigh 3: ln 4 for the anchor, ln 6/2 for c_1.
    loss, _ = pqm_ranking(values, torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), zeta=math.log(3))
    assert float(loss) == pytest.approx((math.log(4) + math.log(3)) / 2, rel=1e-6)
    # All right, Q = (ln 2, ln 3): ln 3/2 and ln 6/3, whose mean is ln 3 / 2; the anchor has no term.
    values = torch.tensor([[math.log(2)], [math.log(3)]])
    loss, _ = pqm_ranking(values, torch.tensor([1.0, 1.0]), torch.tensor([0, 0]), zeta=4.0)
    assert float(loss) == pytest.approx(math.log(3) / 2, rel=1e-6)


def test_bradley_terry_by_hand():
    # Margins ln 3 and -ln 3: -ln 3/4 - ln 1/4.
    loss, num_right = bradley_terry(torch.tensor([math.log(3), 1.0]), torch.tensor([0.0, 1.0 + math.log(3)]))
    assert float(loss) == pytest.approx(math.log(16 / 3), rel=1e-6)
    assert int(num_right) == 1


def test_implicit_by_hand():
    # beta 0.5 on log-ratios 2 ln 3 and -2 ln 3: sigmoid 3/4 and 1/4; both outcomes 1.
    ratios = torch.tensor([2 * math.log(3), -2 * math.log(3)])
    loss, stats = implicit_cross_entropy(ratios, torch.ones(2), beta=0.5)
    assert float(loss) == pytest.approx(math.log(16 / 3), rel=1e-6)
    assert float(stats.correct) == 1.0


# --- against plain float64 -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_their_definitions(seed):
    rng = random.Random(seed)
    z = [rng.gauss(0, 2) for _ in range(9)]
    y = [rng.random() for _ in range(9)]
    logits, labels = torch.tensor(z)[:, None], torch.tensor(y)
    bce = -sum(
        b * math.log(sigmoid(a)) + (1 - b) * math.log(1 - sigmoid(a)) for a, b in zip(z, y, strict=True)
    )
    assert float(step_binary_cross_entropy(logits, labels)[0]) == pytest.approx(bce, rel=1e-5)
    mse = sum((sigmoid(a) - b) ** 2 for a, b in zip(z, y, strict=True))
    assert float(step_squared_error(logits, labels)[0]) == pytest.approx(mse, rel=1e-5)
    ratios = implicit_cross_entropy(logits[:, 0], labels, beta=0.3)[0]
    implicit = -sum(
        b * math.log(sigmoid(0.3 * a)) + (1 - b) * math.log(1 - sigmoid(0.3 * a))
        for a, b in zip(z, y, strict=True)
    )
    assert float(ratios) == pytest.approx(implicit, rel=1e-5)
    pairs = -sum(math.log(sigmoid(a - b)) for a, b in zip(z, y, strict=True))
    assert float(bradley_terry(logits[:, 0], labels)[0]) == pytest.approx(pairs, rel=1e-5)
    three = [[rng.gauss(0, 2) for _ in range(3)] for _ in range(9)]
    classes = [rng.randrange(3) for _ in range(9)]
    plain = -sum(row[c] - math.log(sum(map(math.exp, row))) for row, c in zip(three, classes, strict=True))
    loss, _ = step_three_class(torch.tensor(three), torch.tensor([c / 2 for c in classes]))
    assert float(loss) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    "labels", [[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0.9, 0.5, 0.4, 0.1, 1]]
)
def test_pqm_equals_its_definition_solution_by_solution(labels):
    rng = random.Random(0)
    values = [rng.gauss(0, 2) for _ in range(10)]
    both, rows = [*labels, *reversed(labels)], [0] * 5 + [1] * 5
    expected = pqm_by_definition(values[:5], labels, 4.0) + pqm_by_definition(values[5:], both[5:], 4.0)
    loss, stats = pqm_ranking(torch.tensor(values)[:, None], torch.tensor(both), torch.tensor(rows), zeta=4.0)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(stats.positive) == pytest.approx(2 * sum(labels) / 5)  # each solution's mean


def test_pqm_pushes_right_steps_up_and_wrong_ones_down():
    values = torch.zeros(4, 1, requires_grad=True)
    pqm_ranking(values, torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.zeros(4).long(), zeta=4.0)[0].backward()
    assert (values.grad[:2] < 0).all() and (values.grad[2:] > 0).all()


def test_pqm_stays_finite_at_extreme_values():
    values = torch.tensor([[500.0], [-500.0]], requires_grad=True)
    loss, _ = pqm_ranking(values, torch.tensor([0.0, 1.0]), torch.zeros(2).long(), zeta=4.0)
    loss.backward()
    # Anchor: ln(1 + e^504) ; c_1: ln((1 + e^-500 + e^504) / e^-500).
    assert float(loss.detach()) == pytest.approx((504 + 1004) / 2)
    assert torch.isfinite(values.grad).all()


def test_bradley_terry_learns_differences_only():
    chosen, rejected = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(
        bradley_terry(chosen + 7, rejected + 7)[0], bradley_terry(chosen, rejected)[0], rtol=1e-5, atol=0
    )
