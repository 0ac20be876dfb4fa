"""How far the sampler's logprobs are from the trainer's: another engine, other kernels, older weights.

Both are logprobs of the same tokens: `behaviour` as the engine sampled them, `old` as the trainer's model has
them before the update. With top-p or top-k the engine's are those of what truncation left, so they also
differ by the mass that was cut off; only without truncation does 0 stand for two equal models.
"""

from torch import Tensor

from reasoning_rl.config import RolloutConfig
from reasoning_rl.functional import Reduce, importance_weights, kl_estimate, masked_moments


def mismatch_metrics(
    old: Tensor, behaviour: Tensor, mask: Tensor, *, reduce: Reduce | None = None
) -> dict[str, float]:
    """Return mean and largest absolute difference (B, T -> nats a token) and the k3 estimate of KL(mu || pi).

    Mean and KL are over the masked tokens of all processes, the largest is over the rows that are given.
    """
    difference = (old - behaviour).abs() * mask
    return {
        "rollout/mismatch_mean": _mean(difference, mask, reduce),
        "rollout/mismatch_max": difference.max().item(),
        "rollout/mismatch_kl": _mean(kl_estimate(behaviour, old, "k3"), mask, reduce),
    }


def correct_mismatch(
    old: Tensor, behaviour: Tensor, mask: Tensor, config: RolloutConfig, *, reduce: Reduce | None = None
) -> tuple[Tensor | None, dict[str, float]]:
    """Return the weight of every token in the policy loss (B, T), None for 1, and what the cap cut."""
    if config.truncated_is == "off":
        return None, {}
    weights = importance_weights(old, behaviour, mask, level=config.truncated_is, cap=config.is_cap)
    return weights, {
        "rollout/importance_weight": _mean(weights, mask, reduce),
        "rollout/importance_capped": _mean((weights >= config.is_cap).float(), mask, reduce),
    }


def _mean(values: Tensor, mask: Tensor, reduce: Reduce | None) -> float:
    return float(masked_moments(values, mask, reduce=reduce)[0])
