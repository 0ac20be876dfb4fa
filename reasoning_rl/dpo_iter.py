"""Iterative DPO: sample, score, pair, prefer, and again with what came out.

One round is DPO on the policy's own samples; several are DPO-Iter of arXiv:2404.10719, whose reference is the
policy of the round before. `pairs: steps` makes it step-level DPO.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from data.errors import UserError
from data.schema import Preference
from prm.fit import FitConfig
from prm.model import load_backbone
from reasoning_rl.dpo import DPOConfig, PreferenceSettings, fit_preferences
from reasoning_rl.preference_pairs import rank_pairs, step_pairs
from reasoning_rl.rounds import RoundsConfig, last_metrics, round_log, round_seed
from reasoning_rl.sampled import Group, ScoreBy


class DPOIterConfig(RoundsConfig):
    """Rounds of DPO on a policy's own samples."""

    output_dir: str = "runs/dpo_iter"
    """Every round's folder goes there, the trained policy to model/ in it."""
    pairs: Literal["responses", "steps"] = "responses"
    """responses: best against worst; steps: right against wrong step after the same right steps (needs a
    PRM)."""
    score: ScoreBy = "outcome"
    """What responses are ranked by: the verified answer, the lowest step score, the step score among equal
    answers (both), or a reward model."""
    reward_model: str | None = None
    """Folder or hub id of a reward model of responses, or your own module:function (score: reward_model)."""
    pairs_per_problem: int = Field(2, ge=1)
    """Most pairs of one problem; of steps, of one prefix."""
    min_gap: float = Field(0.0, ge=0)
    """Smallest difference of the scores within a pair of responses."""
    require_right: bool = False
    """The chosen response must be verified right: by score prm or both, a better wrong one is else preferred
    where none is right."""
    step_threshold: float = Field(0.5, gt=0, lt=1)
    """Score from which a step counts as right (pairs: steps)."""
    reference: Literal["previous", "first"] = "previous"
    """The policy that came into the round (Xu et al.), or the one that came into the run."""
    max_length: int = Field(1024, ge=2)
    """Most tokens of prompt and response together."""
    preference: PreferenceSettings = PreferenceSettings()
    fit: FitConfig = FitConfig(learning_rate=1e-6)

    @model_validator(mode="after")
    def _scores_are_there(self) -> "DPOIterConfig":
        if (self.pairs == "steps" or self.score in ("prm", "both")) and self.prm is None:
            raise UserError("pairs: steps and score: prm or both need step scores: set prm")
        if self.pairs == "steps":
            for name in ("score", "reward_model", "min_gap", "require_right"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise UserError(
                        f"{name} ranks whole responses, and pairs: steps has labels: leave it out"
                    )
        elif (self.score == "reward_model") != (self.reward_model is not None):
            raise UserError("score: reward_model and a reward_model go together: give both or neither")
        return self


@dataclass(frozen=True)
class LearnPreferences:
    """The `learn` of a round of DPO."""

    config: DPOIterConfig
    tokenizer: Any
    accelerator: Any

    def __call__(
        self, round_: int, policy: PreTrainedModel, groups: Sequence[Group], folder: Path
    ) -> Mapping[str, float]:
        config = self.config
        pairs = make_pairs(groups, config)
        if not pairs:
            raise UserError(
                f"round {round_}: no pair among {sum(len(g.responses) for g in groups)} responses, which are "
                "all alike; take more samples a problem, a higher temperature or other problems"
            )
        fit_preferences(
            policy,
            self.tokenizer,
            pairs,
            [],
            DPOConfig(
                model="",
                data="",
                output_dir=str(folder),
                max_length=config.max_length,
                preference=config.preference,
                fit=config.fit.model_copy(update={"seed": round_seed(config.seed, round_)}),
            ),
            reference=load_backbone(config.policy) if config.reference == "first" else None,
            accelerator=self.accelerator,
            log=round_log(folder, self.accelerator),
            resume=True,
        )
        return {"pairs/count": float(len(pairs)), **last_metrics(folder, "pairs")}


def make_pairs(groups: Sequence[Group], config: DPOIterConfig) -> list[Preference]:
    """Return the pairs of a round as the settings ask for them."""
    if config.pairs == "steps":
        return step_pairs(
            groups,
            splitter=config.rollout.splitter,
            threshold=config.step_threshold,
            most=config.pairs_per_problem,
        )
    return rank_pairs(
        groups,
        by=config.score,
        most=config.pairs_per_problem,
        min_gap=config.min_gap,
        require_right=config.require_right,
    )
