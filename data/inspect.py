"""What is in a file of step labels, and which of its problems a benchmark holds too.

    report = inspect_steps("train.jsonl", against=["processbench/math.jsonl", "math500.jsonl"])

Problems are compared by their normalised text (`normalise_problem`): a paraphrase is not found.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from data.errors import UserError
from data.schema import StepSolution
from data.sources import SUFFIXES, Row, read_rows
from data.step_readers import FORMATS, NeutralPolicy, detect_format, read_steps

STEP_BENCHMARKS = {
    "prmbench": "PRMBench",
    "mr_gsm8k": "MR-GSM8K",
    "bigbench_mistake": "BIG-Bench-Mistake",
    "reasoneval_invalid": "ReasonEval",
    "reasoneval_redundant": "ReasonEval",
    "reasoneval_perturbation": "ReasonEval",
}
PROCESSBENCH = {name: f"ProcessBench {name}" for name in ("gsm8k", "math", "olympiadbench", "omnimath")}
KNOWN_BENCHMARKS = (*PROCESSBENCH.values(), *dict.fromkeys(STEP_BENCHMARKS.values()), "GSM8K", "MATH-500")
"""Benchmarks that a report names when they were not at hand."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """One file that was compared."""

    file: str
    benchmark: str
    """A name of KNOWN_BENCHMARKS, or the file's own where its rows are none of theirs."""
    num_problems: int
    """Different problems in it."""
    shared_problems: int
    """How many of them the inspected file has too."""
    shared_records: int
    """Records of the inspected file on those problems."""
    examples: tuple[str, ...]
    """Ids of the first of these records."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `stepwell data inspect` prints."""

    source: str
    formats: dict[str, str]
    """Format -> what its labels say; several where a folder holds several."""
    num_rows: int
    num_records: int
    num_problems: int
    repeated_records: int
    """Records whose problem, steps and labels an earlier one has already."""
    left_out: dict[str, int]
    label_kinds: dict[str, int]
    labels: dict[str, int]
    """Steps by label: right (1), wrong (0), between, unlabelled."""
    first_errors: dict[str, int]
    """Records: with an error, all right, unknown."""
    answers: dict[str, int]
    """Records: right, wrong, unknown."""
    steps_per_record: dict[str, float]
    """min, median, mean, max."""
    characters_per_step: dict[str, float]
    examples: tuple[StepSolution, ...]
    overlaps: tuple[Overlap, ...]
    not_at_hand: tuple[str, ...]
    """Known benchmarks that none of the compared files holds."""


