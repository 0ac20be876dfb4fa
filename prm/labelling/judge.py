"""A language model as judge of a solution, and the filter that keeps what it and the rollouts agree on.

Rollout labels say whether a policy can recover, a judge says whether a step is wrong; each errs where the
other does not. Keeping only solutions on whose first error both agree costs over half of them and is worth it
(arXiv:2501.07301).

    judged = judge_solutions(generator, [(problem.text, steps)], sampling=Sampling(n=8))
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.protocols import TextGenerator
from data.schema import Sampling
from prm.labelling.completer import Cost, Prefix

NONE_WRONG = -1

_BOXED = re.compile(r"\\boxed\{\s*(-?\d{1,6})\s*\}")


@dataclass(frozen=True, slots=True)
class JudgeFormat:
    """How a judge is asked, and how its answer is read."""

    ask: Callable[[str, Prefix], str]
    """(problem, steps) -> the judge's prompt."""
    read: Callable[[str, int], int | None]
    """(response, number of steps) -> first wrong step from 0, -1 for none, None when it says neither."""


def ask_for_index(problem: str, steps: Prefix) -> str:
    """Return a critic's question: which numbered paragraph holds the first mistake?"""
    paragraphs = "\n\n".join(f"[{index}] {step}" for index, step in enumerate(steps))
    return (
        "A problem and a solution to it follow. The solution's paragraphs are numbered from 0.\n\n"
        f"Problem:\n{problem}\n\nSolution:\n{paragraphs}\n\n"
        "Check each paragraph in turn. Then write the number of the first paragraph that contains a mistake "
        "as \\boxed{number}, or \\boxed{-1} if there is none.\n"
    )


def read_boxed_index(response: str, num_steps: int) -> int | None:
    """Return the last boxed number if it names a step or is -1."""
    found = _BOXED.findall(response)
    if not found:
        return None
    index = int(found[-1])
    return index if -1 <= index < num_steps else None


CRITIC = JudgeFormat(ask_for_index, read_boxed_index)


def judge_solutions(
    generator: TextGenerator,
    solutions: Sequence[tuple[str, Prefix]],
    *,
    sampling: Sampling,
    form: JudgeFormat = CRITIC,
    cost: Cost | None = None,
) -> list[int | None]:
    """Return the first wrong step of each (problem, steps) by the majority of sampling.n answers.

    None when no answer can be read or the two most frequent tie.
    """
    if not solutions:
        return []
    drawn = generator.generate([form.ask(problem, steps) for problem, steps in solutions], sampling)
    results = []
    for (_, steps), samples in zip(solutions, drawn, strict=True):
        votes = Counter(form.read(sample.text, len(steps)) for sample in samples)
        del votes[None]
        ranked = votes.most_common(2)
        is_tie = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
        results.append(ranked[0][0] if ranked and not is_tie else None)
        if cost is not None:
            cost.judge_calls += len(samples)
            cost.judge_tokens += sum(len(sample.token_ids) for sample in samples)
    return results


def agree(first_error: int | None, judged: int | None) -> bool:
    """Return whether rollouts and judge name the same first error, or both none."""
    return first_error is not None and first_error == judged
