"""Search on problems and keep what was found; a run killed at any moment goes on later.

    result = search(problems, rules=Rules("beam", n=16), models=models, grader=make_grader("gsm8k"),
                    extract=lambda response: extract_answer(response, CHAINS["gsm8k"]), out_dir="runs/beam")

`out_dir` holds three files:

settings.json   what the run was asked for; a resumed run must ask for the same
search.jsonl    one line a problem: id, response, answer, score, verdict, reason, seconds (of grading); tokens
                (generated), read_tokens (of prompts and prefixes), num_scored (texts the reward model read),
                num_rounds; candidates, each {text, state, tokens, step_scores, score, answer}
result.json     the numbers of `SearchResult.to_dict`
"""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import append_jsonl, cut_torn_line, read_jsonl, write_atomically
from data.protocols import Grader
from data.schema import Problem, Verdict
from eval.metrics import wilson_interval
from eval.result import Estimate
from eval.run import batch_seed, check_settings, short_digest
from eval.search.choose import choose
from eval.search.engine import Outcome, run_plans
from eval.search.rules import Models, Rules

Row = dict[str, Any]
Progress = Callable[[int, int, Mapping[str, float]], None]
"""(problems done, problems in all, running numbers)."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search reached, and what it took, means over problems. Unjudged answers are left out."""

    settings: Mapping[str, Any]
    num_problems: int
    accuracy: Estimate
    unjudged_rate: float
    no_answer_rate: float
    tokens: float
    read_tokens: float
    num_scored: float
    num_rounds: float
    most_tokens: int
    """Generated for the dearest problem: never above the budget."""

    def to_dict(self) -> dict[str, Any]:
        """Return what result.json holds; NaN is None."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        accuracy = {key: None if value != value else value for key, value in asdict(self.accuracy).items()}
        versions = {"python": platform.python_version(), "stepwell": version("stepwell")}
        return own | {"settings": dict(self.settings), "accuracy": accuracy, "versions": versions}

    def rows(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs for a printed table."""
        estimate = self.accuracy
        shown = f"{estimate.value:.1%}  (95% {estimate.low:.1%} to {estimate.high:.1%})"
        return [
            ("accuracy", shown if estimate.num_problems else "none judged"),
            ("problems", str(self.num_problems)),
            ("unjudged (left out)", f"{self.unjudged_rate:.1%}"),
            ("no answer", f"{self.no_answer_rate:.1%}"),
            ("tokens a problem, generated", f"{self.tokens:,.1f} (at most {self.most_tokens:,})"),
            ("tokens a problem, read", f"{self.read_tokens:,.1f}"),
            ("texts a problem, scored", f"{self.num_scored:,.1f}"),
            ("rounds a problem", f"{self.num_rounds:,.1f}"),
        ]


