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
from data.steps import Splitter
from prm.config import LoraSettings
from prm.tracking import TrackingConfig
from reasoning_rl.config_checks import check_together
from reasoning_rl.presets import CRITIC_FREE, PRESETS, Preset, merge
from reasoning_rl.process_config import HackConfig, ImplicitConfig, ProverConfig
from reasoning_rl.rollout.settings import EngineConfig

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]


class SampledConfig(Settings):
    """How responses are sampled, in PPO's iterations and in rounds."""

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
    max_batch: Count = 256
    """Sequences decoded together; lower it when memory runs out."""
    splitter: Splitter = "newline"
    """What ends a reasoning step; must match how the reward model was trained. code_block, code_line: of
    programs; module:function: your own."""
    template: str = "plain"
    """Prompt template (data.prompts); must match how the policy was fine-tuned."""
    engine: EngineConfig = EngineConfig()


class RolloutConfig(SampledConfig):
    """How PPO samples, and what it makes of the sampler's logprobs."""

    old_logprobs: Literal["recomputed", "sampled"] = "recomputed"
    """Logprobs of the tokens before the update: a pass of the trainer's own, or as the sampler noted them,
    which saves that pass. Sampled needs top_p 1 and top_k 0 and leaves no mismatch to see or correct."""
    truncated_is: Literal["off", "token", "sequence"] = "off"
    """Weigh the policy loss by min(trainer's / engine's probability, is_cap) of each token, or of the whole
    response: corrects engines that compute otherwise and rollouts that are older than the policy."""
    is_cap: Annotated[float, Field(ge=1)] = 2.0
    """Largest weight of truncated_is; a higher one is less biased and noisier."""
    dynamic_rounds: Whole = 0
    """Dynamic sampling: up to so many extra draws replace the problems whose answers are all right or all
    wrong; 0 is off (arXiv 2503.14476 draws until the batch is full). Needs samples_per_problem above 1."""


class RewardConfig(Settings):
    """What a response is paid: its steps, its outcome, and what is done to their sum."""

    form: Literal["none", "sum", "clip", "delta", "clip_delta", "min", "progress"] = "delta"
    """How step scores become step rewards. Raw `sum` invites reward hacking (arXiv 2410.15115)."""
    step_weight: NonNegative = 1.0
    """alpha: weight of the step rewards; for progress 0.2 to 0.6 in arXiv 2410.08146."""
    outcome_weight: NonNegative = 1.0
    """Weight of the verified outcome (1 correct, 0 wrong), paid on the last token."""
    partial_credit: Literal["off", "tests", "errors"] = "off"
    """Outcome of a wrong program. off: 0; tests: the share of the tests that it passes; errors: -0.3 for a
    wrong value, -0.6 for an exception or too long a run, -1 for what does not compile (arXiv 2207.01780)."""
    test_timeout_s: Positive = 10.0
    """Seconds that a program's tests may take (each case, with standard input and output)."""
    clip_threshold: Fraction = 0.7
    """eta of the clip forms: only a score below it costs."""
    softmin_temperature: Positive = 0.1
    """T of the min form (arXiv 2504.15275)."""
    normalise: Literal["off", "scale", "standardise"] = "standardise"
    """Running moments of the whole response's reward over all past rollouts: divide by the deviation
    (scale), and also subtract the mean, on the last token (standardise)."""
    clip: Positive | None = 10.0
    """Bound on a token's reward after normalisation, in deviations (arXiv 2307.04964: 0.3 and 0.8). Not of
    grpo, which normalises by itself."""
    overlong_buffer: Whole = 0
    """Last tokens before max_new_tokens over which an answer's outcome falls by up to 1; 0 is off
    (arXiv 2503.14476: 4096 of 20480)."""
    prover: ProverConfig = ProverConfig()
    implicit: ImplicitConfig = ImplicitConfig()


class KLConfig(Settings):
    """What it costs to leave the reference."""

    coef: NonNegative = 0.05
    """Price of one nat of divergence from the reference, per token (arXiv 2307.04964: 0.05)."""
    place: Literal["reward", "loss"] = "reward"
    """Subtracted from each token's reward, or added to the policy's loss (GRPO, arXiv 2402.03300)."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """k1 = log ratio (unbiased), k2 = half its square, k3 = unbiased and never negative. In the loss k2 or
    k3: k1's gradient is 0 in expectation."""
    target: Positive | None = None
    """Mean KL per response (nats) that an adaptive controller steers to; off keeps `coef` fixed."""
    horizon: Positive = 10_000.0
    """Responses over which the adaptive controller reacts (arXiv 1909.08593)."""


