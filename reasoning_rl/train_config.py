"""Settings of every trainer of policies and reward models but PPO: sft, rm, dpo, dpo-iter, rft. Nothing here
imports torch, so that a command's help appears at once.
"""

from typing import Literal

from pydantic import Field, model_validator

from data.errors import UserError
from data.preference_readers import Prefer
from data.settings import Settings
from prm.config import FitConfig, LoraSettings
from prm.tracking import TrackingConfig
from reasoning_rl.config import Count, SampledConfig, Whole
from reasoning_rl.sampled import ScoreBy

PreferenceLoss = Literal["sigmoid", "ipo"]


class SFTConfig(Settings):
    """Supervised fine-tuning of a causal language model."""

    model: str | None = None
    """Folder or hub id of a causal LM to start from; null: off, use model_config_file."""
    model_config_file: str | None = None
    """Path of a transformers config.json to start from random weights; null: off, use model."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; null: the model's own."""
    data: str
    """File, folder or hub id of rows {prompt, response}, {problem, solution} or a chat {messages}."""
    split: str = "train"
    """Split of a hub id or folder."""
    output_dir: str = "runs/sft"
    """Checkpoints go to checkpoints/ in it, the trained model to model/."""
    max_length: int = Field(1024, ge=2)
    """Most tokens of prompt, response and end token together."""
    lora: LoraSettings = LoraSettings()
    fit: FitConfig = FitConfig()
    tracking: TrackingConfig = TrackingConfig()


class PairsConfig(Settings):
    """Which pairs are read, and how long they may be."""

    data: str
    """File, folder or hub id of pairs {prompt, chosen, rejected}, as text or messages; HH-RLHF and
    PKU-SafeRLHF rows are read as they are."""
    split: str = "train"
    """Split of a hub id or folder."""
    prefer: Prefer = "better"
    """Of PKU-SafeRLHF: which judgement orders the responses."""
    eval_data: str | None = None
    """Held-out pairs; null: off, a share of the prompts is held out."""
    eval_split: str = "test"
    """Split of a hub id or folder given as eval_data."""
    holdout: float = Field(0.05, ge=0, lt=1)
    """Share of the prompts held out for validation when eval_data is null."""
    max_length: int = Field(1024, ge=2)
    """Most tokens of prompt and response together."""
    cut_prompt: bool = False
    """Leave out a prompt's oldest tokens where a text exceeds max_length, as in long dialogues (a reward
    model does so in scoring, too); off: fit.overlong decides."""


class RMConfig(PairsConfig):
    """Training of a pairwise reward model."""

    model: str | None = None
    """Folder or hub id of a causal LM to start from, normally after SFT; null: off, use model_config_file."""
    model_config_file: str | None = None
    """Path of a transformers config.json to start from random weights; null: off, use model."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; null: the model's own."""
    output_dir: str = "runs/rm"
    """Checkpoints go to checkpoints/ in it, the trained model to model/."""
    lm_coef: float = Field(0.0, ge=0)
    """Weight of next-token loss on the chosen response, per token (arXiv:2307.04964 takes 1)."""
    centre_coef: float = Field(0.0, ge=0)
    """Weight of the squared sum of a pair's rewards: keeps them around 0 (arXiv:2312.09244 takes 0.01)."""
    normalise: Literal["off", "standardise"] = "standardise"
    """Mean and deviation of the training responses' rewards are stored in the model's config; standardise:
    scores are given in deviations from that mean."""
    keep_best: str | None = None
    """Validation metric, larger is better (e.g. valid/accuracy), whose best weights are kept; null: off, the
    last weights are."""
    fit: FitConfig = FitConfig(learning_rate=5e-6)
    tracking: TrackingConfig = TrackingConfig()


class PreferenceSettings(Settings):
    """What is learned from a pair."""

    loss: PreferenceLoss = "sigmoid"
    """sigmoid: DPO; ipo: a squared distance from a fixed margin, which does not grow without bound."""
    beta: float = Field(0.1, gt=0)
    """Scale of the log-ratio to the reference: larger stays closer to it."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the preferences taken to be the wrong way round (conservative DPO; loss: sigmoid)."""
    average_logprobs: bool = False
    """Divide each response's log-ratio by its tokens, so that length does not count (usual with ipo)."""
    sft_coef: float = Field(0.0, ge=0)
    """Weight of next-token loss on the chosen response, per token: keeps its probability from falling
    together with the rejected one's (arXiv:2404.19733 takes 1)."""


