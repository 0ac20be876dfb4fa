"""Evaluate a generator, or samples made elsewhere, on problems; a run killed at any moment goes on later.

    result = evaluate(problems, out_dir="runs/gsm8k", generator=generator, grader=make_grader("gsm8k"),
                      render=lambda text: render("gsm8k_cot", text), sampling=Sampling(n=4, seed=1))

`out_dir` holds three files:

settings.json   what the run was asked for; a resumed run must ask for the same
samples.jsonl   one line a sample: id (of the problem), sample (0-based index), response, verdict (correct,
                wrong or unjudged), reason, seconds (of grading), answer (as extracted, null without one; only
                where `extract` is given), public (does it pass the tests that the problem's statement shows,
                null where that is unknown; only where `passes_public` is given), finish_reason (stop or
                length), num_tokens and generation_seconds (the batch's time, shared out evenly); the last
                three are null for samples made elsewhere
result.json     the numbers of `EvalResult.to_dict`
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import append_jsonl, cut_torn_line, read_jsonl, read_settings, write_atomically
from data.protocols import Grader, TextGenerator
from data.schema import Problem, Sampling
from eval.result import EvalResult, Row, summarise

Progress = Callable[[int, int, Mapping[str, float]], None]
"""(samples done, samples in all, running numbers)."""

SECONDS_UNRECORDED = 0.2
"""How long a verdict may wait to be written: a kill loses at most these, and the sample in flight."""


def evaluate(
    problems: Sequence[Problem],
    *,
    out_dir: str | Path,
    grader: Grader,
    extract: Callable[[str], str | None] | None = None,
    passes_public: Callable[[Problem, str], bool | None] | None = None,
    render: Callable[[str], str] | None = None,
    generator: TextGenerator | None = None,
    samples: Mapping[str, Sequence[str]] | None = None,
    scores: Mapping[str, Sequence[float | None]] | None = None,
    sampling: Sampling | None = None,
    batch_size: int = 64,
    settings: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> EvalResult:
    """Return the numbers, after making up what is missing in out_dir.

    Exactly one of `generator` (with `sampling`, `batch_size` problems at a time, prompts made by `render`:
    else the problem and a newline) and `samples` (problem id -> responses) is given. `extract` finds a
    response's answer, for maj@k; `passes_public` says whether a program passes the tests shown in the
    statement, for n@k; `scores` (problem id -> a reward model's score a sample) are for best@k.
    `settings` is recorded with what else decides the numbers.

    Every batch has a random stream of its own, so an interrupted run ends with the numbers of an
    uninterrupted one. Verdicts are recorded as they come, and a sample on record is never graded again; only
    a batch that was torn in two is generated again, from the same stream, to make up its missing samples.

    Raises UserError when out_dir holds a run with other settings or a broken samples.jsonl.
    """
    assert (generator is None) != (samples is None), "give either generator or samples"
    assert batch_size > 0, batch_size
    assert len({p.id for p in problems}) == len(problems), "problem ids must differ"
    if not problems:
        raise UserError("no problems to evaluate; raise the limit or check the source")
    out_dir = Path(out_dir)
    render = render or (lambda text: text + "\n")
    sampling = sampling or Sampling()
    counts = _count_samples(problems, samples, sampling.n)
    own = _own_settings(problems, samples, scores, render, sampling, batch_size)
    recorded = check_settings(out_dir, {**(settings or {}), "run": own})
    path = out_dir / "samples.jsonl"
    rows = _read_recorded(path, counts)
    total = sum(counts.values())
    path.touch()
    if on_progress:
        on_progress(len(rows), total, _running(rows.values()) if rows else {})
    for index in range(0, len(problems), batch_size):
        batch = [p for p in problems[index : index + batch_size] if counts[p.id]]
        if all((p.id, k) in rows for p in batch for k in range(counts[p.id])):
            continue
        if generator is not None:
            seed = batch_seed(sampling.seed, index // batch_size)
            drawn = _generate(generator, batch, render, replace(sampling, seed=seed))
        else:
            drawn = _given(batch, samples or {}, scores)
        new = _record(
            path,
            (
                _judge(problem, row, grader, extract, passes_public)
                for problem, row in drawn
                if (problem.id, row["sample"]) not in rows
            ),
        )
        rows |= {(row["id"], row["sample"]): row for row in new}
        if on_progress:
            on_progress(len(rows), total, _running(rows.values()))
    ordered = {p.id: [rows[p.id, k] for k in range(counts[p.id])] for p in problems if counts[p.id]}
    result = summarise(ordered, settings=recorded, num_missing=len(problems) - len(ordered))
    write_atomically(out_dir / "result.json", json.dumps(result.to_dict(), indent=1) + "\n")
    return result


def _count_samples(
    problems: Sequence[Problem], samples: Mapping[str, Sequence[str]] | None, n: int
) -> dict[str, int]:
    """Problem id -> samples it is to have."""
    if samples is None:
        return {p.id: n for p in problems}
    counts = {p.id: len(samples.get(p.id, ())) for p in problems}
    if not any(counts.values()):
        raise UserError("samples: none for any of the problems; check that the ids are of this benchmark")
    return counts


def _own_settings(
    problems: Sequence[Problem],
    samples: Mapping[str, Sequence[str]] | None,
    scores: Mapping[str, Sequence[float | None]] | None,
    render: Callable[[str], str],
    sampling: Sampling,
    batch_size: int,
) -> dict[str, Any]:
    """What decides the numbers besides the caller's settings; long texts as digests."""
    own: dict[str, Any] = {"problems": short_digest((p.id, p.text, p.answer) for p in problems)}
    if samples is not None:
        digests = {"samples": short_digest((p.id, *samples.get(p.id, ())) for p in problems)}
        if scores is not None:
            digests["scores"] = short_digest((p.id, *scores.get(p.id, ())) for p in problems)
        return own | digests
    prompts = short_digest(render(p.text) for p in problems)
    return own | {"prompts": prompts, "sampling": asdict(sampling), "batch_size": batch_size}


def check_settings(out_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Record the settings of a new run; for an old one check that they are the same."""
    path = out_dir / "settings.json"
    wanted = json.loads(json.dumps(settings, default=str))  # as it reads back: tuples become lists
    if not path.exists():
        if (out_dir / "samples.jsonl").exists():
            raise UserError(
                f"{out_dir}: has samples.jsonl but no settings.json; choose another output folder"
            )
        write_atomically(path, json.dumps(wanted, indent=1) + "\n")
        return wanted
    stored = read_settings(path, "choose another output folder")
    old, new = dict(_leaves(stored)), dict(_leaves(wanted))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    # What a user set says more than the digests and derived settings it changes.
    differing.sort(key=lambda key: key.startswith("run."))
    if differing:
        key = differing[0]
        raise UserError(
            f"{out_dir}: holds a run with {key} = {json.dumps(old.get(key))}, now "
            f"{json.dumps(new.get(key))}; choose another output folder, set it back, or delete the folder"
        )
    return wanted


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every setting that is no mapping."""
    if not isinstance(values, dict):
        yield prefix, values
        return
    for key, value in values.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else key)


def _read_recorded(path: Path, counts: Mapping[str, int]) -> dict[tuple[str, int], Row]:
    """The samples on record by (id, sample), after cutting off a last line that a crash left torn."""
    if not path.exists():
        return {}
    cut_torn_line(path)
    rows: dict[tuple[str, int], Row] = {}
    for line, row in read_jsonl(path, any_text=True):
        remedy = "remove that line and run again"
        missing = _FIELDS - row.keys()
        if missing:
            raise UserError(f"{path}:{line}: no field '{min(missing)}'; {remedy}")
        key = row["id"], row["sample"]
        if row["verdict"] not in ("correct", "wrong", "unjudged"):
            raise UserError(f"{path}:{line}: unknown verdict {json.dumps(row['verdict'])}; {remedy}")
        if not (isinstance(key[0], str) and isinstance(key[1], int) and 0 <= key[1] < counts.get(key[0], 0)):
            raise UserError(f"{path}:{line}: sample {key[1]} of id '{key[0]}' is not of this run; {remedy}")
        if key in rows:
            raise UserError(f"{path}:{line}: sample {key[1]} of id '{key[0]}' stands twice; {remedy}")
        rows[key] = row
    return rows


_FIELDS = frozenset(
    ("id", "sample", "response", "verdict", "reason", "seconds")
    + ("finish_reason", "num_tokens", "generation_seconds")
)


def _generate(
    generator: TextGenerator, batch: Sequence[Problem], render: Callable[[str], str], sampling: Sampling
) -> list[tuple[Problem, Row]]:
    started = time.perf_counter()
    drawn = generator.generate([render(p.text) for p in batch], sampling)
    seconds = (time.perf_counter() - started) / (len(batch) * sampling.n)
    return [
        (
            problem,
            {
                "id": problem.id,
                "sample": k,
                "response": sample.text,
                "finish_reason": sample.finish_reason,
                "num_tokens": len(sample.token_ids),
                "generation_seconds": round(seconds, 6),
            },
        )
        for problem, group in zip(batch, drawn, strict=True)
        for k, sample in enumerate(group)
    ]


def _given(
    batch: Sequence[Problem],
    samples: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float | None]] | None,
) -> list[tuple[Problem, Row]]:
    unknown = dict.fromkeys(("finish_reason", "num_tokens", "generation_seconds"))

    def score(name: str, k: int) -> dict[str, float | None]:
        return {} if scores is None else {"score": scores[name][k]}

    return [
        (problem, {"id": problem.id, "sample": k, "response": response, **score(problem.id, k), **unknown})
        for problem in batch
        for k, response in enumerate(samples[problem.id])
    ]


