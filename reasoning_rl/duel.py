"""Two policies on the same prompts: who is preferred, by a reward model, a judge that writes, or the answer.

A judge reads each pair twice, with the places swapped: it must prefer the same answer both times, else it is
a tie, because judges favour a place (arXiv:2306.05685).
"""

import re
from collections.abc import Sequence
from typing import Literal, Protocol

from pydantic import Field, model_validator

from data.errors import UserError
from data.own import reward_problems
from data.protocols import Grader, ResponseScorer, TextGenerator
from data.schema import Problem, Sampling
from data.settings import Settings
from reasoning_rl.config import Count, NonNegative, Whole

Verdict = Literal["win", "tie", "lose", "unjudged"]
"""Of the first policy."""


class DuelConfig(Settings):
    """Win, tie, lose between two policies: `stepwell duel A B`."""

    problems: str = "arithmetic"
    """Benchmark name, or a file or folder of problems."""
    problems_format: str | None = None
    """Benchmark whose format a file has (prompts: rows with a prompt and no answer); off when `problems` is
    itself a name."""
    split: str | None = None
    """Split of the problems; none takes the benchmark's own."""
    limit: Count = 500
    """Compare on the first so many problems."""
    reward_model: str | None = None
    """Folder of a reward model that judges (`stepwell rm`), or your own module:function."""
    judge: str | None = None
    """Folder or hub id of a language model that judges in writing; none, and no reward_model: the verified
    answer decides, right beats wrong."""
    tie_margin: NonNegative = 0.0
    """Rewards that differ by no more are a tie (reward_model)."""
    judge_max_new_tokens: Count = 512
    """Length limit of a judgement (judge)."""
    template: str | None = None
    """Prompt template of both policies; none takes the benchmark's own."""
    temperature: NonNegative = 0.0
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass; 1 is off."""
    max_new_tokens: Count | None = None
    """none: the benchmark's own."""
    max_batch: Count = 64
    """Sequences decoded together."""
    seed: Whole = 0
    """Seeds the sampling, and the arithmetic world's problems."""
    allow_unsandboxed: bool = False
    """Run model-written programs also where this machine offers nothing that keeps them in."""
    output_dir: str = "outputs/duel"
    """duel.jsonl, settings.json and result.json go there; the same command continues a duel."""

    @model_validator(mode="after")
    def _one_judge(self) -> "DuelConfig":
        if self.reward_model is not None and self.judge is not None:
            raise UserError("give at most one of --reward-model and --judge")
        return self


class Referee(Protocol):
    """What compares two policies' responses."""

    def __call__(
        self, problems: Sequence[Problem], prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        """Return the first policy's verdict on every problem."""
        ...


def by_reward(model: ResponseScorer, tie_margin: float = 0.0) -> Referee:
    """Return a referee that compares the rewards of two responses."""

    def judge(
        problems: Sequence[Problem], prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        both = (reward_problems(model, problems, prompts, side) for side in (first, second))
        return [_compare(a, b, tie_margin) for a, b in zip(*both, strict=True)]

    return judge


def by_answer(grader: Grader) -> Referee:
    """Return a referee to whom a right answer beats a wrong one, and two alike are a tie."""

    def judge(
        problems: Sequence[Problem], prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        values = {"correct": 1.0, "wrong": 0.0, "unjudged": None}
        return [
            _compare(values[grader(p, a).status], values[grader(p, b).status], 0.0)
            for p, a, b in zip(problems, first, second, strict=True)
        ]

    return judge


def by_judge(generator: TextGenerator, sampling: Sampling, render_chat: "RenderChat") -> Referee:
    """Return a referee that asks a language model twice, with the places swapped."""

    def judge(
        problems: Sequence[Problem], prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[Verdict]:
        asked = [
            render_chat(judge_text(prompt, *sides))
            for prompt, a, b in zip(prompts, first, second, strict=True)
            for sides in ((a, b), (b, a))
        ]
        said = [read_choice(samples[0].text) for samples in generator.generate(asked, sampling)]
        return [agree(straight, swapped) for straight, swapped in zip(said[0::2], said[1::2], strict=True)]

    return judge


class RenderChat(Protocol):
    """How a text is put to the judge."""

    def __call__(self, text: str) -> str:
        """Return the prompt that puts a text to the judge."""
        ...


Choice = Literal["A", "B", "C"]

_CHOICE = re.compile(r"\[\[([ABC])\]\]")


def judge_text(prompt: str, first: str, second: str) -> str:
    """Return what a judge reads: the request, two answers, and how to name the better one."""
    return (
        "Compare two answers to one request. Judge what they say, neither their order nor their length.\n\n"
        f"[Request]\n{prompt.strip()}\n\n[Answer A]\n{first.strip()}\n\n[Answer B]\n{second.strip()}\n\n"
        "Give your reasons in a few sentences. Then end with [[A]] if answer A is better, [[B]] if answer B "
        "is better, or [[C]] if they are equally good."
    )


def read_choice(text: str) -> Choice | None:
    """Return the last [[A]], [[B]] or [[C]] of a judgement, None without one."""
    found = _CHOICE.findall(text)
    return found[-1] if found else None


def agree(straight: Choice | None, swapped: Choice | None) -> Verdict:
    """Return the first policy's verdict from both orders; in the second its answer stood in place B."""
    if straight is None or swapped is None:
        return "unjudged"
    if (straight, swapped) == ("A", "B"):
        return "win"
    return "lose" if (straight, swapped) == ("B", "A") else "tie"


def _compare(a: float | None, b: float | None, margin: float) -> Verdict:
    if a is None or b is None:
        return "unjudged"
    if abs(a - b) <= margin:
        return "tie"
    return "win" if a > b else "lose"
