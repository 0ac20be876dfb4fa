"""Platt scaling of a PRM, folded into its head: scores become probabilities of the distribution at hand.

A PRM trained on a mix richer in mistakes than what it will judge is too pessimistic, but ranks well: two
numbers fitted on held-out step labels mend that, and as they live in the head's weights, every reader of the
model gets the calibrated scores. (Platt 1999, "Probabilistic outputs for support vector machines")
"""

import math
from collections.abc import Sequence

import torch

from data.errors import UserError
from data.schema import StepSolution
from prm.model import PRM, classifier
from prm.readout import objective_of
from prm.scorer import LocalScorer


def calibrate(scorer: LocalScorer, solutions: Sequence[StepSolution]) -> tuple[float, float]:
    """Fit slope and offset of the score's log-odds on labelled solutions, fold them in, and return them."""
    scores = scorer.score([s.problem for s in solutions], [s.steps for s in solutions])
    pairs = [
        (_log_odds(score), label)
        for solution, row in zip(solutions, scores, strict=True)
        for label, score in zip(solution.labels, row, strict=True)
        if label is not None and score is not None
    ]
    labels = [label for _, label in pairs]
    if not pairs or min(labels) >= 0.5 or max(labels) < 0.5:
        raise UserError(
            f"calibration needs steps labelled right and steps labelled wrong; all {len(labels)} are alike: "
            "give more or harder solutions"
        )
    slope, offset = fit_platt([odds for odds, _ in pairs], labels)
    fold_in(scorer.model, slope, offset)
    return slope, offset


def fit_platt(log_odds: Sequence[float], labels: Sequence[float]) -> tuple[float, float]:
    """Return (slope, offset) of least cross-entropy of sigmoid(slope x + offset), by damped Newton steps."""
    x = torch.tensor(log_odds, dtype=torch.float64)
    y = torch.tensor(labels, dtype=torch.float64)
    design = torch.stack([x, torch.ones_like(x)], dim=1)  # (N, 2)
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(design @ weights)
        gradient = design.T @ (p - y)
        # The ridge keeps labels that one threshold separates perfectly from driving the slope to infinity.
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-3 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(hessian, gradient)
        weights = weights - step.clamp(-1.0, 1.0)
        if float(step.abs().max()) < 1e-9:
            break
    return float(weights[0]), float(weights[1])


def fold_in(prm: PRM, slope: float, offset: float) -> None:
    """Change the head so that its log-odds become slope x + offset. Raises UserError for a PRM without a head
    of one or two outputs: no linear change of three classes does it."""
    kind = objective_of(prm.config)
    if kind in ("implicit", "three_class"):
        raise UserError(
            f"calibration: a PRM of objective {kind} has no log-odds to scale; choose a threshold"
        )
    head = classifier(prm)
    shift = [offset] if head.weight.shape[0] == 1 else [-offset / 2, offset / 2]
    with torch.no_grad():
        head.weight.mul_(slope)
        if head.bias is None:
            head.bias = torch.nn.Parameter(head.weight.new_zeros(len(shift)))
        head.bias.mul_(slope)
        head.bias += head.bias.new_tensor(shift)


def _log_odds(score: float) -> float:
    score = min(max(score, 1e-7), 1 - 1e-7)
    return math.log(score / (1 - score))
