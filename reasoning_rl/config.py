"""Settings of a PPO run, and the presets of the two founding papers.

    PPOConfig.from_preset("ppo_max", {"policy": "path/to/sft", "prm": "path/to/prm"})

The papers disagree on purpose: MOSS (arXiv 2307.04964) clips values and normalises *rewards*, and warns that
normalised advantages do not go together with it; Xu et al. (arXiv 2404.10719) normalise *advantages* and
*values* over large batches. Hence two presets instead of one compromise.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data.errors import UserError, did_you_mean
from data.settings import Settings
from data.step_readers import NeutralPolicy

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]


class RolloutConfig(Settings):
    problems_per_iteration: Count = 64
    """P: problems drawn each iteration, over all processes."""
    samples_per_problem: Count = 2
    """G: responses sampled for each problem."""
    max_new_tokens: Count = 256
    """A response longer than this is cut: it earns no positive step reward and no outcome reward."""
    temperature: Positive = 1.0
    """Sampling temperature; the trainer's logprobs are taken at the same one."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass. Below 1 the sampled distribution differs from the one the ratio is taken over."""
    top_k: Whole = 0
    """0 is off."""
    truncated_is: Literal["off", "token", "sequence"] = "off"
    """Weigh the policy loss by min(trainer's / engine's probability, is_cap) of each token, or of the whole
    response: corrects engines that compute otherwise and rollouts that are older than the policy."""
    is_cap: Annotated[float, Field(ge=1)] = 2.0
    """Largest weight of truncated_is; a higher one is less biased and noisier."""
    max_batch: Count = 256
    """Sequences decoded together; lower it when memory runs out."""
    splitter: Literal["newline", "blank_line", "step_marker"] = "newline"
    """What ends a reasoning step; must match how the reward model was trained."""
    template: str = "plain"
    """Prompt template (data.prompts); must match how the policy was fine-tuned."""


class RewardConfig(Settings):
    form: Literal["none", "sum", "clip", "delta", "clip_delta", "min"] = "delta"
    """How step scores become step rewards. Raw `sum` invites reward hacking (arXiv 2410.15115)."""
    step_weight: NonNegative = 1.0
    """alpha: weight of the step rewards."""
    outcome_weight: NonNegative = 1.0
    """Weight of the verified outcome (1 correct, 0 wrong), paid on the last token."""
    clip_threshold: Fraction = 0.7
    """eta of the clip forms: only a score below it costs."""
    softmin_temperature: Positive = 0.1
    """T of the min form (arXiv 2504.15275)."""
    normalise: Literal["off", "scale", "standardise"] = "standardise"
    """Running moments of the whole response's reward over all past rollouts: divide by the deviation
    (scale), and also subtract the mean, on the last token (standardise)."""
    clip: Positive | None = 10.0
    """Bound on a token's reward after normalisation, in deviations."""


class KLConfig(Settings):
    coef: NonNegative = 0.05
    """Price of one nat of divergence from the reference, per token."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """k1 = log ratio (unbiased), k2 = half its square, k3 = unbiased and never negative."""
    target: Positive | None = None
    """Mean KL per response (nats) that an adaptive controller steers to; off keeps `coef` fixed."""
    horizon: Positive = 10_000.0
    """Responses over which the adaptive controller reacts (arXiv 1909.08593)."""


class CriticConfig(Settings):
    init: Literal["prm", "policy"] = "prm"
    """Start from the reward model's weights (which must share the policy's tokenizer) or the policy's."""
    pretrain_iterations: Whole = 2
    """First iterations in which the critic alone learns, on Monte-Carlo returns, under a frozen policy."""
    learning_rate: Positive = 1.65e-6
    """Peak rate of the critic's AdamW."""
    value_clip_range: Positive | None = 0.2
    """Bound on the change of a value within one iteration."""
    value_norm: bool = False
    """Learn normalised returns (running, debiased moments); the golden rule of large batches."""


