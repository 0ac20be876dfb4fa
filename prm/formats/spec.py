"""How one published process reward model is fed and read, as data: a new model is a new PRMFormat, not code.

PRMFormat(name="mine", separator="\\n\\n", head="classifier", readout="class2")
"""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from data.aggregation import Aggregation
from data.settings import Settings
from data.steps import Splitter

Head = Literal[
    "lm_head",
    "classifier",
    "value_head",
    "two_layer",
    "score_head",
    "ensemble",
    "vocab_value",
    "log_ratio",
    "generative",
]
Readout = Literal[
    "two_token",
    "mean_logits",
    "class2",
    "class2_difference",
    "validity",
    "redundancy",
    "sigmoid",
    "raw",
    "ensemble_mean",
    "step_ratio",
    "cumulative_ratio",
    "critique",
]
READOUTS: dict[Head, tuple[Readout, ...]] = {
    "lm_head": ("two_token", "mean_logits"),
    "classifier": ("class2", "class2_difference", "validity", "redundancy", "sigmoid", "raw"),
    "value_head": ("sigmoid", "raw"),
    "two_layer": ("class2", "class2_difference"),
    "score_head": ("validity", "redundancy", "class2", "sigmoid", "raw"),
    "ensemble": ("ensemble_mean",),
    "vocab_value": ("sigmoid", "raw"),
    "log_ratio": ("step_ratio", "cumulative_ratio"),
    "generative": ("critique",),
}
"""Head -> the readouts that make sense of its outputs."""

RAW_READOUTS = ("class2_difference", "raw", "step_ratio")


class PRMFormat(Settings):
    """One PRM format. Texts keep {problem}, {step} and {i} (the step's number, from 1) as places to fill."""

    name: str
    """What `--format` calls it."""
    models: tuple[str, ...] = ()
    """Published checkpoints read this way, "owner/name" or "name", * for any part of it."""
    architectures: tuple[str, ...] = ()
    """Classes in a config.json that no other format is published with."""

    layout: Literal["plain", "chat", "turns"] = "plain"
    """plain: one text. chat: the chat template, all steps in the assistant's message. turns: a user's message
    a step, answered by the verdict `good`, before which the score is read."""
    system: str | None = None
    """System message; none: the chat template's own default."""
    prompt: str = "{problem}\n"
    """What stands before the first step, or the user's message."""
    step: str = "{step}"
    """The text of a step. Where it holds {i}, a number "Step 3:" that the step already carries is dropped."""
    separator: str = "\n"
    """What stands after every step, the last too; {pad} is the tokenizer's padding token."""
    between: str = ""
    """What stands between a separator and the next step."""
    splitter: Splitter = "blank_line"
    """How a response that is not yet cut into steps is cut."""
    strip: bool = True
    """Cut white space around problem and steps, so that separators always tokenise alike."""
    replace_in_steps: dict[str, str] = {}
    """Texts to replace inside steps, in order: what the model would take for a separator."""
    replace_in_problem: dict[str, str] = {}
    """The same inside the problem."""

    tokenise: Literal["joint", "separate"] = "joint"
    """joint: the whole text at once. separate: prompt, steps and separators each for itself."""
    bos: bool = True
    """Begin with the tokenizer's beginning-of-sequence token, if it has one. Chats bring their own."""
    separator_removed: bool = False
    """The separator only marks where the text is cut for tokenising; the model never sees it."""
    read: Literal["separator_end", "separator_start", "before"] = "separator_end"
    """The token whose output is the score: the separator's last or first, or the one before the separator
    (or before the verdict, in turns)."""
    read_offset: int = 0
    """Added to that token's index."""
    mask_separators: bool = False
    """Hide the separators from attention, as some models were trained."""
    max_length: int | None = Field(default=None, gt=0)
    """Most tokens of a solution; none: the model's context. Steps beyond score None."""

    head: Head = "classifier"
    """Where the score comes out: of the LM head, a token classifier, a value head ..."""
    readout: Readout = "class2"
    """How the head's outputs become a score."""
    good: str = "+"
    """Token that says a step is right (two_token, turns); a leading space is part of it."""
    bad: str = "-"
    """Token that says it is wrong."""
    token_ids: dict[Literal["separator", "good", "bad"], int] = {}
    """Ids in the published tokenizer; checked when a published model is loaded."""
    reference: str | None = None
    """Reference model of a log-ratio, folder or hub id."""
    coefficient: float = Field(default=1.0, gt=0)
    """Scale of a log-ratio."""
    critique: Literal["index", "boxes", "yes_no", "genprm"] | None = None
    """How a generated critique is read. index: of the first wrong step, boxed, from 0. boxes: one boxed
    correct/incorrect a step. yes_no: a critique for every step. genprm: analysis, code, verdict a step."""
    opening: str = ""
    """What every critique begins with."""
    samples: int = Field(default=1, gt=0)
    """Critiques a solution (or step); their verdicts are averaged."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature of critiques."""
    max_new_tokens: int = Field(default=2048, gt=0)
    """Longest critique, in tokens."""

    aggregation: Aggregation = "min"
    """How step scores become one of the solution, unless told otherwise."""
    softmin_temperature: float = Field(default=0.1, gt=0)
    """Temperature of softmin."""
    threshold: float = 0.5
    """A step whose score is below counts as wrong."""
    threshold_mode: Literal["absolute", "difference"] = "absolute"
    """difference: compare the change from the step before (the first step's own score) with the threshold."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.readout not in READOUTS[self.head]:
            raise ValueError(
                f"readout '{self.readout}' does not fit head '{self.head}'; "
                f"choose {' or '.join(READOUTS[self.head])}"
            )
        if self.head == "generative" and self.critique is None:
            raise ValueError("a generative format needs `critique`: index, boxes, yes_no or genprm")
        if self.tokenise == "separate" and (self.layout != "plain" or self.separator_removed):
            raise ValueError("tokenise: separate works for layout plain with separators that stay")
        if self.tokenise == "separate" and self.read == "before":
            raise ValueError("read: before works with tokenise: joint")
        if "{step}" not in self.step:
            raise ValueError("`step` must hold {step}")
        if self.head != "generative" and "{problem}" not in self.prompt:
            raise ValueError("`prompt` must hold {problem}")
        if not self.separator and self.layout != "turns" and self.head != "generative":
            raise ValueError("`separator` must not be empty")
        return self

    @property
    def is_probability(self) -> bool:
        """Whether scores lie in [0, 1]; otherwise they are raw values, comparable only with each other."""
        return self.readout not in RAW_READOUTS

    def are_right(self, scores: Sequence[float | None]) -> list[bool | None]:
        """Return for each step whether its score reaches the threshold; None without a score."""
        return are_right(scores, self.threshold, self.threshold_mode)


def are_right(
    scores: Sequence[float | None], threshold: float, mode: Literal["absolute", "difference"] = "absolute"
) -> list[bool | None]:
    """Return for each step whether its score (or its change from the step before) reaches the threshold."""
    if mode == "absolute":
        return [None if score is None else score >= threshold for score in scores]
    before: float | None = 0.0
    verdicts: list[bool | None] = []
    for score in scores:
        verdicts.append(None if score is None or before is None else score - before >= threshold)
        before = score
    return verdicts