class DPOConfig(PairsConfig):
    """Direct preference optimisation of a causal language model."""

    model: str
    """Folder or hub id of the policy, normally after SFT."""
    reference: str | None = None
    """Folder or hub id of the reference; null: the policy as it is before training."""
    reference_logprobs: Literal["cached", "live"] = "cached"
    """cached: computed once before training and kept in output_dir; live: the reference stays in memory and
    runs beside the policy, worth it only where few of the pairs are used (max_updates)."""
    output_dir: str = "runs/dpo"
    """Checkpoints go to checkpoints/ in it, the trained model to model/."""
    preference: PreferenceSettings = PreferenceSettings()
    lora: LoraSettings = LoraSettings()
    """Adapters on the policy. A live reference is then the policy without them: no second copy is held."""
    fit: FitConfig = FitConfig(learning_rate=1e-6)
    tracking: TrackingConfig = TrackingConfig()


class RoundsConfig(Settings):
    """Settings of every method that samples and learns by turns."""

    policy: str
    """Folder or hub id of the policy, normally after SFT."""
    prm: str | None = None
    """Folder or hub id of a process reward model that scores the steps; `oracle` knows the steps of the
    arithmetic world; none: answers alone count."""
    prm_format: str | None = None
    """PRM format: a name (`stepwell score --list`) or a .yaml file; none: recognised from the model."""
    grader: str | None = None
    """Your own function that judges answers, module:function (docs/plugins.md); none: the benchmark's."""
    problems: str = "arithmetic"
    """Benchmark name, or a file or folder of problems."""
    problems_format: str | None = None
    """Benchmark whose format a file has; off when `problems` is itself a name."""
    difficulty: str = "standard"
    """Of the built-in worlds: standard, hard; shuffled (arithmetic); unsaid (programs)."""
    allow_unsandboxed: bool = False
    """Run model-written programs also where this machine offers nothing that keeps them in."""
    num_problems: Count = 20_000
    """Problems in the training pool."""
    num_validation: Whole = 200
    """Held-out problems of a validation, one after every round; 0 is off."""
    output_dir: str
    """Every round's folder goes there, the trained policy to model/ in it."""
    seed: Whole = 0
    """Seeds problems, sampling and training."""
    rounds: Count = 1
    """Times that the policy is sampled and trained."""
    rollout: SampledConfig = SampledConfig(samples_per_problem=4)
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _possible(self) -> "RoundsConfig":
        if self.rollout.engine.max_ahead:
            raise UserError(
                "rollout.engine.max_ahead samples while a policy trains, and a round does not: set it to 0"
            )
        if self.prm == "oracle" and self.problems != "arithmetic":
            raise UserError(
                f"prm: oracle knows the arithmetic world only, not '{self.problems}'; give a model"
            )
        return self


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


class RFTConfig(RoundsConfig):
    """Rounds of fine-tuning on a policy's own right answers."""

    output_dir: str = "runs/rft"
    """Every round's folder goes there, the trained policy to model/ in it."""
    most_per_problem: int = Field(4, ge=1)
    """Distinct right chains of a problem that are learned."""
    min_step_score: float | None = Field(None, ge=0, le=1)
    """Every step of a chain must reach this score (needs a PRM): leaves out right answers by wrong steps."""
    demonstrations: str | None = None
    """File of prompt/response rows that are learned beside the samples."""
    start: Literal["first", "previous"] = "previous"
    """Weights that a round trains: those that came into the run, or into the round."""
    max_length: int = Field(1024, ge=2)
    """Most tokens of prompt and response together."""
    fit: FitConfig = FitConfig(learning_rate=1e-5)

    @model_validator(mode="after")
    def _scores_are_there(self) -> "RFTConfig":
        if self.min_step_score is not None and self.prm is None:
            raise UserError("min_step_score needs step scores: set prm")
        return self
