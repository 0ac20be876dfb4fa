"""What a run's folder holds for a report: metrics of its stages, samples of its evaluations and searches."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import read_jsonl, read_settings
from data.schema import Problem
from eval.benchmarks import BENCHMARKS, read_benchmark
from eval.result import Row
from eval.run import short_digest

STAGES = ("sft", "prm", "ppo")
_DEPTH = 3
_ARITHMETIC_ID = re.compile(r"arithmetic-(train|validation|test)-(\d+)-(\d+)")


@dataclass(frozen=True)
class Evaluation:
    """The graded samples of one evaluation or search."""

    name: str
    """Path below the run's folder; evaluations of one name are compared between runs."""
    settings: Mapping[str, Any]
    rows: dict[str, list[Row]]
    """Problem id -> its samples; of a search the one that was chosen."""
    problems: dict[str, Problem] | None
    """None where they could not be found again."""
    is_search: bool


@dataclass(frozen=True)
class Run:
    """One run."""

    name: str
    stages: dict[str, list[dict[str, float]]]
    """sft, prm or ppo -> the records of its metrics.jsonl."""
    evaluations: dict[str, Evaluation]
    prm: Path | None
    """The reward model that the run itself trained."""


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Return the runs, named by the shortest ends of their paths that differ. Raises UserError for a folder
    that holds nothing to report."""
    paths = [Path(folder) for folder in folders]
    doubles = [path for k, path in enumerate(paths) if path.resolve() in [p.resolve() for p in paths[:k]]]
    if doubles:
        raise UserError(f"{doubles[0]}: given twice; name each run once")
    return [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the output folder of a run")
    stages: dict[str, list[dict[str, float]]] = {}
    for path in _find(folder, "metrics.jsonl"):
        rows = [row for _, row in read_jsonl(path)]
        if rows:
            stages.setdefault(_stage(path, rows), rows)
    evaluations = {}
    for file in ("samples.jsonl", "search.jsonl"):
        for path in _find(folder, file):
            evaluation = _read_evaluation(folder, path)
            if evaluation.rows:
                evaluations[evaluation.name] = evaluation
    if not stages and not evaluations:
        raise UserError(
            f"{folder}: nothing to report: no metrics.jsonl, samples.jsonl or search.jsonl; give the output "
            "folder of a training stage, an evaluation, a search or a quickstart"
        )
    prm = folder / "prm" / "model"
    stages = {stage: stages[stage] for stage in STAGES if stage in stages}
    return Run(name, stages, dict(sorted(evaluations.items())), prm if prm.is_dir() else None)


def _find(folder: Path, file: str) -> list[Path]:
    """The files of this name, at most three folders down."""
    patterns = ["/".join(["*"] * depth + [file]) for depth in range(_DEPTH + 1)]
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def _stage(path: Path, rows: Sequence[Mapping[str, float]]) -> str:
    """Which stage wrote the records: told by the folder's name, else by what they measure."""
    if path.parent.name in STAGES:
        return path.parent.name
    names = {name for row in rows for name in row}
    return "ppo" if "reward/total" in names else "prm" if "train/mean_score" in names else "sft"


def _read_evaluation(folder: Path, path: Path) -> Evaluation:
    remedy = f"remove {path.parent} or evaluate again"
    where = path.parent / "settings.json"
    settings = read_settings(where, remedy)
    if not isinstance(settings.get("run", {}), dict):
        raise UserError(
            f"{where}: field 'run' must be an object, got {json.dumps(settings['run'])[:60]}; {remedy}"
        )
    rows: dict[str, list[Row]] = {}
    for line, row in read_jsonl(path):
        if not all(isinstance(row.get(field), str) for field in ("id", "response", "verdict")):
            raise UserError(f"{path}:{line}: needs id, response and verdict as texts; evaluate again")
        rows.setdefault(row["id"], []).append(row)
    name = path.parent.relative_to(folder).as_posix()
    if name == ".":
        name = str(settings.get("benchmark") or path.parent.name)
    return Evaluation(name, settings, rows, _find_problems(settings, list(rows)), path.name == "search.jsonl")


def _find_problems(settings: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Problem] | None:
    """Read the problems again as the evaluation did; only the very same ones are taken."""
    name = settings.get("benchmark")
    given: dict[str, Any] = {key: settings.get(key) for key in ("source", "split", "limit")}
    given |= {"difficulty": settings.get("difficulty", "standard"), "seed": settings.get("seed", 0)}
    found = _ARITHMETIC_ID.fullmatch(ids[0]) if ids else None
    if name is None and found:
        name = "arithmetic"
        most = max(int(match[3]) for one in ids if (match := _ARITHMETIC_ID.fullmatch(one)))
        given |= {"split": found[1], "seed": int(found[2]), "limit": most + 1}
    if not isinstance(name, str) or name not in BENCHMARKS:
        return None
    try:
        problems = read_benchmark(name, **given)
    except (UserError, OSError, TypeError):  # the settings may hold anything
        return None
    digest = settings.get("run", {}).get("problems")
    if digest is not None and short_digest((p.id, p.text, p.answer) for p in problems) != digest:
        return None
    return {problem.id: problem for problem in problems}


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all apart."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
