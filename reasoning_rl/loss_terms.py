"""What weighs and joins the policy's loss: aggregation over tokens and responses, the KL penalty as a loss.

B rollouts, T tokens. Pure functions, as in functional.py; its conventions hold.
"""

from typing import Literal

import torch
from torch import Tensor

from reasoning_rl.functional import MAX_LOG_RATIO, kl_estimate

Aggregation = Literal["token", "sequence", "fixed"]


def token_weights(mask: Tensor, kind: Aggregation, *, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Return (weights (B, T) f32, divisor): a loss is sum(weights * per token) / sum of all ranks' divisors.

    token     every token alike: a long response weighs more. (DAPO, arXiv:2503.14476; PPO's usual mean)
    sequence  every response alike: its tokens' mean, so a token of a long response weighs less. (GRPO,
              arXiv:2402.03300)
    fixed     tokens alike, divided by rows * max_tokens: a constant, so that neither the lengths of this
              response nor of the others change a token's weight. (Dr. GRPO, arXiv:2503.20783)

    The divisor counts rows without any counted token in "fixed" only.
    """
    weights = mask.float()
    lengths = weights.sum(1)
    if kind == "sequence":
        return weights / lengths.clamp(min=1)[:, None], (lengths > 0).sum()
    if kind == "fixed":
        return weights, torch.tensor(len(mask) * max_tokens, device=mask.device)
    assert kind == "token", kind
    return weights, mask.sum()


def kl_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    estimator: Literal["k1", "k2", "k3"],
    weights: Tensor,
    divisor: float | Tensor,
) -> Tensor:
    """Return the weighted mean KL to the reference (scalar, nats), differentiable in `logprobs`.

    GRPO's penalty (eq. 4, arXiv:2402.03300: k3). Over fresh samples the expected gradient of k2 is that of
    KL(pi || ref), of k3 that of KL(ref || pi), and of k1 it is 0: no loss. A log ratio beyond +-20 is held
    there and has no gradient.
    """
    log_ratio = torch.where(mask, logprobs - ref_logprobs.detach(), 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    per_token = kl_estimate(log_ratio, torch.zeros_like(log_ratio), estimator)
    return (per_token * weights).sum() / torch.as_tensor(divisor).clamp(min=1)
