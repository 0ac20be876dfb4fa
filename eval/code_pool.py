"""Many programs judged at once: one sandbox for each core, equal answers run once.

    grade = CodePool(lambda sandbox: make_code_grader(sandbox=sandbox), num_workers=4)
    verdicts = grade.start(problems, responses)     # returns at once
    verdicts()                                      # waits

Each worker is a thread with a judge and a zygote of its own (eval/sandbox): warm, so a program costs a fork
and not an interpreter, and apart, so no program sees another.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from data.machine import cpu_count
from data.protocols import Grader
from data.schema import Problem, Verdict
from eval import sandbox as code_sandbox
from eval.sandbox import Sandbox

MAX_WORKERS = 16


class CodePool:
    """A data.grading.BatchGrader. Nothing is started before the first program is judged; sandboxes end with
    this object, or with the process."""

    def __init__(self, make: Callable[[Sandbox], Grader], num_workers: int | None = None) -> None:
        self.num_workers = num_workers or min(cpu_count(), MAX_WORKERS)
        self._make = make
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, problem: Problem, response: str) -> Verdict:
        return self.start([problem], [response])()[0]

    def start(self, problems: Sequence[Problem], responses: Sequence[str]) -> Callable[[], list[Verdict]]:
        """Begin to judge; return the function that waits for the verdicts, in order."""
        if self._pool is None:
            self._pool = _open_pool(self, self._make, self.num_workers)
        # By identity: the same problem with other tests (those it shows, say) has the same id.
        waiting: dict[tuple[int, str], Future[Verdict]] = {}
        keys = []
        for problem, response in zip(problems, responses, strict=True):
            key = id(problem), response
            if key not in waiting:
                waiting[key] = self._pool.submit(_judge, problem, response)
            keys.append(key)
        return lambda: [waiting[key].result() for key in keys]


_worker = threading.local()
"""`grade` of the thread that reads it."""


def _open_pool(owner: CodePool, make: Callable[[Sandbox], Grader], num_workers: int) -> ThreadPoolExecutor:
    """The workers know nothing of their owner: when nobody else does either, it takes them along."""
    sandboxes: list[Sandbox] = []
    checked = code_sandbox.isolation().level  # what whoever asked was told; it must hold for every worker

    def open_worker() -> None:
        sandbox = Sandbox(at_least=checked)
        sandboxes.append(sandbox)
        _worker.grade = make(sandbox)

    def close() -> None:
        pool.shutdown(cancel_futures=True)
        for sandbox in sandboxes:
            sandbox.close()

    pool = ThreadPoolExecutor(num_workers, "code-grader", initializer=open_worker)
    weakref.finalize(owner, close)
    return pool


def _judge(problem: Problem, response: str) -> Verdict:
    return _worker.grade(problem, response)
