"""Two evaluations of the same problems, problem by problem.

    comparison = compare_runs("outputs/a/gsm8k", "outputs/b/gsm8k")
    comparison.difference, comparison.interval, comparison.flipped

Only problems that both runs have judged samples of are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import read_jsonl, read_settings
from eval.metrics import paired_interval, sign_test

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracies are pass@1: the mean over problems of the share of correct samples."""

    first: float
    second: float
    interval: tuple[float, float]
    """95%, of the difference second - first."""
    p_value: float
    """Of McNemar's exact test on the problems that are better in one run."""
    num_problems: int
    num_left_out: int
    """Problems in one run only, or without a judged sample in one."""
    flipped: Mapping[str, tuple[float, float]]
    """Problem id -> share of correct samples in both, where they differ; what was lost first."""
    differing_settings: Mapping[str, tuple[Any, Any]]

    @property
    def difference(self) -> float:
        """The second's accuracy less the first's, in [-1, 1]."""
        return self.second - self.first

    def rows(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs for a printed table."""
        low, high = self.interval
        interval = f"95% {100 * low:+.1f} to {100 * high:+.1f}"
        if self.num_problems < 2:
            interval = "no interval of one problem"
        lost = sum(a > b for a, b in self.flipped.values())
        rows = [
            ("first, pass@1", f"{self.first:.1%}"),
            ("second, pass@1", f"{self.second:.1%}"),
            (
                "difference",
                f"{100 * self.difference:+.1f} points  ({interval})",
            ),
            ("gained / lost", f"{len(self.flipped) - lost} / {lost} of {self.num_problems} problems"),
            ("p (McNemar)", f"{self.p_value:.3g}"),
        ]
        if self.num_left_out:
            rows.append(("problems left out", str(self.num_left_out)))
        rows += [(f"setting {key}", f"{a} -> {b}") for key, (a, b) in self.differing_settings.items()]
        return rows


def compare_runs(first: str | Path, second: str | Path) -> Comparison:
    """Return the paired comparison of two output folders of an evaluation.

    Raises UserError for a folder that holds none, and for runs of different benchmarks or problems.
    """
    folders = Path(first), Path(second)
    remedy = "give the output folder of `stepwell eval`, which holds settings.json and samples.jsonl"
    settings = [read_settings(folder / "settings.json", remedy) for folder in folders]
    names = [s.get("benchmark") for s in settings]
    if names[0] != names[1]:
        raise UserError(
            f"{folders[0]} is a run of '{names[0]}' and {folders[1]} one of '{names[1]}'; "
            "compare runs of one benchmark"
        )
    for key in ("difficulty", "split"):  # ids are numbered in each anew
        asked = [s.get(key) for s in settings]
        if asked[0] != asked[1]:
            raise UserError(
                f"{folders[0]} has {key} {asked[0]} and {folders[1]} has {asked[1]}: other problems; "
                "compare runs of the same"
            )
    shares = [_shares(folder / "samples.jsonl") for folder in folders]
    both = [key for key in shares[0] if key in shares[1]]
    if not both:
        raise UserError(
            f"{folders[0]} and {folders[1]} have no judged problem in common; compare runs of one split"
        )
    a, b = ([share[key] for key in both] for share in shares)
    flipped = {key: (x, y) for key, x, y in zip(both, a, b, strict=True) if x != y}
    ups = sum(y > x for x, y in flipped.values())
    return Comparison(
        first=sum(a) / len(a),
        second=sum(b) / len(b),
        interval=paired_interval(a, b),
        p_value=sign_test(ups, len(flipped) - ups),
        num_problems=len(both),
        num_left_out=len(shares[0].keys() | shares[1].keys()) - len(both),
        flipped=dict(sorted(flipped.items(), key=lambda item: item[1][1] - item[1][0])),
        differing_settings=_differing(*settings),
    )


def _shares(path: Path) -> dict[str, float]:
    """Problem id -> share of correct among the judged samples."""
    verdicts: dict[str, list[str]] = {}
    for line, row in read_jsonl(path):
        if not isinstance(row.get("id"), str) or row.get("verdict") not in ("correct", "wrong", "unjudged"):
            raise UserError(f"{path}:{line}: no id and verdict; run the evaluation again")
        if row["verdict"] != "unjudged":
            verdicts.setdefault(row["id"], []).append(row["verdict"])
    return {key: found.count("correct") / len(found) for key, found in verdicts.items()}


def _differing(first: Row, second: Row) -> dict[str, tuple[Any, Any]]:
    """The settings a user gave that differ; digests of texts say nothing to read."""
    keys: Sequence[str] = sorted((first.keys() | second.keys()) - {"run", "prompt"})
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}
