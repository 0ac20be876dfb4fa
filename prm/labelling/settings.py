"""How labels are made; `stepwell label` adds which models and problems."""

from typing import Literal

from pydantic import Field

from data.settings import Settings
from data.steps import Splitter
from prm.labelling.prefixes import LabelKind

Method = Literal["monte_carlo", "binary_search", "omega_prm"]


class LabelSettings(Settings):
    """Step labels from rollouts."""

    method: Method = "omega_prm"
    """monte_carlo: K rollouts from every prefix of every solution; binary_search: only those that locate the
    first error of a wrong solution; omega_prm: a tree a problem, searched where it is worth most."""
    labels: LabelKind = "soft"
    """hard: 1 where any rollout was right; soft: the share that was."""
    k: int = Field(8, ge=1)
    """Rollouts from a prefix. Few call right prefixes of a weak policy wrong: see docs/labelling.md."""
    samples_per_problem: int = Field(4, ge=1)
    """Solutions sampled for each problem (not for omega_prm, which labels its own rollouts)."""
    searches: int = Field(20, ge=1)
    """Most binary searches a problem (omega_prm; 100 in the paper)."""
    alpha: float = Field(0.5, gt=0, lt=1)
    """omega_prm: how much a state of higher value is preferred."""
    beta: float = Field(0.9, gt=0, lt=1)
    """omega_prm: how much a shorter rollout is preferred."""
    length_scale: float = Field(500.0, gt=0)
    """omega_prm: tokens of a long rollout, in which beta is counted."""
    c_puct: float = Field(0.125, ge=0)
    """omega_prm: how much states that were searched less are preferred."""
    splitter: Splitter = "newline"
    """What a step is: newline, blank_line, step_marker; of programs code_block, code_line."""
    batch_problems: int = Field(32, ge=1)
    """Problems worked on together; a finished batch is never done again."""
    seed: int = Field(0, ge=0)
    """Seeds the rollouts; every batch of problems has a stream of its own."""


class LabelConfig(LabelSettings):
    """`stepwell label BENCHMARK`: labels for the solutions of a model's, or of a file."""

    model: str
    """Folder or hub id of the model whose rollouts label the steps."""
    solutions: str | None = None
    """JSON lines {"id": problem id, "response": text} to label (monte_carlo, binary_search); none: solutions
    that the model samples."""
    grader: str | None = None
    """Your own function that judges answers, module:function (docs/plugins.md); none: the benchmark's."""
    source: str | None = None
    """File, folder or hub id of the problems; none takes the benchmark's own hub id."""
    split: str = "train"
    """Split of the problems. Never label what you will be evaluated on."""
    difficulty: str = "standard"
    """Of the built-in worlds: standard, hard; shuffled (arithmetic); unsaid (programs)."""
    limit: int | None = Field(None, ge=1)
    """The first so many problems only; none takes all (500 of a built-in world)."""
    template: str | None = None
    """Prompt template; none takes the benchmark's own."""
    temperature: float = Field(1.0, gt=0)
    """Of the rollouts; 0.7 is usual for large models."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the rollouts; 1 samples from everything."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Most tokens of a rollout; none: the benchmark's own. A truncated rollout counts as wrong."""
    max_batch: int = Field(256, ge=1)
    """Sequences decoded together."""
    allow_unsandboxed: bool = False
    """Run model-written programs also where this machine offers nothing that keeps them in."""
    judge: str | None = None
    """Folder or hub id of a model that names the first wrong step; only solutions on which it agrees with the
    rollouts are kept (consensus filter). none: all are."""
    judge_votes: int = Field(1, ge=1)
    """Answers of the judge a solution; the majority counts, a tie agrees with nothing. 1 is greedy."""
    judge_max_new_tokens: int = Field(1024, ge=1)
    """Most tokens of one answer of the judge."""
    output_dir: str = "runs/label"
    """labels.jsonl and summary.json go here, and progress.jsonl, from which a stopped run continues."""
