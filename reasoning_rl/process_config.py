"""Settings of what pays for or watches over *steps*: provers, the online implicit PRM, the hack gauge."""

from typing import Literal, Self

from pydantic import Field, model_validator

from data.errors import UserError
from data.settings import Settings


class ProverConfig(Settings):
    """Live rollouts of a prover policy in place of a PRM's scores (arXiv 2410.08146)."""

    model: str | None = None
    """Folder or hub id of the prover, a policy that differs from the trained one; off: steps are scored by
    prm, which may have learned a prover's values from `stepwell label`."""
    samples: int = Field(16, ge=1)
    """Rollouts from each step; a value is the share of them that is right."""
    best_of: int = Field(4, ge=1)
    """K: the prover is the best of K rollouts, so a value is the chance that any of K is right. 4 is the
    paper's; 1 is the model itself."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.best_of > self.samples:
            raise UserError(
                f"reward.prover.best_of {self.best_of} cannot be estimated from samples {self.samples}; "
                "raise samples"
            )
        return self


class ImplicitConfig(Settings):
    """An implicit PRM that learns during the run from outcomes alone (PRIME, arXiv 2502.01456)."""

    weight: float = Field(0.0, ge=0)
    """Weight of its token rewards; 0 is off. 5 in its authors' code."""
    model: str | None = None
    """Folder or hub id that it starts from, with the policy's tokenizer: an implicit PRM, or a language model
    that becomes its own reference; none: the policy as it is at the start, as in the paper."""
    beta: float = Field(0.05, gt=0)
    """Scale of the log-ratio to the reference: 0.05 in the paper."""
    learning_rate: float = Field(1e-6, gt=0)
    """Of its AdamW: 1e-6 in the paper."""
    epochs: int = Field(1, ge=1)
    """Passes over each rollout batch, after its rewards were taken."""
    minibatch_size: int = Field(64, ge=1)
    """Responses per update, over all processes; 256 in the paper."""
    max_grad_norm: float = Field(10.0, gt=0)
    """Clip the global gradient norm to this: 10 in the paper's code."""
    normalise: Literal["max_return", "off"] = "max_return"
    """max_return: divide a batch's rewards by the largest return in it (the code's way, so that weight means
    the same early and late); off: beta times the log-ratio as it is."""


class HackConfig(Settings):
    """When the hack gauge raises alarm, and what happens then (`reasoning_rl/hack_gauge.py`)."""

    action: Literal["off", "warn", "stop", "raise_kl"] = "warn"
    """off: measured only. warn: alarms in the metrics and in the terminal. stop: the run ends, with a
    checkpoint and the model as it is. raise_kl: kl.coef is multiplied by kl_factor at each new alarm."""
    kl_factor: float = Field(2.0, gt=1)
    """raise_kl: what the coefficient is multiplied by."""
    max_kl_coef: float = Field(1.0, gt=0)
    """raise_kl: the coefficient is never raised above this."""
    baseline_iterations: int = Field(2, ge=1)
    """First iterations, whose mean is what later ones are compared with."""
    window: int = Field(8, ge=2)
    """Iterations over which trends are taken."""
    patience: int = Field(2, ge=1)
    """Iterations in a row for which a bound must be broken."""
    max_gap_rise: float = Field(0.25, gt=0)
    """PRM score less verified accuracy, above the baseline's."""
    max_outcome_drop: float = Field(0.15, gt=0, le=1)
    """Verified accuracy below its best so far while the PRM score is no lower than it was then."""
    min_correlation: float = Field(0.0, ge=-1, le=1)
    """Of the PRM's pay with the verified outcome, over a batch where both vary."""
    max_drift: float = Field(1.5, gt=1)
    """Steps or tokens of a response against the baseline, as a factor either way."""
    max_short: float = Field(0.2, gt=0, le=1)
    """Share of responses with 0 steps, or with 1, above the baseline's."""
    max_repetition: float = Field(0.2, gt=0, le=1)
    """Share of repeated n-grams, or of repeated steps, above the baseline's (0.2: arXiv 2504.15275)."""
    ngram: int = Field(4, ge=1)
    """Tokens of an n-gram."""
