"""What an evaluation found: accuracies with intervals from the judged samples, as a table or as JSON.

result = summarise(rows_by_problem, settings={})
for label, value in result.rows(): ...
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from eval.benchmarks import NO_ANSWER
from eval.metrics import (
    best_index,
    bootstrap_interval,
    majority_index,
    pass_at_k,
    weighted_vote_index,
    wilson_interval,
)
from eval.submissions import expected_n_at_k
from eval.votes import vote_key

SUBMISSIONS = (1, 10)
"""Programs handed in of those that pass the public tests: AlphaCode reports 10@k."""
Row = dict[str, Any]
"""One line of samples.jsonl: see eval.run."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its 95% interval; NaN where no problem has what it needs."""

    value: float
    low: float
    high: float
    num_problems: int
    """Problems it is a mean over."""


@dataclass(frozen=True, slots=True)
class EvalResult:
    """What an evaluation found. Unjudged samples are left out of every accuracy and counted beside it."""

    settings: Mapping[str, Any]
    num_problems: int
    """Problems with at least one sample."""
    num_missing: int
    """Problems without any sample: in no other number."""
    num_samples: int
    accuracy: Estimate
    """pass@1: mean over problems of the share of correct among the judged samples."""
    pass_at: Mapping[int, Estimate]
    """k -> pass@k, unbiased, over the problems with at least k judged samples."""
    maj_at: Mapping[int, Estimate]
    """k -> is the majority answer of the first k samples correct; empty unless answers were extracted.
    Spellings of one answer vote together (eval.votes)."""
    best_at: Mapping[int, Estimate]
    """k -> is the highest scored of the first k samples correct; empty unless all samples have scores."""
    weighted_at: Mapping[int, Estimate]
    """k -> is the answer with the highest sum of scores correct; empty unless scores are in [0, 1]."""
    submitted_at: Mapping[tuple[int, int], Estimate]
    """(n, k) -> n@k: is one correct of n programs handed in, of those among k that pass the public tests;
    over the problems that have any. Empty where no problem has."""
    unjudged_rate: float
    no_answer_rate: float
    truncated_rate: float | None
    """Share of samples cut off by the length limit; None for samples made elsewhere."""
    tokens: int
    """Generated tokens; 0 for samples made elsewhere."""
    generation_seconds: float
    grading_seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens a second of generation; None where nothing was generated."""
        return self.tokens / self.generation_seconds if self.generation_seconds > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return what result.json holds; all times stand under "timing", NaN is None."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("generation_seconds", "grading_seconds"):
            del own[name]
        own["settings"] = dict(self.settings)
        own["accuracy"] = _finite(asdict(self.accuracy))
        for name in ("pass_at", "maj_at", "best_at", "weighted_at"):
            own[name] = {str(k): _finite(asdict(e)) for k, e in own[name].items()}
        own["submitted_at"] = {f"{n}@{k}": _finite(asdict(e)) for (n, k), e in self.submitted_at.items()}
        own["timing"] = {
            "generation_seconds": round(self.generation_seconds, 3),
            "grading_seconds": round(self.grading_seconds, 3),
            "tokens_per_second": self.tokens_per_second and round(self.tokens_per_second, 1),
        }
        own["versions"] = versions()
        return own

    def rows(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs for a printed table."""
        total = self.num_problems + self.num_missing
        rows = [("pass@1", _shown(self.accuracy, total))]
        rows += [(f"pass@{k}", _shown(e, total)) for k, e in self.pass_at.items() if k > 1]
        rows += [(f"maj@{k}", _shown(e, total)) for k, e in self.maj_at.items() if k > 1]
        rows += [(f"best-of-{k} by score", _shown(e, total)) for k, e in self.best_at.items() if k > 1]
        rows += [(f"weighted vote of {k}", _shown(e, total)) for k, e in self.weighted_at.items() if k > 1]
        rows += [
            (f"{n}@{k} by public tests, {e.num_problems} problems", _shown(e))
            for (n, k), e in self.submitted_at.items()
        ]
        rows.append(("problems", str(self.num_problems)))
        if self.num_missing:
            rows.append(("problems without samples (left out)", str(self.num_missing)))
        rows.append(("samples", str(self.num_samples)))
        rows.append(("unjudged (left out)", f"{self.unjudged_rate:.1%}"))
        rows.append(("no answer", f"{self.no_answer_rate:.1%}"))
        if self.truncated_rate is not None:
            rows.append(("cut off by length", f"{self.truncated_rate:.1%}"))
        if self.tokens_per_second is not None:
            rows.append(("tokens", f"{self.tokens:,} at {self.tokens_per_second:,.0f}/s"))
        rows.append(("grading", f"{self.grading_seconds:.1f} s"))
        if "isolation" in self.settings:
            rows.append(("isolation of programs", str(self.settings["isolation"])))
        return rows


