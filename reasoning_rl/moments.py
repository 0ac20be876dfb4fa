"""What PPO carries from iteration to iteration besides its models: running moments and the KL coefficient.

All of it is Python floats (64 bit), so a checkpoint restores it exactly, and the same on every rank, as
updates see sums over ranks. `reduce` adds a small tensor up over ranks; None = one rank. `values` are the
entries that count, in any shape: select with a mask first; a rank may have none.

    moments.update(step_rewards[step_mask])          # before normalising: the newest rewards count too
    step_rewards = moments.normalise(step_rewards, "standardise", clip=3.0)
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from reasoning_rl.functional import Reduce, masked_moments

Normalisation = Literal["standardise", "scale", "off"]


class RunningMoments:
    """Mean and standard deviation of every value ever seen, merged batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0  # sum of squared deviations from the mean

    @property
    def std(self) -> float:
        """The unbiased standard deviation; 1 while it is unknown (fewer than two values, or all alike)."""
        if self.count < 2:
            return 1.0
        std = math.sqrt(self.squares / (self.count - 1))
        # Below rounding noise there is no spread to speak of, and dividing by it would only amplify noise.
        return std if std > 1e-6 * max(1.0, abs(self.mean)) else 1.0

    def update(self, values: Tensor, reduce: Reduce | None = None) -> None:
        """Take values in, over all ranks. Fails on non-finite ones: they would spoil every later reward."""
        mean, variance, count = _moments(values, reduce)
        if count == 0:
            return
        total = self.count + count
        distance = mean - self.mean
        self.squares += variance * count + distance**2 * self.count * count / total
        self.mean += distance * count / total
        self.count = total

    def normalise(self, values: Tensor, mode: Normalisation, *, clip: float | None = None) -> Tensor:
        """Return (values - mean) / std, values / std or values, then clipped to [-clip, clip] (None = not).

        Entries that a mask leaves out are shifted as well: mask again afterwards.
        """
        if mode == "standardise":
            values = (values - self.mean) / self.std
        elif mode == "scale":
            values = values / self.std
        else:
            assert mode == "off", mode
        return values if clip is None else values.clamp(-clip, clip)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = int(state["count"])
        self.mean = float(state["mean"])
        self.squares = float(state["squares"])


class ValueNormalizer:
    """Puts returns into units in which the critic learns: debiased exponential moments (arXiv:2404.10719).

    The critic predicts normalised values; `denormalise` before GAE, `normalise` the returns for the value
    loss. The identity until the first update. The critic's head is not rescaled when the moments move (no
    PopArt).
    """

    def __init__(self, beta: float = 0.99995, min_variance: float = 1e-2) -> None:
        assert 0 <= beta < 1, beta
        self.beta = beta
        self.min_variance = min_variance
        self.num_updates = 0
        self._mean = 0.0  # biased towards 0, as is the next
        self._mean_square = 0.0

    @property
    def mean(self) -> float:
        """The debiased mean; 0 before the first update."""
        return self._mean / self._debias() if self.num_updates else 0.0

    @property
    def std(self) -> float:
        """Never below sqrt(min_variance)."""
        if not self.num_updates:
            return 1.0
        variance = self._mean_square / self._debias() - self.mean**2
        return math.sqrt(max(variance, self.min_variance))

    def update(self, values: Tensor, reduce: Reduce | None = None) -> None:
        """Take one batch of returns in, over all ranks; batches weigh alike. Fails on non-finite ones."""
        mean, variance, count = _moments(values, reduce)
        if count == 0:
            return
        self._mean = self.beta * self._mean + (1 - self.beta) * mean
        self._mean_square = self.beta * self._mean_square + (1 - self.beta) * (variance + mean**2)
        self.num_updates += 1

    def normalise(self, values: Tensor, *, clip: float | None = None) -> Tensor:
        """Return (values - mean) / std, clipped to [-clip, clip] (None = not)."""
        values = (values - self.mean) / self.std
        return values if clip is None else values.clamp(-clip, clip)

    def denormalise(self, values: Tensor) -> Tensor:
        """Return values * std + mean: the inverse of `normalise` without clip."""
        return values * self.std + self.mean

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "mean": self._mean, "mean_square": self._mean_square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_updates = int(state["num_updates"])
        self._mean = float(state["mean"])
        self._mean_square = float(state["mean_square"])

    def _debias(self) -> float:
        return -math.expm1(self.num_updates * math.log(self.beta)) if self.beta else 1.0


class FixedKL:
    """A KL coefficient that stays, unless it is raised. On resuming, the config's value counts, as raised."""

    def __init__(self, coef: float) -> None:
        self.initial = self.coef = coef

    def update(self, kl: float, num_rollouts: int) -> float:
        """Return the coefficient for the next iteration."""
        return self.coef

    def raise_by(self, factor: float, *, most: float) -> None:
        """Multiply the coefficient, up to `most`; one of 0 cannot be raised."""
        self.coef = max(self.coef, min(self.coef * factor, most))

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef, "raised": self.coef / self.initial if self.initial else 1.0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coef = self.initial * float(state.get("raised", 1.0))


class AdaptiveKL:
    """A KL coefficient steered towards a target KL (arXiv:1909.08593).

    target: nats per *response* (summed over its tokens). horizon: rollouts in which a relative
    error of 1, were it not clipped, would double the coefficient. clip: bound on the relative error.
    """

    def __init__(
        self, coef: float, *, target: float = 6.0, horizon: float = 10_000, clip: float = 0.2
    ) -> None:
        assert coef > 0, "a coefficient of 0 can never move"
        assert target > 0, target
        assert horizon > 0, horizon
        self.coef = coef
        self.target = target
        self.horizon = horizon
        self.clip = clip

    def update(self, kl: float, num_rollouts: int) -> float:
        """Take the mean KL per response of `num_rollouts` rollouts in; return the next coefficient."""
        assert math.isfinite(kl), f"KL to the reference is {kl}"
        error = min(max(kl / self.target - 1, -self.clip), self.clip)
        # Never below 0, whatever the ratio of batch to horizon.
        self.coef *= max(1 + error * num_rollouts / self.horizon, 0.1)
        return self.coef

    def raise_by(self, factor: float, *, most: float) -> None:
        """Multiply the coefficient, up to `most`; the controller goes on from there."""
        self.coef = max(self.coef, min(self.coef * factor, most))

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coef = float(state["coef"])


def _moments(values: Tensor, reduce: Reduce | None) -> tuple[float, float, int]:
    """(mean, population variance, count) over all ranks, in double precision wherever the device has it."""
    wide = values.detach().to(torch.float32 if values.device.type == "mps" else torch.float64)
    mean, variance, count = masked_moments(wide, torch.ones_like(wide, dtype=torch.bool), reduce=reduce)
    assert math.isfinite(float(mean)) and math.isfinite(float(variance)), "non-finite rewards or returns"
    return float(mean), float(variance), round(float(count))
