"""Platt scaling against scikit-learn, and that folding it into the head changes scores exactly so."""

import math
import random

import pytest
import torch
from rl_world import tiny_policy, world
from sklearn.linear_model import LogisticRegression

from data.arithmetic import label_solution
from data.errors import UserError
from prm.calibrate import calibrate, fit_platt, fold_in
from prm.model import new_prm
from prm.scorer import LocalScorer


def scorer_for(tokenizer) -> LocalScorer:
    prm = new_prm(tiny_policy(tokenizer)).eval()
    torch.manual_seed(3)
    torch.nn.init.normal_(prm.score.weight, std=0.5)
    return LocalScorer(prm, tokenizer)


def test_platt_equals_logistic_regression() -> None:
    rng = random.Random(0)
    x = [rng.gauss(0, 2) for _ in range(400)]
    y = [float(rng.random() < 1 / (1 + math.exp(-(1.7 * v - 0.6)))) for v in x]
    slope, offset = fit_platt(x, y)
    reference = LogisticRegression(C=1e9, tol=1e-10).fit([[v] for v in x], y)
    assert slope == pytest.approx(reference.coef_[0, 0], abs=2e-3)
    assert offset == pytest.approx(reference.intercept_[0], abs=2e-3)


def test_folding_moves_every_score_as_the_formula_says() -> None:
    tokenizer, problems = world(6)
    scorer = scorer_for(tokenizer)
    texts, steps = [p.text for p in problems], [p.solution.split("\n") for p in problems]
    before = scorer.score(texts, steps)
    fold_in(scorer.model, 1.4, -0.3)
    for old_row, new_row in zip(before, scorer.score(texts, steps), strict=True):
        for old, new in zip(old_row, new_row, strict=True):
            odds = 1.4 * math.log(old / (1 - old)) - 0.3
            assert new == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-5)


def test_calibration_lowers_the_cross_entropy_and_separable_labels_stay_finite() -> None:
    tokenizer, problems = world(40)
    scorer = scorer_for(tokenizer)
    solutions = [
        label_solution(p, p.solution if i % 3 else "Ann has 1\n" + p.solution) for i, p in enumerate(problems)
    ]

    def nats() -> float:
        rows = scorer.score([s.problem for s in solutions], [s.steps for s in solutions])
        pairs = [p for s, row in zip(solutions, rows, strict=True) for p in zip(s.labels, row, strict=True)]
        return sum(-math.log(score if label else 1 - score) for label, score in pairs) / len(pairs)

    before = nats()
    calibrate(scorer, solutions)
    assert nats() < before
    assert all(math.isfinite(v) for v in fit_platt([-1.0, -2.0, 1.0, 2.0], [0.0, 0.0, 1.0, 1.0]))
    with pytest.raises(UserError, match="steps labelled right and steps labelled wrong"):
        calibrate(scorer, [label_solution(problems[0], problems[0].solution)])