class UpdateConfig(Settings):
    epochs: Count = 1
    """Passes over each rollout batch."""
    minibatch_size: Count = 32
    """Responses per optimiser update, over all processes; must divide the rollout batch."""
    micro_batch_tokens: Count = 16_384
    """Tokens of one forward pass, padding included. Changes memory and speed, never the numbers."""
    learning_rate: Positive = 5e-7
    """Peak rate of the policy's AdamW."""
    warmup_iterations: Whole = 0
    """Iterations over which both rates rise from 0."""
    schedule: Literal["constant", "linear"] = "constant"
    """linear: both rates fall to a tenth at the last iteration."""
    gamma: Fraction = 1.0
    """Discount per token; 1 for tasks that end."""
    lam: Fraction = 0.95
    """GAE lambda of the policy's advantages."""
    critic_lam: Fraction | None = None
    """GAE lambda of the critic's targets; off takes `lam` (decoupled GAE: 1.0, arXiv 2503.01491)."""
    clip_range: Positive | None = 0.2
    """PPO's bound on the change of a token's probability ratio, both ways; off never clips."""
    clip_range_high: Positive | None = None
    """Upper clip, where it differs (0.28 in arXiv 2503.14476)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on the loss of a token with a negative advantage, in advantages (arXiv 1912.09729)."""
    advantage_norm: bool = False
    """Whiten advantages over the whole batch and all processes."""
    advantage_clip: Positive | None = None
    """Bound on an advantage, after whitening where that is on."""
    entropy_coef: NonNegative = 0.0
    """Weight of an entropy bonus."""
    ptx_coef: NonNegative = 0.0
    """Weight of next-token loss on demonstrations (PPO-ptx): what keeps general ability."""
    max_grad_norm: Positive = 1.0
    """Clip the global gradient norm of each model to this."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW moment decays of both optimisers."""
    weight_decay: NonNegative = 0.0
    """AdamW weight decay of both optimisers."""


class PPOConfig(Settings):
    """One PPO run, from a policy and a process reward model to a better policy."""

    preset: Literal["ppo_max", "ppo_large_batch", "vanilla"] = "ppo_max"
    """What the unset fields default to: MOSS's PPO-max, Xu et al.'s recipe, or neither's additions."""
    policy: str
    """Folder or hub id of the policy, normally after SFT."""
    prm: str | None = None
    """Folder or hub id of the process reward model; off trains on the outcome alone (reward.form none)."""
    prm_format: str | None = None
    """PRM format: a name (`stepwell score --list`) or a .yaml file; none: recognised from the model."""
    prm_backend: Literal["local", "vllm"] = "local"
    """What runs the reward model: local (torch, any format) or vllm (an engine; those with a class head)."""
    problems: str = "arithmetic"
    """Benchmark name, or a file or folder of problems."""
    problems_format: str | None = None
    """Benchmark whose format a file has; off when `problems` is itself a name."""
    difficulty: str = "standard"
    """Of the arithmetic world: standard, hard or shuffled."""
    num_problems: Count = 20_000
    """Problems in the training pool."""
    demonstrations: str | None = None
    """File of prompt/response rows for ptx_coef."""
    output_dir: str = "outputs/ppo"
    """Metrics and checkpoints go there, the trained policy to model/ in it."""
    seed: Whole = 0
    """Seeds problems, sampling and the order of minibatches."""
    iterations: Count = 100
    """Rollout-and-update rounds."""
    validate_every: Whole = 10
    """Iterations between validations on held-out problems; 0 validates at the end only."""
    num_validation: Whole = 200
    """Held-out problems of a validation; 0 is off."""
    save_every: Whole = 10
    """Iterations between checkpoints; 0 saves at the end only."""
    keep_checkpoints: Count = 2
    """Newest checkpoints to keep."""
    reference_ema: Fraction = 0.0
    """eta of reference <- (1 - eta) reference + eta actor after each iteration; 0 freezes the reference."""
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    kl: KLConfig = KLConfig()
    critic: CriticConfig = CriticConfig()
    update: UpdateConfig = UpdateConfig()

    @property
    def rollouts_per_iteration(self) -> int:
        return self.rollout.problems_per_iteration * self.rollout.samples_per_problem

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        batch, mini = self.rollouts_per_iteration, self.update.minibatch_size
        if batch % mini:
            near = sorted((d for d in range(1, batch + 1) if batch % d == 0), key=lambda d: abs(d - mini))[:2]
            raise UserError(
                f"rollout batch {batch} (problems_per_iteration x samples_per_problem) is not divisible by "
                f"update.minibatch_size {mini}; use {' or '.join(map(str, near))}"
            )
        if self.reward.form != "none" and self.reward.step_weight > 0 and self.prm is None:
            raise UserError("reward.form needs a reward model: set prm, or reward.form to none")
        if self.kl.target is not None and self.kl.coef == 0:
            raise UserError("kl.target steers kl.coef, which can never leave 0; set kl.coef above 0")
        if self.update.ptx_coef > 0 and self.demonstrations is None:
            raise UserError("update.ptx_coef needs demonstrations: set demonstrations, or ptx_coef to 0")
        return self

    @classmethod
    def from_preset(cls, values: dict[str, Any], where: str = "config") -> Self:
        """Build from nested values over the preset that they name ("ppo_max" when they name none)."""
        name = values.get("preset", "ppo_max")
        if not isinstance(name, str) or name not in PRESETS:
            raise UserError(f"{where}: unknown preset '{name}'" + did_you_mean(str(name), PRESETS))
        return cls.from_dict(merge(PRESETS[name], values), where=where)


