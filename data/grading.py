"""Grading many responses: at once where a grader can, one by one where it cannot.

verdicts = start_grading(grader, problems, responses)     # programs begin to run here
...                                                       # the reward model scores meanwhile
for verdict in verdicts(): ...
"""

from collections.abc import Callable, Mapping, Sequence
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


class GraderBySource:
    """A BatchGrader over several benchmarks: each problem is judged by the grader of its `source`."""

    def __init__(self, graders: Mapping[str, Grader]) -> None:
        self.graders = graders

    def __call__(self, problem: Problem, response: str) -> Verdict:
        return self.graders[problem.source](problem, response)

    def start(self, problems: Sequence[Problem], responses: Sequence[str]) -> Callable[[], list[Verdict]]:
        """Begin to judge, each by its own grader; return the function that waits for the verdicts."""
        rows = {name: [k for k, p in enumerate(problems) if p.source == name] for name in self.graders}
        waits = {
            name: start_grading(grader, [problems[k] for k in rows[name]], [responses[k] for k in rows[name]])
            for name, grader in self.graders.items()
        }

        def wait() -> list[Verdict]:
            found = {k: v for name in rows for k, v in zip(rows[name], waits[name](), strict=True)}
            return [found[k] for k in range(len(problems))]

        return wait