class CriticConfig(Settings):
    """The value model of algorithm ppo."""

    init: Literal["prm", "reward_model", "policy"] = "prm"
    """Start from the weights of the process reward model, of a pairwise reward model (both must share the
    policy's tokenizer), or of the policy with a head of zeros."""
    reward_model: str | None = None
    """Folder or hub id of the pairwise reward model that init reward_model starts from; none: the run's
    own."""
    pretrain_iterations: Whole = 2
    """First iterations in which the critic alone learns, on Monte-Carlo returns, under a frozen policy
    (arXiv 2307.04964: until its loss is near 0; 2504.05118: 50)."""
    learning_rate: Positive = 1.65e-6
    """Peak rate of the critic's AdamW."""
    value_clip_range: Positive | None = 0.2
    """Bound on the change of a value within one iteration (both papers: 0.2)."""
    value_norm: bool = False
    """Learn normalised returns (running, debiased moments); the golden rule of large batches."""
    lora: LoraSettings = LoraSettings()
    """Adapters: the critic's backbone stays as it is, they and the value head learn."""


class GroupConfig(Settings):
    """What replaces the critic where `algorithm` is not ppo."""

    baseline: Literal["none", "response", "token"] = "response"
    """Of rloo and reinforce_pp: nothing; the siblings' mean return; or their mean reward per token, for
    rewards that grow with the number of steps (arXiv 2504.15275)."""
    divide_by_std: bool = True
    """Of grpo: divide by the group's deviation; false is Dr. GRPO (arXiv 2503.20783)."""
    vine_samples: Count = 9
    """Of vine: completions from each step; 9 in arXiv 2410.01679, where 1 and 3 help already."""


class UpdateConfig(Settings):
    """Advantages, losses and optimisers: what an iteration does with its rollouts."""

    epochs: Count = 1
    """Passes over each rollout batch."""
    minibatch_size: Count = 32
    """Responses per optimiser update, over all processes; must divide the rollout batch. Their quotient
    times epochs is how often a batch is used while the policy moves away from it: small is stable
    (arXiv 2307.04964: 128 rollouts, 32 a minibatch)."""
    micro_batch_tokens: Count = 16_384
    """Tokens of one forward pass, padding included. Changes memory and speed, never the numbers."""
    gradient_checkpointing: bool = False
    """Of policy and critic: keep each layer's input alone and compute the layer again in the backward. A
    third more time, far less memory; the numbers are the same."""
    compile_layers: bool = False
    """Of policy, critic and reference: torch.compile each decoder layer (not the sampler). Faster once it is
    compiled, in the first iteration; the numbers are the same up to rounding. Not for ZeRO-3 and FSDP2."""
    learning_rate: Positive = 5e-7
    """Peak rate of the policy's AdamW."""
    warmup_iterations: Whole = 0
    """Iterations over which both rates rise from 0."""
    schedule: Literal["constant", "linear"] = "constant"
    """linear: both rates fall to a tenth at the last iteration."""
    gamma: Fraction = 1.0
    """Discount per token; 1 for tasks that end."""
    lam: Fraction = 0.95
    """GAE lambda of the policy's advantages (arXiv 2307.04964: 0.9)."""
    adaptive_lam_alpha: Positive | None = None
    """Length-adaptive GAE instead: lambda 1 - 1 / (alpha length) for each answer (arXiv 2504.05118: 0.05)."""
    critic_lam: Fraction | None = None
    """GAE lambda of the critic's targets; off takes `lam` (decoupled GAE: 1.0, arXiv 2503.01491)."""
    clip_range: Positive | None = 0.2
    """PPO's bound on the change of a token's probability ratio, both ways; off never clips."""
    clip_range_high: Positive | None = None
    """Upper clip, where it differs (0.28 in arXiv 2503.14476)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on the loss of a token with a negative advantage, in advantages (arXiv 1912.09729: 3)."""
    loss_aggregation: Literal["token", "sequence", "fixed"] = "token"
    """The policy's loss weighs alike: every token; every answer, whatever its length (arXiv 2402.03300); or
    every token against a constant, answers times max_new_tokens (arXiv 2503.20783)."""
    truncated: Literal["bootstrap", "end", "mask"] = "bootstrap"
    """A cut answer goes on in the critic's mind (its last value counts, arXiv 2404.10719), ends there with
    what it earned, or is left out of all losses (arXiv 2503.14476). Without a critic the first two agree."""
    max_ratio: Annotated[float, Field(gt=1)] | None = None
    """A minibatch whose mean ratio exceeds this does not move the policy (arXiv 2404.10719, code: 5)."""
    max_kl: Positive | None = None
    """A minibatch on which the policy is further than this from the sampling one (nats a token) ends the
    policy's updates of the iteration."""
    advantage_norm: bool = False
    """Whiten advantages over the whole batch and all processes (arXiv 2404.10719)."""
    advantage_clip: Positive | None = None
    """Bound on an advantage, after whitening where that is on (arXiv 2307.04964 tried 0.12 to 0.8)."""
    entropy_coef: NonNegative = 0.0
    """Weight of an entropy bonus (0.01 in arXiv 2307.04964, which advises against one)."""
    ptx_coef: NonNegative = 0.0
    """Weight of next-token loss on demonstrations (PPO-ptx): what keeps general ability."""
    max_grad_norm: Positive | None = 1.0
    """Clip the global gradient norm of each model to this (both papers: 1); off never clips."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW moment decays of both optimisers."""
    weight_decay: NonNegative = 0.0
    """AdamW weight decay of both optimisers."""