PRESETS: dict[str, dict[str, Any]] = {
    # MOSS, arXiv 2307.04964, the starred items of its Fig. 5 and section 5 (values: see docs/algorithms.md).
    "ppo_max": {
        "rollout": {
            "problems_per_iteration": 128,
            "samples_per_problem": 1,
            "temperature": 0.8,
            "top_p": 0.9,
        },
        "reward": {"normalise": "standardise", "clip": 0.8},
        "kl": {"coef": 0.05},
        "critic": {"init": "prm", "pretrain_iterations": 2, "value_clip_range": 0.2},
        "update": {"minibatch_size": 32, "lam": 0.9, "advantage_norm": False, "max_grad_norm": 1.0},
    },
    # Xu et al., arXiv 2404.10719, appendix A.2.
    "ppo_large_batch": {
        "rollout": {"problems_per_iteration": 512, "samples_per_problem": 1, "top_k": 200},
        "reward": {"normalise": "off", "clip": 20.0},
        "kl": {"coef": 0.1},
        "critic": {
            "init": "policy",
            "pretrain_iterations": 0,
            "learning_rate": 5e-6,
            "value_clip_range": 0.2,
            "value_norm": True,
        },
        "update": {"minibatch_size": 128, "learning_rate": 1e-5, "lam": 1.0, "advantage_norm": True},
        "reference_ema": 0.001,
    },
    # Neither paper's additions: the floor of the ablations.
    "vanilla": {
        "rollout": {"problems_per_iteration": 128, "samples_per_problem": 1},
        "reward": {"normalise": "off", "clip": None},
        "kl": {"coef": 0.0},
        "critic": {"init": "policy", "pretrain_iterations": 0, "value_clip_range": None},
        "update": {"minibatch_size": 32, "lam": 0.95},
    },
}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