def _judge(
    problem: Problem,
    row: Row,
    grader: Grader,
    extract: Callable[[str], str | None] | None,
    passes_public: Callable[[Problem, str], bool | None] | None,
) -> Row:
    verdict = grader(problem, row["response"])
    judged = {"verdict": verdict.status, "reason": verdict.reason, "seconds": round(verdict.seconds, 6)}
    if extract:
        judged["answer"] = extract(row["response"])
    if passes_public:
        judged["public"] = passes_public(problem, row["response"])
    return {**row, **judged}


def _record(path: Path, judged: Iterator[Row]) -> list[Row]:
    """Write rows while they are being judged, every SECONDS_UNRECORDED and where judging breaks off."""
    done: list[Row] = []
    waiting: list[Row] = []
    written_at = time.monotonic()
    try:
        for row in judged:
            waiting.append(row)
            done.append(row)
            if time.monotonic() - written_at >= SECONDS_UNRECORDED:
                batch, waiting = waiting, []  # emptied first: a write that fails is not tried again
                append_jsonl(path, batch)
                written_at = time.monotonic()
    finally:
        if waiting:
            append_jsonl(path, waiting)
    return done


def batch_seed(seed: int | None, batch: int) -> int:
    """A stream per batch: what a batch draws depends on neither the batches before it nor on resumes."""
    digest = hashlib.sha256(f"{seed} {batch}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # 31 bits: every framework takes them


def short_digest(items: Any) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of items that JSON can hold, in their order."""
    text = json.dumps(list(items))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _running(rows: Any) -> dict[str, float]:
    """Numbers for a progress line: accuracy of the judged samples so far, and rates."""
    rows = list(rows)
    verdicts = [row["verdict"] for row in rows]
    seconds = sum(row["generation_seconds"] or 0.0 for row in rows)
    judged = len(verdicts) - verdicts.count("unjudged")
    return {
        "correct": verdicts.count("correct") / judged if judged else float("nan"),
        "unjudged": verdicts.count("unjudged") / len(verdicts),
        **({"tokens/s": sum(row["num_tokens"] or 0 for row in rows) / seconds} if seconds else {}),
    }
