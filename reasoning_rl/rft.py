"""Rejection sampling fine-tuning: imitate one's own right answers (arXiv:2308.01825; several rounds of it are
expert iteration).

Differs from the paper, which samples from a fine-tuned model and trains the pre-trained one on everything:
here the policy trains on its samples, with demonstrations mixed in where they are given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from data.errors import UserError
from data.task_readers import read_sft
from prm.fit import fit
from reasoning_rl.preference_pairs import right_solutions
from reasoning_rl.rounds import last_metrics, round_log, round_seed
from reasoning_rl.sampled import Group
from reasoning_rl.sft import NextToken, encode_pairs
from reasoning_rl.train_config import RFTConfig


@dataclass(frozen=True)
class LearnRight:
    """The `learn` of a round of rejection sampling."""

    config: RFTConfig
    tokenizer: Any
    accelerator: Any

    def __call__(
        self, round_: int, policy: PreTrainedModel, groups: Sequence[Group], folder: Path
    ) -> Mapping[str, float]:
        config = self.config
        chains = right_solutions(groups, most=config.most_per_problem, min_step_score=config.min_step_score)
        if not chains:
            raise UserError(
                f"round {round_}: none of {sum(len(g.responses) for g in groups)} responses is right; more "
                "samples a problem, or easier problems"
            )
        given = read_sft(config.demonstrations) if config.demonstrations else []
        fit(
            policy,
            encode_pairs(self.tokenizer, [*chains, *given], config.max_length, overlong=config.fit.overlong),
            NextToken(),
            config.fit.model_copy(update={"seed": round_seed(config.seed, round_)}),
            accelerator=self.accelerator,
            run_dir=folder,
            log=round_log(folder, self.accelerator),
            resume=True,
        )
        return {"chains/count": float(len(chains)), **last_metrics(folder, "chains")}
