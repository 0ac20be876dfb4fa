"""Where a run's problems come from: one benchmark or several, what is held out, who judges the answers."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.grading import GraderBySource
from data.inspect import normalise_problem
from data.protocols import Grader
from data.schema import Problem
from eval.benchmarks import BENCHMARKS, get_benchmark, make_grader, read_benchmark
from reasoning_rl.config import PPOConfig
from reasoning_rl.rounds import RoundsConfig

VALIDATION_SEED = 1_000_003
REPORTED = (
    *("math500", "aime24", "amc23", "olympiadbench", "minerva_math", "gsm_hard"),
    *("humaneval", "humaneval_plus", "mbpp_plus"),
)
"""Benchmarks without a split to train on: what is published of them is measured on all their problems."""

Settings = PPOConfig | RoundsConfig
Pool = tuple[list[Problem], list[Problem]]
"""(training problems, held-out problems)."""


def sources_of(config: Settings) -> list[tuple[str, str | None]]:
    """Return (benchmark, its file, folder or hub id; None: its own) of each entry of `problems`.

    Raises UserError for an unknown benchmark, and for a file whose form nothing says.
    """
    named = [config.problems] if isinstance(config.problems, str) else list(config.problems)
    if config.problems_format is not None:
        if len(named) > 1:
            raise UserError("problems_format is of a single file; name several as FORMAT=FILE in problems")
        get_benchmark(config.problems_format)
        return [(config.problems_format, named[0])]
    found = []
    for entry in named:
        name, _, source = entry.partition("=")
        if name not in BENCHMARKS and not source and Path(name).exists():
            raise UserError(
                f"{entry}: is a file or folder; set problems_format to the benchmark whose form it has"
            )
        get_benchmark(name)
        found.append((name, source or None))
    return found


def make_run_grader(config: Settings, sources: Sequence[tuple[str, str | None]], **options: Any) -> Grader:
    """Return who judges the answers to problems of these sources; options as for `make_grader`."""
    names = list(dict.fromkeys(name for name, _ in sources))
    if config.grader is not None or len(names) == 1:
        return make_grader(names[0], config.grader, **options)
    return GraderBySource({name: make_grader(name, **options) for name in names})


def read_pool(
    config: Settings,
    sources: Sequence[tuple[str, str | None]],
    *,
    say: Callable[[str], object] = warnings.warn,
) -> Pool:
    """Return training and held-out problems of all sources, an equal share of `num_validation` from each.

    Problems that are held out, or stand in an `exclude`d benchmark, are not trained on, and of several
    sources none is trained on twice: texts are compared without their spelling (data.inspect), and a warning
    (by `say`, which several processes leave to one) counts what was left out.
    """
    for name, source in sources:
        if name in REPORTED and source is None:
            say(f"problems: {name} has no split for training; after this run, results on it say nothing")
    if len(sources) == 1:
        train, held_out = _read(config, *sources[0], num_validation=config.num_validation)
    else:
        train, held_out = [], []
        for number, (name, source) in enumerate(sources):
            share = (config.num_validation + number) // len(sources)
            pools = _read(config, name, source, num_validation=share)
            for pool, found in zip((train, held_out), pools, strict=True):
                pool += [replace(problem, source=name) for problem in found]
    excluded = getattr(config, "exclude", ())
    once = len(sources) > 1 or bool(excluded)
    return _without(train, held_out, excluded, say, once=once), held_out


def _read(config: Settings, name: str, source: str | None, *, num_validation: int) -> Pool:
    """Without a split of its own for validation, the last `num_validation` training problems are held out; a
    benchmark's test split is never touched."""
    options: dict[str, Any] = {"source": source, "difficulty": config.difficulty}
    if get_benchmark(name).validation_split:
        train = read_benchmark(name, split="train", limit=config.num_problems, seed=config.seed, **options)
        if not num_validation:
            return train, []
        return train, read_benchmark(
            name, split="validation", limit=num_validation, seed=VALIDATION_SEED, **options
        )
    pool = read_benchmark(name, split="train", limit=config.num_problems + num_validation, **options)
    cut = max(0, len(pool) - num_validation)
    return pool[:cut], pool[cut:]


def _without(
    train: Sequence[Problem],
    held_out: Sequence[Problem],
    excluded: Sequence[str],
    say: Callable[[str], object],
    *,
    once: bool,
) -> list[Problem]:
    """Return the training problems whose text is neither held out nor excluded nor, if `once`, there
    already."""
    banned = {normalise_problem(problem.text): "held out" for problem in held_out}
    for entry in excluded:
        name, _, source = entry.partition("=")
        for problem in read_benchmark(name, source=source or None):
            banned.setdefault(normalise_problem(problem.text), name)
    kept, counts = [], dict.fromkeys((*banned.values(), "there twice"), 0)
    for problem in train:
        text = normalise_problem(problem.text)
        if text in banned:
            counts[banned[text]] += 1
            continue
        if once:
            banned[text] = "there twice"
        kept.append(problem)
    if left_out := {why: count for why, count in counts.items() if count}:
        said = ", ".join(f"{count} {why}" for why, count in left_out.items())
        say(f"problems: {len(kept)} to train on; left out: {said}")
    return kept
