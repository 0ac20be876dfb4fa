"""Labelling a set of problems from start to file: sampled or given solutions in, step labels and cost out.

The work is cut into batches of problems; a finished batch is one line of progress.jsonl, on disk before the
next one starts. A run that was killed goes on behind its last whole line, to the same labels, because every
batch draws from a random stream of its own.

    label_problems(problems, config, completer=completer, output_dir="runs/label")
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data.errors import UserError
from data.files import append_jsonl, write_atomically
from data.protocols import TextGenerator
from data.schema import Problem, Sampling, StepSolution
from data.step_readers import write_steps
from prm.labelling.completer import Completer, Cost, Prefix, run_searches
from prm.labelling.judge import CRITIC, JudgeFormat, agree, judge_solutions
from prm.labelling.prefixes import (
    LabelKind,
    PrefixValues,
    find_first_error,
    label_every_prefix,
    revive,
    to_labels,
)
from prm.labelling.settings import LabelSettings
from prm.labelling.tree import TreeSettings, grow_tree, right_solutions

Progress = Callable[[int, int, Mapping[str, float]], None]
"""(batches done, batches in all, numbers to show)."""


@dataclass(frozen=True)
class Judge:
    """A judge to agree with."""

    generator: TextGenerator
    sampling: Sampling
    form: JudgeFormat = CRITIC


@dataclass
class Labelled:
    """What became of a set of problems."""

    solutions: list[StepSolution] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a named count."""
        self.counts[name] = self.counts.get(name, 0) + amount


