"""Iterative DPO: sample, score, pair, prefer, and again with what came out.

One round is DPO on the policy's own samples; several are DPO-Iter of arXiv:2404.10719, whose reference is the
policy of the round before. `pairs: steps` makes it step-level DPO.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from data.errors import UserError
from data.schema import Preference
from prm.model import load_backbone
from reasoning_rl.dpo import fit_preferences
from reasoning_rl.preference_pairs import rank_pairs, step_pairs
from reasoning_rl.rounds import last_metrics, round_log, round_seed
from reasoning_rl.sampled import Group
from reasoning_rl.train_config import DPOConfig, DPOIterConfig


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