class PPOConfig(Settings):
    """One PPO run, from a policy and a process reward model to a better policy."""

    preset: Preset = "ppo_max"
    """What the unset fields default to: MOSS's PPO-max, Xu et al.'s recipe, neither's additions (vanilla),
    or a critic-free algorithm's own. Unset, it follows `algorithm`."""
    algorithm: Literal["ppo", "grpo", "rloo", "reinforce_pp", "vine"] = "ppo"
    """Where advantages come from: a critic (ppo), the other answers to the problem (grpo, rloo), the batch's
    returns (reinforce_pp), or fresh completions of every step's prefix (vine, arXiv 2410.01679). Without a
    critic, `critic` and the lambdas are not used."""
    policy: str
    """Folder or hub id of the policy, normally after SFT."""
    prm: str | None = None
    """Folder or hub id of the process reward model, or your own step scorer, module:function; off trains on
    the outcome alone (reward.form none)."""
    prm_format: str | None = None
    """PRM format: a name (`stepwell score --list`), a .yaml file or your own, module:name; none: recognised
    from the model."""
    prm_backend: Literal["local", "vllm"] = "local"
    """What runs the reward model: local (torch, any format) or vllm (an engine; those with a class head)."""
    reward_model: str | None = None
    """Folder of a reward model of whole responses (`stepwell rm`), or your own module:function; it pays the
    outcome in place of the verified answer, also for prompts without one (problems_format: prompts)."""
    grader: str | None = None
    """Your own function that judges answers, module:function (docs/plugins.md); none: the benchmark's."""
    problems: str | tuple[str, ...] = "arithmetic"
    """Benchmark name, or a file or folder of problems; several as a list, [gsm8k, math], or from files of
    yours as [gsm8k=FILE, math=FILE]. Each is judged its own way; drawn are all alike, so larger ones more."""
    problems_format: str | None = None
    """Benchmark whose format a file has; off when `problems` is itself a name."""
    difficulty: str = "standard"
    """Of the built-in worlds: standard, hard; shuffled (arithmetic); unsaid (programs)."""
    allow_unsandboxed: bool = False
    """Run model-written programs also where this machine offers nothing that keeps them in."""
    num_problems: Count = 20_000
    """Problems in the training pool, of each source of `problems`."""
    exclude: tuple[str, ...] = ()
    """Benchmarks (NAME or NAME=FILE) whose problems are not trained on: those that you will report."""
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
    """eta of reference <- (1 - eta) reference + eta actor after each iteration; 0 freezes the reference
    (0.001 in the code of arXiv 2404.10719)."""
    offload: Literal["none", "frozen"] = "none"
    """frozen: reference and reward models wait in host memory and are on the GPU for their phase alone."""
    lora: LoraSettings = LoraSettings()
    """Adapters on the policy. The reference is then the policy without them: no second copy is held."""
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    kl: KLConfig = KLConfig()
    critic: CriticConfig = CriticConfig()
    group: GroupConfig = GroupConfig()
    update: UpdateConfig = UpdateConfig()
    hack: HackConfig = HackConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def pays_steps(self) -> bool:
        """Whether step scores are part of the reward."""
        return self.reward.form != "none" and self.reward.step_weight > 0

    @property
    def rollouts_per_iteration(self) -> int:
        """B: responses that an iteration learns from."""
        return self.rollout.problems_per_iteration * self.rollout.samples_per_problem

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_together(self)
        return self

    @classmethod
    def from_preset(cls, values: dict[str, Any], where: str = "config") -> Self:
        """Build from nested values over the preset that they name, else their algorithm's, else ppo_max."""
        return cls.from_dict(merge(cls.preset_values(values, where), values), where=where)

    @classmethod
    def preset_values(cls, values: dict[str, Any], where: str = "config") -> dict[str, Any]:
        """Return the nested values that those fields get which `values` leaves open."""
        algorithm = values.get("algorithm")
        name = values.get("preset", algorithm if algorithm in CRITIC_FREE else "ppo_max")
        if not isinstance(name, str) or name not in PRESETS:
            raise UserError(f"{where}: unknown preset '{name}'" + did_you_mean(str(name), PRESETS))
        return PRESETS[name] | {"preset": name}
