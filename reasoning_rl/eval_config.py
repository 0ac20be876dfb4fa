"""Settings of evaluations, of looking into data, and of the quickstart."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data.aggregation import Aggregation
from data.errors import UserError
from data.settings import Settings
from data.step_readers import NeutralPolicy
from data.steps import Splitter
from prm.config import Backend
from prm.labelling.settings import LabelConfig
from reasoning_rl.config import Count, NonNegative, Whole
from reasoning_rl.rollout.pool import EngineChoice


class EvalConfig(EngineChoice):
    """One evaluation: `stepwell eval BENCHMARK` with either a model or existing samples."""

    model: str | None = None
    """Folder or hub id of the model to sample from."""
    samples: str | None = None
    """JSON lines {"id" (or "problem", its text), "response"} of existing responses, one or more a problem."""
    grader: str | None = None
    """Your own function that judges answers, module:function (docs/plugins.md); none: the benchmark's."""
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
    """Sequences decoded together (backend hf)."""
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


class LabelRunConfig(EngineChoice, LabelConfig):
    """`stepwell label BENCHMARK`: LabelConfig, and the engines that generate the rollouts."""


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


class ScoreConfig(Settings):
    """Settings of `stepwell score`."""

    prm: str
    """The reward model: folder or hub id."""
    format: str | None = None
    """PRM format: a name (`stepwell score --list`) or a .yaml file; none: recognised from the model."""
    input: str
    """Solutions: rows {problem, steps}, {problem, response} or of any step-label format."""
    output: str
    """Where the scored rows go (.jsonl); the same command continues a file that is not complete."""
    input_format: str = "auto"
    """Format of the input's rows; auto: told from the first."""
    splitter: Splitter | None = None
    """How a `response` is cut into steps; none: as the PRM, or its format, has them."""
    aggregation: Aggregation | None = None
    """How step scores become one; none: the format's own way."""
    softmin_temperature: float | None = Field(default=None, gt=0)
    """Temperature of softmin; none: the format's."""
    threshold: float | None = None
    """A step whose score is below is called wrong; none: the format's."""
    reference: str | None = None
    """The other model of a log-ratio format; none: the one its authors used."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; auto: float32 on a CPU, bfloat16 on a GPU."""
    prm_backend: Backend = "local"
    """What runs the reward model: local (torch, any format) or vllm (an engine; those with a class head)."""
    max_length: int | None = Field(default=None, gt=0)
    """Most tokens of a solution; steps beyond score null. None: what format and model allow."""
    max_batch_tokens: int | None = Field(default=None, gt=0)
    """Padded tokens of one forward; none: 1024 on a CPU, 32768 on a GPU."""
    limit: int | None = Field(default=None, gt=0)
    """Score only the first solutions."""
