"""What a search does, and the records that travel through it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data.aggregation import Aggregation
from data.errors import UserError
from data.protocols import StepScorer, TextGenerator
from data.schema import Sample
from data.steps import JOINER

Method = Literal["majority", "best_of_n", "weighted_vote", "beam", "dvts"]
Choice = Literal["best", "weighted", "majority"]
State = Literal["open", "ended", "cut"]
"""open: waits for its next step. ended: the model said so, or a stop string did. cut: by a length limit."""

CHOICES: dict[str, Choice] = {
    "majority": "majority",
    "best_of_n": "best",
    "weighted_vote": "weighted",
    "beam": "weighted",
    "dvts": "weighted",
}
"""How each method chooses among its candidates unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of a search, all per problem. Raises UserError when they contradict each other."""

    method: Method
    n: int
    """N: candidates, or rows of each expansion."""
    width: int = 4
    """M: the best N / M prefixes go on (beam), or N / M trees expand M candidates each (DVTS)."""
    choice: Choice | None = None
    """None: the method's own, see CHOICES."""
    aggregation: Aggregation = "last"
    """A candidate's score from those of its steps."""
    distinct: bool = False
    """Beams that go on must differ in text; else one prefix drawn several times goes on as often."""
    max_rounds: int = 40
    """Expansions by one step; the last one runs to the end of the response."""
    max_new_tokens: int = 512
    """Of a whole response."""
    step_tokens: int | None = None
    """Of one step; None: as many as a whole response."""
    token_budget: int | None = None
    """Tokens that may be generated; None: as many as the method takes."""
    temperature: float = 1.0
    top_p: float = 1.0
    splitter: Literal["newline", "blank_line"] = "newline"
    """What ends a step, for generator and scorer alike."""

    def __post_init__(self) -> None:
        if self.is_guided and self.n > self.width and self.n % self.width:
            lower = self.n - self.n % self.width
            raise UserError(
                f"n {self.n} is not divisible by width {self.width}; "
                f"use n {lower} or {lower + self.width}, or another width"
            )
        if self.token_budget is not None and self.token_budget < self.max_new_tokens:
            raise UserError(
                f"token_budget {self.token_budget} is less than one response of max_new_tokens "
                f"{self.max_new_tokens}; raise the budget or lower max_new_tokens"
            )

    @property
    def is_guided(self) -> bool:
        """Whether step scores steer the generation, not only the choice."""
        return self.method in ("beam", "dvts")

    @property
    def chosen_by(self) -> Choice:
        """How the answer is chosen: as set, or the method's own way."""
        return self.choice or CHOICES[self.method]

    @property
    def needs_scores(self) -> bool:
        """Whether a reward model takes part, to steer or to choose."""
        return self.is_guided or self.chosen_by != "majority"

    @property
    def separator(self) -> str:
        """What stands between two steps."""
        return JOINER[self.splitter]

    @property
    def step_limit(self) -> int:
        """Most tokens of one step."""
        return min(self.step_tokens or self.max_new_tokens, self.max_new_tokens)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response, or the beginning of one."""

    text: str = ""
    """An open one ends in the separator: prompt + text is what the model goes on from."""
    state: State = "open"
    tokens: int = 0
    """Generated for it, those of its earlier steps included."""
    step_scores: tuple[float | None, ...] = ()
    score: float | None = None
    """Aggregated; None where a step has no score or nothing scores."""

    @property
    def rank(self) -> float:
        """The score to sort by: without one behind all others."""
        return float("-inf") if self.score is None else self.score


@dataclass(frozen=True, slots=True)
class Request:
    """What a search of one problem wants next: one continuation of each prefix (which may repeat)."""

    prefixes: list[Candidate]
    limit: int
    """New tokens of each."""
    to_end: bool
    """Run to the end of the response instead of to the end of the step."""


@dataclass(frozen=True, slots=True)
class Models:
    """What a search runs on."""

    generator: TextGenerator
    render: Callable[[str], str]
    """Problem text -> prompt; the candidate's text follows it directly."""
    has_ended: Callable[[Sample], bool]
    """Whether a sample's last token is the end of the sequence: a sample that met a stop string and one that
    ended both say "stop"."""
    scorer: StepScorer | None = None
    stop: tuple[str, ...] = ()
    """Strings that end a response, besides the end of the sequence."""