def inspect_steps(
    source: str | Path,
    format: str = "auto",  # noqa: A002 - the word users know
    *,
    neutral: NeutralPolicy = "half",
    split: str = "train",
    against: Sequence[str | Path] = (),
    num_examples: int = 5,
) -> Inspection:
    """Return counts, balance, examples and overlaps of a source that `read_steps` reads.

    Examples are spread evenly over the file. `against` are files, or folders of them, with problems in any
    step format or under problem, question, prompt or input. Raises UserError for what cannot be read.
    """
    counts: Counter[str] = Counter()
    solutions = read_steps(source, format, neutral=neutral, split=split, counts=counts)
    names = [format] if format != "auto" else _formats(source, split)
    overlaps = tuple(_overlaps(solutions, [file for path in against for file in _files(path)]))
    found = {overlap.benchmark for overlap in overlaps}
    keys = {(s.problem, s.steps, s.labels) for s in solutions}
    spread = range(0, len(solutions), max(1, len(solutions) // max(1, num_examples)))
    return Inspection(
        source=str(source),
        formats={name: FORMATS[name].meaning if name in FORMATS else "as the plug-in says" for name in names},
        num_rows=counts["rows"],
        num_records=len(solutions),
        num_problems=len({normalise_problem(s.problem) for s in solutions}),
        repeated_records=len(solutions) - len(keys),
        left_out={why: count for why, count in sorted(counts.items()) if why != "rows"},
        label_kinds=dict(Counter(s.label_kind for s in solutions)),
        labels=_balance(solutions),
        first_errors=_tally(
            "unknown" if s.first_error is None else "all right" if s.first_error < 0 else "with an error"
            for s in solutions
        ),
        answers=_tally({True: "right", False: "wrong", None: "unknown"}[s.answer_correct] for s in solutions),
        steps_per_record=_spread([len(s.steps) for s in solutions]),
        characters_per_step=_spread([len(step) for s in solutions for step in s.steps]),
        examples=tuple(solutions[k] for k in spread)[:num_examples],
        overlaps=overlaps,
        not_at_hand=tuple(name for name in KNOWN_BENCHMARKS if name not in found),
    )


_LATEX_DRESS = re.compile(r"\\(?:left|right|displaystyle|[,;:! ])|\$|\\\[|\\\]|\\\(|\\\)")
_FRACTION = re.compile(r"\\[dt]frac")
_KEPT = re.compile(r"[^\w+\-*/^=<>().\\]")


def normalise_problem(text: str) -> str:
    """Return a text in which spelling differences that change no problem are gone: Unicode forms, case,
    whitespace, dollar signs and other dress of LaTeX, punctuation between words."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = _FRACTION.sub(r"\\frac", _LATEX_DRESS.sub("", text))
    return _KEPT.sub("", text).strip(".")


def _overlaps(solutions: Sequence[StepSolution], files: Sequence[Path]) -> Iterator[Overlap]:
    ours: dict[str, list[str]] = {}
    for solution in solutions:
        ours.setdefault(normalise_problem(solution.problem), []).append(solution.id)
    for file in files:
        for benchmark, texts in _problems(file).items():
            theirs = {normalise_problem(text) for text in texts}
            shared = [ids for text, ids in ours.items() if text in theirs]
            yield Overlap(
                str(file),
                benchmark,
                len(theirs),
                len(shared),
                sum(map(len, shared)),
                tuple(ids[0] for ids in shared[:3]),
            )


def _problems(file: Path) -> dict[str, list[str]]:
    """Benchmark -> problem texts of one file."""
    row = next(iter(read_rows(file)), None)
    if row is None:
        raise UserError(f"{file}: holds no rows to compare with")
    try:
        name = detect_format(row)
    except UserError:
        return {_task_benchmark(row, file): [_problem(row) for row in read_rows(file)]}
    found: dict[str, list[str]] = {}
    for solution in read_steps(file, name):
        subset = solution.id.rpartition("-")[0]
        benchmark = PROCESSBENCH.get(subset) if name == "processbench" else STEP_BENCHMARKS.get(name)
        found.setdefault(benchmark or file.name, []).append(solution.problem)
    return found


_PROBLEM_FIELDS = ("problem", "question", "prompt", "input")


def _problem(row: Row) -> str:
    for name in _PROBLEM_FIELDS:
        if isinstance(row.values.get(name), str):
            return row.values[name]
    raise UserError(
        f"{row.where}: no problem to compare with; expected a string under {', '.join(_PROBLEM_FIELDS)}, "
        f"found {', '.join(row.values) or 'nothing'}"
    )


def _task_benchmark(row: Row, file: Path) -> str:
    values: dict[str, Any] = row.values
    if isinstance(values.get("question"), str) and "####" in str(values.get("answer", "")):
        return "GSM8K"
    return "MATH-500" if {"problem", "solution", "answer", "unique_id"} <= set(values) else file.name


def _formats(source: str | Path, split: str) -> list[str]:
    """The format of each file, in order, without repeats."""
    names: dict[str, None] = {}
    file = None
    for row in read_rows(source, split=split):
        if file != (file := row.where.rpartition(":")[0]):
            names[detect_format(row)] = None
    return list(names)


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES))
    if not files:
        raise UserError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file to compare with")
    return files


def _balance(solutions: Sequence[StepSolution]) -> dict[str, int]:
    return _tally(
        "unlabelled" if label is None else {1.0: "right", 0.0: "wrong"}.get(label, "between")
        for solution in solutions
        for label in solution.labels
    )


def _tally(words: Iterator[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _spread(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    return {"min": min(values), "median": median(values), "mean": fmean(values), "max": max(values)}