class EvalConfig(Settings):
    """One evaluation: `stepwell eval BENCHMARK` with either a model or existing samples."""

    model: str | None = None
    """Folder or hub id of the model to sample from."""
    samples: str | None = None
    """JSON lines {"id" (or "problem", its text), "response"} of existing responses, one or more a problem."""
    source: str | None = None
    """File, folder or hub id of the problems; none takes the benchmark's own hub id."""
    split: str | None = None
    """Split of the problems; none takes the benchmark's own."""
    difficulty: str = "standard"
    """Of the arithmetic world: standard, hard or shuffled."""
    limit: Count | None = None
    """Evaluate the first so many problems only; none takes all (500 of the arithmetic world)."""
    num_samples: Count = 1
    """Samples a problem: pass@1 is then their mean, and maj@k is reported."""
    temperature: NonNegative | None = None
    """none: 0 (greedy) for one sample, 1 for several."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass; 1 is off."""
    max_new_tokens: Count | None = None
    """none: the benchmark's own."""
    max_batch: Count = 64
    """Sequences decoded together."""
    template: str | None = None
    """Prompt template; none takes the benchmark's own."""
    seed: Whole = 0
    """Seeds the sampling, and the arithmetic world's problems."""
    allow_unsandboxed: bool = False
    """Run model-written programs also where this machine offers nothing that keeps them in."""
    output_dir: str = "outputs/eval"
    """samples.jsonl, settings.json and result.json go to a folder named after the benchmark in it."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model is None) == (self.samples is None):
            raise UserError(
                "give exactly one of --model (to sample from) and --samples (a file of responses)"
            )
        return self


class CompareConfig(Settings):
    """Two evaluations of one benchmark: `stepwell compare FOLDER FOLDER`."""

    flips: Whole = 20
    """Problems shown of those that flipped, what was lost first."""


PRM_BENCHMARKS = ("processbench", "prmbench", "prm800k", "bigbench_mistake", "mr_gsm8k", "reasoneval")
"""Benchmarks of step scores: `stepwell eval` takes PRMEvalConfig's options for them."""


class PRMEvalConfig(Settings):
    """Step scores on a benchmark: `stepwell eval processbench --prm PATH --data FOLDER`."""

    prm: str | None = None
    """Folder or hub id of the process reward model that scores the steps."""
    prm_format: str | None = None
    """PRM format: a name (`stepwell score --list`) or a .yaml file; none: recognised from the model."""
    scores: str | None = None
    """JSON lines of existing scores, {"id": ..., "scores": [one number a step]}; without ids in the order of
    the data."""
    data: str
    """The benchmark's file, or the folder that holds its files."""
    threshold: Annotated[float, Field(allow_inf_nan=False)] | Literal["gsm8k", "best"] | None = None
    """A step scored below it is called wrong; none: the format's own, 0.5 for a file of scores. Of
    ProcessBench only: gsm8k takes the best threshold of that subset for all, as published for models without
    a natural one; best each subset's own, an upper bound."""
    limit: Count | None = None
    """So many solutions of each file only, evenly spread over it; none takes all."""
    max_batch_tokens: Count | None = None
    """Padded tokens of one forward; none: 1024 on a CPU, 32768 on a GPU."""
    output_dir: str = "outputs/eval"
    """scores.jsonl, result.json, report.html and its pictures go to a folder in it, named after the
    benchmark; the same command continues scores that are not complete."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.prm is None) == (self.scores is None):
            raise UserError("give exactly one of --prm (a model that scores) and --scores (a file of scores)")
        return self


class InspectConfig(Settings):
    """A look into a file of step labels: `stepwell data inspect FILE`."""

    format: str = "auto"
    """Step-label format; auto tells it from the first row (docs/step_data.md lists them)."""
    neutral: NeutralPolicy = "half"
    """What a neutral rating counts as: positive, half, negative or mask."""
    split: str = "train"
    """Split, where the source has several."""
    against: tuple[str, ...] = ()
    """Files or folders of benchmarks to look for the same problems in: --against FILE FILE ..."""
    examples: Whole = 5
    """Solutions to print, spread evenly over the file."""


class QuickstartConfig(Settings):
    """The whole road on the built-in world."""

    seed: Whole = 0
    """Seeds every stage."""
    output_dir: str = "outputs/quickstart"
    """Every stage's model and numbers, summary.json and curves.png go there."""
    threads: Whole = 0
    """CPU threads; 0 takes every core this process may use."""
    demonstrations: Count = 28_800
    """Worked problems that SFT imitates."""
    solutions: Count = 14_000
    """Responses sampled from the SFT model and labelled step by step for the PRM; half as many
    synthetic solutions with planted mistakes are added."""
    problems: Count = 500
    """Held-out problems in each evaluation."""
    ppo_iterations: Count = 80
    """Iterations of PPO-max; fewer is quicker and reaches less."""
