"""Losses of process reward models and which steps they look at. Pure functions of tensors.

N supervised steps, R solutions, C classes. A label is P(correct) in [0, 1], hard or soft, and counts as
correct from 1/2 on. Every loss is a sum in nats (squared error aside); the caller divides once.

    loss, stats = step_cross_entropy(logits, labels)          # two classes: 0 wrong, 1 correct
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, logsigmoid

from prm.config import Supervision

VALUE_KINDS = ("mc_soft", "consensus")
"""Label kinds whose labels may be shares of right rollouts: only 0 is an error, a low value is not."""


def is_right(label: float, kind: str = "human") -> bool:
    """Return whether a label of this kind says that no mistake was made up to its step."""
    return label > 0 if kind in VALUE_KINDS else label >= 0.5


@dataclass(frozen=True)
class StepStats:
    """Detached sums over the supervised steps."""

    correct: Tensor
    """Steps whose predicted class agrees with the label cut at 1/2."""
    positive: Tensor
    """Sum of the labels: with the count, the share of correct steps."""
    score: Tensor
    """Sum of the predicted P(correct)."""


def step_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, StepStats]:
    """Return the cross-entropy in nats summed over steps, and sums to report.

    logits (N, 2); labels (N,) in [0, 1]: a soft label y weighs the classes y and 1 - y.
    """
    logprobs = log_softmax(logits.float(), dim=-1)  # (N, 2)
    labels = labels.to(logprobs.dtype)
    loss = -(labels * logprobs[:, 1] + (1 - labels) * logprobs[:, 0]).sum()
    with torch.no_grad():
        agrees = (logits[:, 1] >= logits[:, 0]) == (labels >= 0.5)
        stats = StepStats(correct=agrees.sum(), positive=labels.sum(), score=logprobs[:, 1].exp().sum())
    return loss, stats


def step_binary_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, StepStats]:
    """Return -(y log sigmoid(z) + (1 - y) log sigmoid(-z)) summed over steps. logits (N, 1); labels (N,)."""
    logits = logits.float().squeeze(-1)  # (N,)
    labels = labels.to(logits.dtype)
    return binary_cross_entropy_with_logits(logits, labels, reduction="sum"), _stats(logits.sigmoid(), labels)


def step_squared_error(logits: Tensor, labels: Tensor) -> tuple[Tensor, StepStats]:
    """Return (sigmoid(z) - y)^2 summed over steps. logits (N, 1); labels (N,).

    The sigmoid keeps the prediction a probability; regressing the bare logit would leave [0, 1].
    """
    scores = logits.float().squeeze(-1).sigmoid()  # (N,)
    labels = labels.to(scores.dtype)
    return (scores - labels).square().sum(), _stats(scores, labels)


def step_three_class(logits: Tensor, labels: Tensor) -> tuple[Tensor, StepStats]:
    """Return the cross-entropy over wrong, neutral, correct summed over steps.

    logits (N, 3); labels (N,), each exactly 0, 1/2 or 1. The score is P(neutral) + P(correct), a step's
    validity (arXiv:2404.05692): a neutral step is no mistake.
    """
    logprobs = log_softmax(logits.float(), dim=-1)  # (N, 3)
    classes = (2 * labels).round().long()
    loss = -logprobs.gather(1, classes[:, None]).sum()
    return loss, _stats(1 - logprobs[:, 0].exp(), labels.to(logprobs.dtype))


def pqm_ranking(
    logits: Tensor, labels: Tensor, rows: Tensor, *, zeta: float = 4.0
) -> tuple[Tensor, StepStats]:
    """Return PQM's comparative loss: the mean over each solution's terms, summed over the R solutions.

    logits (N, 1) are Q-values, steps of a solution in order; labels (N,); rows (N,) names each step's
    solution. With correct steps c_1 .. c_m, wrong steps W, and Q_c0 = 0 for the state before the first step,
    term i = 0 .. m is -log( e^Q_ci / (sum_{j <= i} e^Q_cj + sum_{w in W} e^(Q_w + zeta)) ): a correct step
    ranks above those before it, and above every wrong one by the margin. Eq. 10, arXiv:2410.11287. Without a
    wrong step term 0 is always 0 and is left out of the mean, as in the authors' code.
    """
    values = logits.float().squeeze(-1)  # (N,)
    is_correct = labels >= 0.5
    loss = values.new_zeros(())
    for row in rows.unique().tolist():
        mine = rows == row
        climbing = torch.cat([values.new_zeros(1), values[mine & is_correct]])  # (m + 1,)
        wrong = values[mine & ~is_correct] + zeta
        below = torch.logcumsumexp(climbing, dim=0)
        if len(wrong):
            below = torch.logaddexp(below, wrong.logsumexp(0))
        terms = below - climbing
        loss = loss + (terms if len(wrong) else terms[1:]).mean()
    # Reported as the loss is: each solution counts once, however many steps it has.
    sizes = (rows[:, None] == rows[None]).sum(-1)
    return loss, _stats(values.sigmoid(), labels.to(values.dtype), 1 / sizes)


def bradley_terry(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log sigmoid(chosen - rejected) summed over the pairs, and how many the model orders right.

    chosen, rejected (N,): one reward a side. Differences alone are learned, so a constant is arbitrary.
    """
    margins = chosen.float() - rejected.float()
    return -logsigmoid(margins).sum(), (margins > 0).sum().detach()


def implicit_cross_entropy(log_ratios: Tensor, outcomes: Tensor, *, beta: float) -> tuple[Tensor, StepStats]:
    """Return the outcome cross-entropy of sigmoid(beta x log-ratio) summed over the R solutions.

    log_ratios (R,): sum over a response's tokens of log pi(token) - log pi_ref(token); outcomes (R,) in
    [0, 1]. The same sum up to step t is then the step's Q-value (arXiv:2412.01981).
    """
    return step_binary_cross_entropy(beta * log_ratios[:, None], outcomes)


def supervision_mask(
    labels: Sequence[float | None],
    mode: Supervision = "all",
    *,
    kind: str = "human",
    first_error: int | None = None,
) -> list[bool]:
    """Return which steps are supervised. A step without label never is; it does not end "first_error".

    kind, first_error: as StepSolution has them. Values of rollouts end at first_error where it is known.
    """
    known = first_error if kind in VALUE_KINDS else None
    mask = []
    open_ = True
    for index, label in enumerate(labels):
        mask.append(label is not None and open_)
        if mode == "all":
            continue
        if known is not None:
            open_ = open_ and index != known
        elif label is not None and not is_right(label, kind):
            open_ = False
    return mask


@torch.no_grad()
def _stats(scores: Tensor, labels: Tensor, weights: Tensor | float = 1.0) -> StepStats:
    agrees = (scores >= 0.5) == (labels >= 0.5)
    return StepStats(
        correct=(agrees * weights).sum(), positive=(labels * weights).sum(), score=(scores * weights).sum()
    )
