"""What scores steps or tokens besides the reward model: a live prover, an implicit PRM learning on the way.

scores = signals.add(rollout, scores)            # after `score_rollout` and `gather`
metrics |= signals.learn(rollout, scores)        # after the policy's update
"""

from dataclasses import dataclass, field, replace
from typing import Any

from reasoning_rl.prefix_values import PrefixValues
from reasoning_rl.prime import OnlineImplicitPRM
from reasoning_rl.shares import estimate_together
from reasoning_rl.types import Rollout, Scores


@dataclass
class Signals:
    """The sources that a run has, often none."""

    prover: PrefixValues | None = None
    implicit: OnlineImplicitPRM | None = None
    accelerator: Any = None
    """Of the run, whose processes share the prover's completions; none: there is one process."""
    tokens: int = field(default=0, init=False)
    """Tokens that the last rollout's values took."""

    def parts(self) -> dict[str, Any]:
        """What a checkpoint must hold, alike on all processes."""
        return {} if self.implicit is None else dict(self.implicit.parts())

    def own_parts(self) -> dict[str, Any]:
        """What a checkpoint must hold of every process."""
        return {} if self.prover is None else {"prover": self.prover.completer.generator}

    def add(self, rollout: Rollout, scores: Scores) -> Scores:
        """Return the scores with a prover's values in the steps' place, and with token rewards."""
        if self.prover is not None:
            values, starts, self.tokens = estimate_together(
                self.prover, rollout, scores.outcomes, self.accelerator
            )
            scores = replace(scores, step_scores=values, scored=rollout.step_mask, start_scores=starts)
        if self.implicit is not None:
            scores = replace(scores, token_rewards=self.implicit.token_rewards(rollout))
        return scores

    def learn(self, rollout: Rollout, scores: Scores) -> dict[str, float]:
        """Let the implicit PRM learn this batch's outcomes; return its metrics and the tokens spent."""
        metrics = {} if self.prover is None else {"rollout/value_tokens": float(self.tokens)}
        return metrics if self.implicit is None else metrics | self.implicit.update(rollout, scores)
