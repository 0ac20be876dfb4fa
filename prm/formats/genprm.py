"""GenPRM's procedure: for each step an analysis, Python that checks it, and a verdict with its probability.

The code is written by a model: it is run by the `run_code` given here (the project's sandbox) or not at all,
never in this process. (arXiv:2504.00891)
"""

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from data.protocols import TextGenerator
from data.schema import Sample, Sampling
from data.steps import token_char_ends
from prm.formats.encode import render_chat, step_text
from prm.formats.spec import PRMFormat

logger = logging.getLogger(__name__)

ANALYSE = "<analyze>\nLet's analyze the Paragraph {i} step by step: "
VERIFY = "<verify>\nLet's use python code to find any potential error:\n```python\n"
JUDGE = "<output>\n**Judgement**: $\\boxed"
_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_VERDICT_TOKENS = 20


class GenPRMScorer:
    """A StepScorer. run_code: code -> what it printed, or why it failed; None leaves the code step out.

    Differs: a TextGenerator tells the probability of the token drawn and of no other, so the verdict is drawn
    greedily (which gives the model's own, untempered probability) and the other verdict gets the rest; and
    code is written and run once a step, where the authors allow three rounds.
    """

    def __init__(
        self,
        generator: TextGenerator,
        tokenizer: Any,
        spec: PRMFormat,
        *,
        run_code: Callable[[str], str] | None = None,
    ) -> None:
        self.generator, self.tokenizer, self.format, self.run_code = generator, tokenizer, spec, run_code
        self.sampling = Sampling(
            max_new_tokens=spec.max_new_tokens, temperature=spec.temperature, top_p=0.95, top_k=20
        )
        if run_code is None:
            logger.warning("format '%s': no sandbox is given, so its code step is left out", spec.name)

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        """Return P(Yes) of every step, the mean over `samples` critiques; 1/2 where none gives a verdict."""
        scores: list[list[float | None]] = [[None] * len(steps) for steps in solutions]
        history: dict[int, list[str]] = {i: [] for i in range(len(solutions))}
        for k in range(max(map(len, solutions), default=0)):
            rows = [i for i, steps in enumerate(solutions) if k < len(steps)]
            prompts = [self._prompt(problems[i], solutions[i], history[i]) for i in rows]
            drawn = [self._judge(prompts, k) for _ in range(self.format.samples)]
            for column, i in enumerate(rows):
                scores[i][k] = sum(draw[column][1] for draw in drawn) / len(drawn)
                # The next step's prompt shows what was first written about this one.
                history[i].append(drawn[0][column][0])
        return scores

    def _prompt(self, problem: str, steps: Sequence[str], critiques: Sequence[str]) -> str:
        messages = [{"role": "system", "content": self.format.system or ""}]
        for k in range(len(critiques) + 1):
            opening = self.format.prompt.replace("{problem}", problem) if k == 0 else ""
            messages.append({"role": "user", "content": opening + step_text(self.format, k, steps[k])})
            if k < len(critiques):
                messages.append({"role": "assistant", "content": critiques[k]})
        return render_chat(self.tokenizer, messages, self.format.name, add_generation_prompt=True)

    def _judge(self, prompts: Sequence[str], k: int) -> list[tuple[str, float]]:
        """One critique and its P(Yes) for step k of each prompt."""
        texts = [ANALYSE.replace("{i}", str(k + 1))] * len(prompts)
        analyses = self._draw(prompts, texts, "</analyze>")
        texts = [f"{text}{sample.text}</analyze>\n" for text, sample in zip(texts, analyses, strict=True)]
        if self.run_code is not None:
            texts = [text + VERIFY for text in texts]
            codes = [sample.text for sample in self._draw(prompts, texts, "\n```")]
            outputs = [self.run_code(code) for code in codes]
            texts = [
                f"{text}{code}\n```\n[Code Output]\n\n```\n{output}\n```\n</verify>\n"
                for text, code, output in zip(texts, codes, outputs, strict=True)
            ]
        texts = [text + JUDGE for text in texts]
        greedy = replace(self.sampling, temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=_VERDICT_TOKENS)
        verdicts = self._draw(prompts, texts, "</output>", greedy)
        return [
            (f"{text}{sample.text}</output>\n", self._probability(sample))
            for text, sample in zip(texts, verdicts, strict=True)
        ]

    def _draw(
        self, prompts: Sequence[str], texts: Sequence[str], stop: str, sampling: Sampling | None = None
    ) -> list[Sample]:
        whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        drawn = self.generator.generate(whole, replace(sampling or self.sampling, stop=(stop,)))
        return [samples[0] for samples in drawn]

    def _probability(self, sample: Sample) -> float:
        match = _VERDICT.search(sample.text)
        if match is None:
            logger.warning("a critique ends without a verdict; its step scores 1/2")
            return 0.5
        ends = token_char_ends(self.tokenizer, sample.token_ids, sample.text)
        index = next(k for k, end in enumerate(ends) if end > match.start())
        p = math.exp(sample.logprobs[index])
        return p if match[1].lower() == "yes" else 1.0 - p
