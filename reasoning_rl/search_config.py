"""Settings of `stepwell search`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data.aggregation import Aggregation
from data.errors import UserError
from reasoning_rl.config import Count, Positive, Whole
from reasoning_rl.rollout.pool import EngineChoice

SearchMethod = Literal["majority", "best_of_n", "weighted_vote", "beam", "dvts"]


class SearchConfig(EngineChoice):
    """One search: `stepwell search BENCHMARK --model POLICY --prm PRM --method beam --n 16`."""

    model: str
    """Folder or hub id of the model to sample from."""
    prm: str | None = None
    """Folder or hub id of the process reward model; majority vote alone goes without."""
    prm_format: str | None = None
    """PRM format: a name (`stepwell score --list`) or a .yaml file; none: recognised from the model."""
    prm_backend: Literal["local", "vllm"] = "local"
    """What runs the reward model: local (torch, any format) or vllm (an engine; those with a class head)."""
    grader: str | None = None
    """Your own function that judges answers, module:function (docs/plugins.md); none: the benchmark's."""
    method: SearchMethod = "best_of_n"
    """majority, best_of_n and weighted_vote choose among n responses; beam and dvts also steer them."""
    n: Count = 16
    """Responses, or rows of each expansion, for each problem."""
    width: Count = 4
    """Of beam and dvts: the best n / width prefixes go on, or n / width trees expand width steps each."""
    choice: Literal["best", "weighted", "majority"] | None = None
    """How the answer is chosen among the candidates; none: the method's own (beam and dvts: weighted)."""
    aggregation: Aggregation | None = None
    """A candidate's score from those of its steps; none: as the PRM's format says."""
    distinct: bool = False
    """Beams that go on must differ in text."""
    token_budget: Count | None = None
    """Tokens that may be generated for a problem, at least max_new_tokens; none: no bound."""
    max_rounds: Count = 40
    """Steps of beam and dvts; the last one runs to the end of the response."""
    max_new_tokens: Count | None = None
    """Of a whole response; none: the benchmark's own."""
    step_tokens: Count | None = None
    """Of one step; none: as many as a whole response. A small bound lets a budget reach further."""
    splitter: Literal["newline", "blank_line"] = "newline"
    """What ends a reasoning step; must match how the reward model was trained."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass; 1 is off."""
    source: str | None = None
    """File, folder or hub id of the problems; none takes the benchmark's own hub id."""
    split: str | None = None
    """Split of the problems; none takes the benchmark's own."""
    difficulty: str = "standard"
    """Of the arithmetic world: standard, hard or shuffled."""
    limit: Count | None = None
    """Search for the first so many problems only; none takes all (500 of the arithmetic world)."""
    template: str | None = None
    """Prompt template; none takes the benchmark's own."""
    batch_size: Count = 16
    """Problems searched side by side."""
    max_batch: Count = 64
    """Sequences decoded together (backend hf)."""
    seed: Whole = 0
    """Seeds the sampling, and the arithmetic world's problems."""
    allow_unsandboxed: bool = False
    """Run model-written programs also where this machine offers nothing that keeps them in."""
    output_dir: str = "outputs/search"
    """search.jsonl, settings.json and result.json go to BENCHMARK/METHOD_N in it."""

    @model_validator(mode="after")
    def _scored(self) -> Self:
        by_votes = self.method == "majority" and self.choice in (None, "majority")
        if self.prm is None and not by_votes:
            raise UserError(f"method {self.method} needs step scores: set --prm PATH, or --method majority")
        return self
