"""Scoring steps by critiques that a language model writes, through any TextGenerator.

    CriticScorer(generator, tokenizer, get_format("critic")).score(problems, solutions)

The score of a step is the share of critiques that find it right, so it lies on a grid of 1 / samples.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from data.protocols import TextGenerator
from data.schema import Sampling
from prm.formats.critiques import average, read_boxes, read_index, read_yes_no
from prm.formats.encode import render_chat, step_text
from prm.formats.spec import PRMFormat

logger = logging.getLogger(__name__)

_WHOLE = {"index": read_index, "boxes": read_boxes}


class CriticScorer:
    """A StepScorer over critiques of whole solutions (`index`, `boxes`) or of single steps (`yes_no`)."""

    def __init__(self, generator: TextGenerator, tokenizer: Any, spec: PRMFormat) -> None:
        assert spec.critique in ("index", "boxes", "yes_no"), spec.critique
        self.generator, self.tokenizer, self.format = generator, tokenizer, spec

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        """Return the share of critiques that find each step right; None where no critique says."""
        if self.format.critique == "yes_no":
            return self._score_steps(problems, solutions)
        read = _WHOLE[self.format.critique or ""]
        rows = [i for i, steps in enumerate(solutions) if steps]
        prompts = [self._prompt(problems[i], solutions[i], len(solutions[i]) - 1) for i in rows]
        scores: list[list[float | None]] = [[] for _ in solutions]
        for i, texts in zip(rows, self._critiques(prompts), strict=True):
            readings = [read(text, len(solutions[i])) for text in texts]
            self._count_unread(readings)
            scores[i] = average(readings, len(solutions[i]))
        return scores

    def _score_steps(
        self, problems: Sequence[str], solutions: Sequence[Sequence[str]]
    ) -> list[list[float | None]]:
        places = [(i, k) for i, steps in enumerate(solutions) for k in range(len(steps))]
        prompts = [self._prompt(problems[i], solutions[i], k) for i, k in places]
        scores: list[list[float | None]] = [[None] * len(steps) for steps in solutions]
        for (i, k), texts in zip(places, self._critiques(prompts), strict=True):
            readings: list[list[float | None] | None] = [
                None if (v := read_yes_no(text)) is None else [v] for text in texts
            ]
            self._count_unread(readings)
            scores[i][k] = average(readings, 1)[0]
        return scores

    def _prompt(self, problem: str, steps: Sequence[str], k: int) -> str:
        """The prompt about the steps up to k, the last of them as {step}."""
        listed = [
            step_text(self.format, j, step).replace("{i0}", str(j)) for j, step in enumerate(steps[: k + 1])
        ]
        places: dict[str, Callable[[], str]] = {
            "{problem}": lambda: problem,
            "{steps}": lambda: self.format.between.join(listed),
            "{previous}": lambda: self.format.between.join(listed[:-1]),
            "{step}": lambda: listed[-1],
        }
        return fill_chat(self.tokenizer, self.format, self.format.prompt, places) + self.format.opening

    def _critiques(self, prompts: Sequence[str]) -> list[list[str]]:
        sampling = Sampling(
            max_new_tokens=self.format.max_new_tokens,
            temperature=self.format.temperature,
            n=self.format.samples if self.format.temperature else 1,
        )
        drawn = self.generator.generate(prompts, sampling) if prompts else []
        return [[self.format.opening + sample.text for sample in samples] for samples in drawn]

    def _count_unread(self, readings: Sequence[Any]) -> None:
        unread = sum(reading is None for reading in readings)
        if unread:
            logger.warning("%d of %d critiques hold no verdict that can be read", unread, len(readings))


def fill_chat(
    tokenizer: Any,
    spec: PRMFormat,
    prompt: str,
    places: dict[str, Callable[[], str]],
) -> str:
    """Return the prompt as one user's message, its places filled; plain text where the layout is plain."""
    text = fill(prompt, places)
    if spec.layout == "plain":
        return text
    messages = [{"role": "system", "content": spec.system}] if spec.system is not None else []
    messages.append({"role": "user", "content": text})
    return render_chat(tokenizer, messages, spec.name, add_generation_prompt=True)


def fill(template: str, places: dict[str, Callable[[], str]]) -> str:
    """Fill each place once, from left to right: what was filled in is never searched for places."""
    out, rest = "", template
    while True:
        at, name = min(((rest.find(name), name) for name in places if name in rest), default=(-1, ""))
        if at < 0:
            return out + rest
        out, rest = out + rest[:at] + places[name](), rest[at + len(name) :]
