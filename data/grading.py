"""Grading many responses: at once where a grader can, one by one where it cannot.

verdicts = start_grading(grader, problems, responses)     # programs begin to run here
...                                                       # the reward model scores meanwhile
for verdict in verdicts(): ...
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from data.protocols import Grader
from data.schema import Problem, Verdict


@runtime_checkable
class BatchGrader(Protocol):
    """A Grader whose verdicts take time outside this process."""

    def __call__(self, problem: Problem, response: str) -> Verdict: ...

    def start(self, problems: Sequence[Problem], responses: Sequence[str]) -> Callable[[], list[Verdict]]:
        """Begin to judge each response to its problem; return the function that waits for the verdicts."""
        ...


def start_grading(
    grader: Grader, problems: Sequence[Problem], responses: Sequence[str]
) -> Callable[[], list[Verdict]]:
    """Return the function that returns the verdicts, in order; a BatchGrader works in the meantime."""
    if isinstance(grader, BatchGrader):
        return grader.start(problems, responses)
    return lambda: [grader(p, r) for p, r in zip(problems, responses, strict=True)]


def grade_all(grader: Grader, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verdict]:
    """Return the verdicts, in order."""
    return start_grading(grader, problems, responses)()