def versions() -> dict[str, str]:
    """Return the versions of what decides a number: ours, the parser's behind the grader, the model's."""
    packages = ("stepwell", "sympy", "math-verify", "mpmath", "torch", "transformers")
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def summarise(
    rows: Mapping[str, Sequence[Row]], *, settings: Mapping[str, Any], num_missing: int = 0
) -> EvalResult:
    """Return the numbers of samples.jsonl rows, given as problem id -> its rows in the order of samples."""
    flat = [row for group in rows.values() for row in group]
    judged = [[r for r in group if r["verdict"] != "unjudged"] for group in rows.values()]
    most = max(map(len, rows.values()))
    ks = sorted({2**i for i in range(most.bit_length())} | {most})
    has_answers = all("answer" in row for row in flat)
    has_scores = all(row.get("score") is not None for row in flat)
    has_weights = has_scores and all(0 <= row["score"] <= 1 for row in flat)
    groups = list(rows.values())
    voting = [[row | {"answer": _vote(row)} for row in group] for group in groups] if has_answers else []
    ends = [row["finish_reason"] for row in flat if row["finish_reason"] is not None]

    def share(count: int) -> float:
        return count / len(flat)

    return EvalResult(
        settings=settings,
        num_problems=len(rows),
        num_missing=num_missing,
        num_samples=len(flat),
        accuracy=_estimate([sum(map(_is_correct, g)) / len(g) for g in judged if g]),
        pass_at={
            k: _estimate([pass_at_k(len(g), sum(map(_is_correct, g)), k) for g in judged if len(g) >= k])
            for k in ks
        },
        maj_at={k: _chosen(voting, k, _majority) for k in ks} if has_answers else {},
        best_at={k: _chosen(groups, k, _best) for k in ks} if has_scores else {},
        weighted_at={k: _chosen(voting, k, _weighted) for k in ks} if has_answers and has_weights else {},
        submitted_at={(n, k): _submitted(judged, n, k) for k in ks for n in SUBMISSIONS if n < k}
        if any(row.get("public") is not None for row in flat)
        else {},
        unjudged_rate=share(sum(r["verdict"] == "unjudged" for r in flat)),
        no_answer_rate=share(sum(r["reason"] == NO_ANSWER for r in flat)),
        truncated_rate=ends.count("length") / len(ends) if ends else None,
        tokens=sum(r["num_tokens"] or 0 for r in flat),
        generation_seconds=sum(r["generation_seconds"] or 0.0 for r in flat),
        grading_seconds=sum(r["seconds"] for r in flat),
    )


def _is_correct(row: Row) -> bool:
    return row["verdict"] == "correct"


def _chosen(
    groups: Sequence[Sequence[Row]], k: int, choose: Callable[[Sequence[Row]], int | None]
) -> Estimate:
    """Is the sample that `choose` takes from the first k correct; None is wrong.

    A problem whose chosen sample could not be judged is left out like any unjudged sample.
    """
    values = []
    for group in groups:
        if len(group) < k:
            continue
        index = choose(group[:k])
        if index is None or group[index]["verdict"] != "unjudged":
            values.append(float(index is not None and _is_correct(group[index])))
    return _estimate(values)


def _submitted(judged: Sequence[Sequence[Row]], n: int, k: int) -> Estimate:
    """n@k of the problems with public tests and k samples judged by them and by the hidden ones."""
    values = []
    for group in judged:
        known = [row for row in group if row.get("public") is not None]
        if len(known) >= k:
            public = [row for row in known if row["public"]]
            values.append(expected_n_at_k(len(known), len(public), sum(map(_is_correct, public)), n, k))
    return _estimate(values)


def _vote(row: Row) -> str | None:
    return None if row["answer"] is None else vote_key(row["answer"])


def _majority(group: Sequence[Row]) -> int | None:
    return majority_index([row["answer"] for row in group])


def _best(group: Sequence[Row]) -> int:
    return best_index([row["score"] for row in group])


def _weighted(group: Sequence[Row]) -> int | None:
    return weighted_vote_index([row["answer"] for row in group], [row["score"] for row in group])


def _estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval: Wilson's where every problem is right or wrong, else the bootstrap over problems."""
    if not values:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    mean = sum(values) / len(values)
    if all(value in (0.0, 1.0) for value in values):
        return Estimate(mean, *wilson_interval(int(sum(values)), len(values)), len(values))
    return Estimate(mean, *bootstrap_interval(values), len(values))


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in values.items()}


def _shown(estimate: Estimate, total: int = 0) -> str:
    """The estimate, and of how many of `total` problems it is where it is not of all."""
    if not estimate.num_problems:
        return "none judged"
    interval = f"95% {estimate.low:.1%} to {estimate.high:.1%}"
    if estimate.low != estimate.low:
        interval = "no interval of one problem"
    part = f", over {estimate.num_problems} of {total} problems" if estimate.num_problems < total else ""
    return f"{estimate.value:.1%}  ({interval}){part}"
