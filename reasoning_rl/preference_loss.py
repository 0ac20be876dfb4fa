"""Losses on pairs of responses, as pure functions. N pairs; every value is summed over a response's tokens.

The policy is its own reward model: r(x, y) = beta (log pi(y | x) - log pi_ref(y | x)), up to a constant of
the prompt that cancels within a pair (arXiv:2305.18290).
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from reasoning_rl.train_config import PreferenceLoss


def preference_loss(
    chosen_ratios: Tensor,
    rejected_ratios: Tensor,
    *,
    kind: PreferenceLoss = "sigmoid",
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the loss of each pair (N,) from the log-ratios log pi - log pi_ref of both responses (N,).

    sigmoid  -log sigmoid(beta h), h = chosen - rejected; with label_smoothing e (conservative DPO) the labels
             are taken to be wrong at rate e: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)
    ipo      (h - 1 / (2 beta))^2: a margin to reach and not to exceed; label_smoothing plays no part
    """
    margins = chosen_ratios - rejected_ratios
    if kind == "ipo":
        return (margins - 1 / (2 * beta)) ** 2  # Eq. 17, arXiv:2310.12036
    # Eq. 7, arXiv:2305.18290; smoothing as in its authors' note on conservative DPO.
    logits = beta * margins
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