def label_problems(
    problems: Sequence[Problem],
    settings: LabelSettings,
    *,
    completer: Completer,
    output_dir: str | Path,
    given: Mapping[str, Sequence[Prefix]] | None = None,
    judge: Judge | None = None,
    identity: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> Labelled:
    """Label all problems; write labels.jsonl and summary.json to output_dir and return them.

    given: problem id -> solutions to label instead of sampled ones. identity: what a resumed run must have in
    common with the first (models, sources). Raises UserError when output_dir holds a run of other settings,
    or no solution could be labelled.
    """
    folder = Path(output_dir)
    batches = [
        list(problems[start : start + settings.batch_problems])
        for start in range(0, len(problems), settings.batch_problems)
    ]
    about = {
        "settings": settings.model_dump(mode="json"),
        "problems": [p.id for p in problems],
        "problem_texts": _digest([[p.text, p.answer] for p in problems]),
        "given_solutions": None if given is None else _digest([given.get(p.id, ()) for p in problems]),
        **dict(identity or {}),
    }
    _claim(folder, about)
    total = Labelled()
    done = _read_progress(folder / "progress.jsonl")
    if on_progress and not done:
        on_progress(0, len(problems), {})
    for index, batch in enumerate(batches):
        if index < len(done):
            part = _from_row(done[index])
        else:
            part = label_batch(batch, settings, completer, index, given=given, judge=judge)
            append_jsonl(folder / "progress.jsonl", [_to_row(index, part)])
        total.solutions += part.solutions
        total.cost.add(part.cost)
        for name, amount in part.counts.items():
            total.count(name, amount)
        if on_progress:
            finished = min((index + 1) * settings.batch_problems, len(problems))
            on_progress(finished, len(problems), {"solutions": len(total.solutions), **asdict(total.cost)})
    if not total.solutions:
        raise UserError(
            f"no solution of {len(problems)} problems could be labelled ({total.counts}); "
            + _why(total.counts)
        )
    write_steps(folder / "labels.jsonl", total.solutions)
    write_atomically(folder / "summary.json", json.dumps(summarise(total, len(problems)), indent=1) + "\n")
    return total


_REASONS = {
    "all_alike": "the policy answers problems all right or all wrong: more or easier problems, or a higher "
    "temperature",
    "empty_or_unjudged": "solutions are empty or the grader cannot judge their answers: check the answers' "
    "format, template and max_new_tokens",
    "no_first_error": "the grader cannot judge the rollouts: check the answers' format and max_new_tokens",
    "disagreed": "the judge agrees with none of the rollouts: a better judge, or none",
}
"""What most often came in the way, and what helps."""


def _why(counts: Mapping[str, int]) -> str:
    most = max(_REASONS, key=lambda name: counts.get(name, 0))
    return (
        _REASONS[most] if counts.get(most) else "there was nothing to label: check the problems and solutions"
    )


def label_batch(
    problems: Sequence[Problem],
    settings: LabelSettings,
    completer: Completer,
    index: int,
    *,
    given: Mapping[str, Sequence[Prefix]] | None = None,
    judge: Judge | None = None,
) -> Labelled:
    """Return the labels of one batch of problems; `index` names its random stream."""
    completer.cost, completer.calls = Cost(), 0
    # Far enough apart that no two batches of a run share a seed.
    seed = (settings.seed * 100_003 + index) * 10_007
    completer.sampling = replace(completer.sampling, seed=seed)
    out = Labelled(cost=completer.cost)
    if settings.method == "omega_prm":
        found = _grow_trees(problems, settings, completer, out)
    else:
        found = _label_solutions(problems, settings, completer, out, given)
    # A search that cannot say where the first error is leaves no row, but its values are evidence.
    is_known = [values.first_error is not None for _, values in found]
    if settings.labels == "hard":
        found = _revive_each(found)
    found = [item for item, known in zip(found, is_known, strict=True) if known]
    if len(found) < len(is_known):
        out.count("no_first_error", len(is_known) - len(found))
    if judge is not None:
        verdicts = judge_solutions(
            judge.generator,
            [(problem.text, values.steps) for problem, values in found],
            sampling=replace(judge.sampling, seed=seed + 10_006),
            form=judge.form,
            cost=out.cost,
        )
        kept = [item for item, v in zip(found, verdicts, strict=True) if agree(item[1].first_error, v)]
        out.count("disagreed", len(found) - len(kept))
        found = kept
    seen: set[tuple[str, Prefix]] = set()
    for problem, values in found:
        solution = _to_solution(problem, values, settings, is_consensus=judge is not None)
        if settings.method == "omega_prm":
            solution = _label_once(solution, seen)
        if any(label is not None for label in solution.labels):
            out.solutions.append(solution)
    return out


def summarise(labelled: Labelled, num_problems: int) -> dict[str, Any]:
    """Return what summary.json holds: how many labels of which kind, and what each cost."""
    labels = [y for s in labelled.solutions for y in s.labels if y is not None]
    errors = [s for s in labelled.solutions if (s.first_error or 0) >= 0 and s.first_error is not None]
    return {
        "problems": num_problems,
        "solutions": len(labelled.solutions),
        "solutions_with_error": len(errors),
        "labels": len(labels),
        "mean_label": sum(labels) / max(len(labels), 1),
        "counts": labelled.counts,
        "cost": asdict(labelled.cost),
        "rollouts_per_label": labelled.cost.rollouts / max(len(labels), 1),
    }


# --- methods ---------------------------------------------------------------------------------------------


def _grow_trees(
    problems: Sequence[Problem], settings: LabelSettings, completer: Completer, out: Labelled
) -> list[tuple[Problem, PrefixValues]]:
    shape = TreeSettings(
        settings.searches, settings.alpha, settings.beta, settings.length_scale, settings.c_puct
    )
    trees = run_searches(completer, [(problem, grow_tree(shape)) for problem in problems])
    found = []
    for problem, tree in zip(problems, trees, strict=True):
        if not tree.found:
            out.count("all_alike")  # all right or all wrong: nothing to learn from
        found += [(problem, values) for values in tree.found]
        found += [(problem, values) for values in right_solutions(tree, len(tree.found))]
    return found


def _label_solutions(
    problems: Sequence[Problem],
    settings: LabelSettings,
    completer: Completer,
    out: Labelled,
    given: Mapping[str, Sequence[Prefix]] | None,
) -> list[tuple[Problem, PrefixValues]]:
    solutions = []
    if given is None:
        drawn = completer.sample([(problem, ()) for problem in problems], settings.samples_per_problem)
        for problem, row in zip(problems, drawn, strict=True):
            for sample in dict.fromkeys((c.steps, c.is_correct) for c in row):
                solutions.append((problem, *sample))
        out.count("repeated", sum(map(len, drawn)) - len(solutions))
    else:
        for problem in problems:
            solutions += [(problem, s, completer.grade(problem, s)) for s in given.get(problem.id, ())]
    usable = [item for item in solutions if item[1] and item[2] is not None]
    out.count("empty_or_unjudged", len(solutions) - len(usable))
    search = label_every_prefix if settings.method == "monte_carlo" else find_first_error
    found = run_searches(completer, [(problem, search(steps, right)) for problem, steps, right in usable])
    return [(problem, values) for (problem, _, _), values in zip(usable, found, strict=True)]


def _revive_each(found: Sequence[tuple[Problem, PrefixValues]]) -> list[tuple[Problem, PrefixValues]]:
    rows: dict[str, list[int]] = {}
    for index, (problem, _) in enumerate(found):
        rows.setdefault(problem.text, []).append(index)
    result = list(found)
    for indices in rows.values():
        for index, values in zip(indices, revive([found[i][1] for i in indices]), strict=True):
            result[index] = (found[index][0], values)
    return result


_MC_KIND: dict[LabelKind, Literal["mc_hard", "mc_soft"]] = {"hard": "mc_hard", "soft": "mc_soft"}


def _to_solution(
    problem: Problem, values: PrefixValues, settings: LabelSettings, *, is_consensus: bool
) -> StepSolution:
    return StepSolution(
        problem=problem.text,
        steps=values.steps,
        labels=to_labels(values, settings.labels),
        id=problem.id,
        source=problem.source,
        label_kind="consensus" if is_consensus else _MC_KIND[settings.labels],
        first_error=values.first_error,
        answer_correct=values.answer_correct,
        meta={"method": settings.method, "k": settings.k, "evaluations": values.evaluations},
    )


def _label_once(solution: StepSolution, seen: set[tuple[str, Prefix]]) -> StepSolution:
    """Paths of a tree share prefixes: the first path that has one labels it, the others leave it out."""
    labels: list[float | None] = []
    for k, label in enumerate(solution.labels):
        key = (solution.problem, solution.steps[: k + 1])
        labels.append(None if key in seen else label)
        if label is not None:
            seen.add(key)
    return replace(solution, labels=tuple(labels))


# --- progress --------------------------------------------------------------------------------------------


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Make the folder this run's, or check that it is; batches of other settings never mix."""
    path = folder / "run.json"
    text = json.dumps(about, indent=1)
    if not path.exists():
        write_atomically(path, text)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: broken ({error}); delete the folder to start over") from error
    now = json.loads(text)
    if before != now:
        old, new = ({**about, **about.get("settings", {})} for about in (before, now))
        changed = [key for key in new if key != "settings" and old.get(key) != new[key]]
        raise UserError(
            f"{folder}: holds labels made with other {', '.join(changed) or 'settings'}; "
            "restore them to continue that run, or choose another output_dir"
        )


def _read_progress(path: Path) -> list[dict[str, Any]]:
    """The finished batches. A last line that a crash tore is cut off the file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            row = None
        if row is None or row["batch"] != number:
            write_atomically(path, "".join(lines[:number]))
            break
        rows.append(row)
    return rows


def _to_row(index: int, part: Labelled) -> dict[str, Any]:
    return {
        "batch": index,
        "cost": asdict(part.cost),
        "counts": part.counts,
        "solutions": [asdict(solution) for solution in part.solutions],
    }


def _from_row(row: Mapping[str, Any]) -> Labelled:
    solutions = [
        StepSolution(**{**s, "steps": tuple(s["steps"]), "labels": tuple(s["labels"])})
        for s in row["solutions"]
    ]
    return Labelled(solutions, Cost(**row["cost"]), dict(row["counts"]))
