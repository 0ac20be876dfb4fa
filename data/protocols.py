"""The seams between packages: what a trainer or evaluator needs from a generator, scorer or grader.

Policy and reward model meet in *text*: steps with character spans, never token ids, so their tokenizers may
differ.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from data.schema import Problem, Sample, Sampling, Verdict


class TextGenerator(Protocol):
    """What samples text: a policy, a critic that writes, a judge."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Sample]]:
        """Return `sampling.n` samples for each prompt, in the order of the prompts."""
        ...


class StepScorer(Protocol):
    """What says of every step how likely it is right: a process reward model."""

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        """Return P(step and all before it are right), in [0, 1], for every step of every solution.

        None where the step did not fit the model's context. One inner list per solution, one entry a step.
        """
        ...


class ResponseScorer(Protocol):
    """What pays a response as a whole: a reward model of responses."""

    def score_responses(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """Return one reward a response, any real number, larger is better; only differences mean something.

        prompts: as the policy reads them. None where prompt and response did not fit the model's context.
        """
        ...


class Grader(Protocol):
    """What verifies a response's final answer or program."""

    def __call__(self, problem: Problem, response: str) -> Verdict:
        """Judge a response's final answer. Never raises, never hangs."""
        ...


class WeightSink(Protocol):
    """Whatever samples with a copy of the weights that are trained."""

    def push(self, named_tensors: Iterable[tuple[str, Any]], version: int) -> None:
        """Give the generator new policy weights."""
        ...


class MetricLog(Protocol):
    """Where a training loop reports. Names are `group/metric`; those under `time/` and `memory/` go to a file
    of their own, so that the metrics file of a resumed run equals the uninterrupted one's bit for bit."""

    def __call__(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one finished iteration (or optimiser update), counted from 1."""
        ...

    def rewind(self, iteration: int) -> None:
        """Forget everything recorded after `iteration`: a resumed run is about to do it again."""
        ...


class Stateful(Protocol):
    """A checkpoint's part: what `state_dict` returns, `load_state_dict` restores."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
