"""Sampled responses with all that is known about them: what pairs and fine-tuning sets are chosen from.

groups = sample_groups(generator, problems, sampling, render=render, splitter="newline", grader=grader)
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data.aggregation import aggregate
from data.files import read_jsonl, write_atomically
from data.grading import grade_all
from data.own import reward_problems
from data.protocols import Grader, ResponseScorer, StepScorer, TextGenerator
from data.schema import Problem, Sample, Sampling
from data.steps import Splitter, step_texts

ScoreBy = Literal["outcome", "prm", "both", "reward_model"]


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """One response."""

    text: str
    complete: bool
    """It ended by itself; a truncated one is never right."""
    num_tokens: int
    outcome: float | None = None
    """1 right, 0 wrong; None: nobody judged it."""
    steps: tuple[str, ...] = ()
    step_scores: tuple[float | None, ...] = ()
    """P(step and all before it are right); () without a process reward model."""
    reward: float | None = None
    """Of a reward model of whole responses."""

    def score(self, by: ScoreBy) -> float | None:
        """Return what responses to one prompt are ranked by, None where it is unknown.

        prm: the lowest step score. both: the outcome, and the PRM among equals of it.
        """
        if by == "outcome":
            return self.outcome
        if by == "reward_model":
            return self.reward
        lowest = aggregate(self.step_scores, "min")
        if by == "prm" or lowest is None or self.outcome is None:
            return lowest if by == "prm" else None
        return self.outcome + lowest


@dataclass(frozen=True, slots=True)
class Group:
    """The responses to one problem."""

    id: str
    problem: str
    """The problem's text, as a reward model of steps reads it."""
    prompt: str
    """As the policy reads it."""
    responses: tuple[ScoredResponse, ...]


def sample_groups(
    generator: TextGenerator,
    problems: Sequence[Problem],
    sampling: Sampling,
    *,
    render: Callable[[str], str],
    splitter: Splitter = "newline",
    grader: Grader | None = None,
    scorer: StepScorer | None = None,
    reward_model: ResponseScorer | None = None,
) -> list[Group]:
    """Sample `sampling.n` responses a problem and ask everyone who is there about them."""
    prompts = [render(problem.text) for problem in problems]
    drawn = generator.generate(prompts, sampling)
    owners = [(p, prompt) for p, prompt, group in zip(problems, prompts, drawn, strict=True) for _ in group]
    flat = [sample for group in drawn for sample in group]
    outcomes = _outcomes(grader, [problem for problem, _ in owners], flat)
    steps = [tuple(step_texts(sample.text, splitter)) for sample in flat]
    step_scores: Sequence[Sequence[float | None]] = [()] * len(flat)
    if scorer is not None:
        step_scores = scorer.score([p.text for p, _ in owners], steps)
    rewards: Sequence[float | None] = [None] * len(flat)
    if reward_model is not None:
        rewards = reward_problems(
            reward_model, [p for p, _ in owners], [prompt for _, prompt in owners], [s.text for s in flat]
        )
    responses = [
        ScoredResponse(
            text=sample.text,
            complete=sample.finish_reason == "stop",
            num_tokens=len(sample.token_ids),
            outcome=outcome,
            steps=own,
            step_scores=tuple(scores),
            reward=reward,
        )
        for sample, outcome, own, scores, reward in zip(
            flat, outcomes, steps, step_scores, rewards, strict=True
        )
    ]
    rows = iter(responses)
    return [
        Group(problem.id, problem.text, prompt, tuple(next(rows) for _ in group))
        for problem, prompt, group in zip(problems, prompts, drawn, strict=True)
    ]


def _outcomes(
    grader: Grader | None, problems: Sequence[Problem], samples: Sequence[Sample]
) -> list[float | None]:
    if grader is None:
        return [None] * len(samples)
    whole = [k for k, sample in enumerate(samples) if sample.finish_reason == "stop"]
    verdicts = grade_all(grader, [problems[k] for k in whole], [samples[k].text for k in whole])
    outcomes: list[float | None] = [0.0] * len(samples)
    for k, verdict in zip(whole, verdicts, strict=True):
        outcomes[k] = None if verdict.status == "unjudged" else float(verdict.status == "correct")
    return outcomes


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return tokens sampled, and over the responses the share that is right and that was cut."""
    responses = [response for group in groups for response in group.responses]
    judged = [r.outcome for r in responses if r.outcome is not None]
    metrics = {
        "rollout/tokens": float(sum(r.num_tokens for r in responses)),
        "rollout/truncated": sum(not r.complete for r in responses) / len(responses),
        "rollout/unjudged": 1 - len(judged) / len(responses),
    }
    if judged:
        metrics["reward/outcome"] = sum(judged) / len(judged)
    return metrics


def write_groups(path: str | Path, groups: Sequence[Group]) -> None:
    """Write one JSON line a problem, whole or not at all."""
    write_atomically(path, "".join(json.dumps(asdict(group)) + "\n" for group in groups))


def read_groups(path: str | Path) -> list[Group]:
    """Return what `write_groups` wrote."""
    return [_group(row) for _, row in read_jsonl(path, any_text=True)]


def _group(row: Mapping[str, Any]) -> Group:
    responses = tuple(
        ScoredResponse(**{**r, "steps": tuple(r["steps"]), "step_scores": tuple(r["step_scores"])})
        for r in row["responses"]
    )
    return Group(row["id"], row["problem"], row["prompt"], responses)