def search(
    problems: Sequence[Problem],
    *,
    rules: Rules,
    models: Models,
    grader: Grader,
    extract: Callable[[str], str | None],
    out_dir: str | Path,
    seed: int = 0,
    batch_size: int = 16,
    settings: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> SearchResult:
    """Return the numbers, after searching for the problems that out_dir does not hold yet.

    `extract` finds the answer that a response votes for: those that are to count as one must come out as one
    text. `batch_size` problems are searched side by side, with a random stream a batch, so an interrupted run
    ends with the numbers of an uninterrupted one. Raises UserError when out_dir holds a run with other
    settings or a broken search.jsonl.
    """
    assert batch_size > 0, batch_size
    assert len({p.id for p in problems}) == len(problems), "problem ids must differ"
    if not problems:
        raise UserError("no problems to search; raise the limit or check the source")
    out_dir = Path(out_dir)
    own = {
        "problems": short_digest((p.id, p.text, p.answer) for p in problems),
        "prompts": short_digest(models.render(p.text) for p in problems),
        "rules": asdict(rules),
        "seed": seed,
        "batch_size": batch_size,
    }
    if (out_dir / "search.jsonl").exists() and not (out_dir / "settings.json").exists():
        raise UserError(f"{out_dir}: has search.jsonl but no settings.json; choose another output folder")
    recorded = check_settings(out_dir, {**(settings or {}), "run": own})
    path = out_dir / "search.jsonl"
    rows = read_recorded(path, {p.id for p in problems})
    path.touch()
    if on_progress:
        on_progress(len(rows), len(problems), _running(list(rows.values())) if rows else {})
    for start in range(0, len(problems), batch_size):
        batch = problems[start : start + batch_size]
        if all(p.id in rows for p in batch):
            continue
        outcomes = run_plans(batch, rules, models, seed=batch_seed(seed, start // batch_size))
        new = [
            _judge(problem, outcome, rules, grader, extract)
            for problem, outcome in zip(batch, outcomes, strict=True)
            if problem.id not in rows
        ]
        append_jsonl(path, new)
        rows |= {row["id"]: row for row in new}
        if on_progress:
            on_progress(len(rows), len(problems), _running(list(rows.values())))
    result = summarise([rows[p.id] for p in problems], settings=recorded)
    write_atomically(out_dir / "result.json", json.dumps(result.to_dict(), indent=1) + "\n")
    return result


def summarise(rows: Sequence[Row], *, settings: Mapping[str, Any]) -> SearchResult:
    """Return the numbers of search.jsonl rows."""
    judged = [row for row in rows if row["verdict"] != "unjudged"]
    num_correct = sum(row["verdict"] == "correct" for row in judged)

    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    value = num_correct / len(judged) if judged else float("nan")
    return SearchResult(
        settings=settings,
        num_problems=len(rows),
        accuracy=Estimate(value, *wilson_interval(num_correct, len(judged)), len(judged)),
        unjudged_rate=1 - len(judged) / len(rows),
        no_answer_rate=sum(row["answer"] is None for row in rows) / len(rows),
        tokens=mean("tokens"),
        read_tokens=mean("read_tokens"),
        num_scored=mean("num_scored"),
        num_rounds=mean("num_rounds"),
        most_tokens=max(row["tokens"] for row in rows),
    )


_FIELDS = frozenset(
    ("id", "response", "answer", "score", "verdict", "reason", "seconds")
    + ("tokens", "read_tokens", "num_scored", "num_rounds", "candidates")
)


def read_recorded(path: Path, known: set[str] | None = None) -> dict[str, Row]:
    """Return the problems on record by id, after cutting off a last line that a crash left torn.

    Raises UserError for a row that is broken, stands twice, or is none of the `known` problems.
    """
    if not path.exists():
        return {}
    cut_torn_line(path)
    rows: dict[str, Row] = {}
    for line, row in read_jsonl(path):
        remedy = "remove that line and run again"
        if missing := _FIELDS - row.keys():
            raise UserError(f"{path}:{line}: no field '{min(missing)}'; {remedy}")
        if known is not None and row["id"] not in known:
            raise UserError(f"{path}:{line}: id '{row['id']}' is not of this run; {remedy}")
        if row["id"] in rows:
            raise UserError(f"{path}:{line}: id '{row['id']}' stands twice; {remedy}")
        rows[row["id"]] = row
    return rows


def _judge(
    problem: Problem,
    outcome: Outcome,
    rules: Rules,
    grader: Grader,
    extract: Callable[[str], str | None],
) -> Row:
    candidates = outcome.candidates
    answers = [extract(one.text) if one.state == "ended" else None for one in candidates]
    index = choose(candidates, answers, rules.chosen_by)
    if index is None:
        verdict = Verdict("wrong", "no candidate ended")
    else:
        verdict = grader(problem, candidates[index].text)
    return {
        "id": problem.id,
        "response": "" if index is None else candidates[index].text,
        "answer": None if index is None else answers[index],
        "score": None if index is None else candidates[index].score,
        "verdict": verdict.status,
        "reason": verdict.reason,
        "seconds": round(verdict.seconds, 6),
        "tokens": outcome.tokens,
        "read_tokens": outcome.read_tokens,
        "num_scored": outcome.num_scored,
        "num_rounds": outcome.num_rounds,
        "candidates": [
            asdict(one) | {"answer": answer} for one, answer in zip(candidates, answers, strict=True)
        ],
    }


def _running(rows: Sequence[Row]) -> dict[str, float]:
    judged = [row for row in rows if row["verdict"] != "unjudged"]
    correct = sum(row["verdict"] == "correct" for row in judged)
    return {
        "correct": correct / len(judged) if judged else float("nan"),
        "tokens": sum(row["tokens"] for row in rows),
    }
