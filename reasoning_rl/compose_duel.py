"""`stepwell duel A B`: responses of two policies to the same prompts, compared, with intervals.

settings.json   what the duel was asked for; a resumed one must ask for the same
duel.jsonl      one line a problem: id, prompt, first, second (the responses), verdict (of the first policy)
result.json     the numbers
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import read_jsonl, write_atomically
from data.prompts import describe_template, get_template, render
from data.protocols import TextGenerator
from data.schema import Problem, Sampling
from eval.benchmarks import get_benchmark, make_grader, read_benchmark
from eval.metrics import sign_test, wilson_interval
from eval.run import batch_seed, check_settings, short_digest
from prm.model import load_backbone, load_tokenizer
from reasoning_rl.compose import check_isolation
from reasoning_rl.duel import DuelConfig, Referee, by_answer, by_judge, by_reward
from reasoning_rl.preference_examples import chat_renderer
from reasoning_rl.reward_model import load_response_scorer
from reasoning_rl.rollout.hf import HFGenerator

BATCH = 64
"""Problems between two writes to disk."""


def run_duel(
    first: str,
    second: str,
    config: DuelConfig,
    *,
    device: Any = "cpu",
    on_progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Return the numbers of a duel between two policies (folders or hub ids), first against second."""
    name = config.problems_format or config.problems
    benchmark = get_benchmark(name)
    if benchmark.judges == "program" and config.reward_model is None and config.judge is None:
        check_isolation(allow_unsandboxed=config.allow_unsandboxed)
    source = config.problems if config.problems_format else None
    problems = read_benchmark(name, source=source, split=config.split, limit=config.limit, seed=config.seed)
    template = config.template or benchmark.template
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens or benchmark.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        stop=get_template(template).stop,
    )

    def policy(path: str) -> Callable[[Sequence[Problem], int], list[tuple[str, str]]]:
        tokenizer = load_tokenizer(path)
        generator = HFGenerator(load_backbone(path).to(device), tokenizer, max_batch=config.max_batch)
        return lambda batch, seed: respond(
            generator, [render(template, p.text, tokenizer) for p in batch], sampling, seed
        )

    policies = [policy(path) for path in (first, second)]
    settings = {
        "first": first,
        "second": second,
        **config.model_dump(mode="json", exclude={"output_dir", "max_batch", "allow_unsandboxed"}),
        "prompt": describe_template(template),
        "problem_ids": short_digest([p.id for p in problems]),
    }
    rows = play(
        problems,
        policies,
        _referee(name, config, device),
        Path(config.output_dir),
        settings=settings,
        seed=config.seed,
        on_progress=on_progress,
    )
    result = summarise([row["verdict"] for row in rows])
    write_atomically(Path(config.output_dir) / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def respond(
    generator: TextGenerator, prompts: Sequence[str], sampling: Sampling, seed: int
) -> list[tuple[str, str]]:
    """Return (prompt, response) pairs; the random stream depends on the batch's seed alone."""
    drawn = generator.generate(prompts, replace(sampling, seed=seed))
    return [(prompt, group[0].text) for prompt, group in zip(prompts, drawn, strict=True)]


def play(
    problems: Sequence[Problem],
    policies: Sequence[Callable[[Sequence[Problem], int], list[tuple[str, str]]]],
    referee: Referee,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    seed: int = 0,
    on_progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> list[dict[str, Any]]:
    """Return one row a problem, after making up what is missing in folder/duel.jsonl."""
    check_settings(folder, settings)
    path = folder / "duel.jsonl"
    done = {row["id"]: row for row in _whole_rows(path)}
    if on_progress:
        on_progress(len(done), len(problems), {})
    for start in range(0, len(problems), BATCH):
        batch = problems[start : start + BATCH]
        if all(problem.id in done for problem in batch):
            continue
        sides = [policy(batch, batch_seed(seed, start // BATCH) or 0) for policy in policies]
        prompts, first = [p for p, _ in sides[0]], [text for _, text in sides[0]]
        second = [text for _, text in sides[1]]
        verdicts = referee(batch, prompts, first, second)
        rows = [
            {"id": p.id, "prompt": prompt, "first": a, "second": b, "verdict": verdict}
            for p, prompt, a, b, verdict in zip(batch, prompts, first, second, verdicts, strict=True)
        ]
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows if row["id"] not in done))
            file.flush()
            os.fsync(file.fileno())
        done |= {row["id"]: row for row in rows}
        if on_progress:
            counts = Counter(row["verdict"] for row in done.values())
            on_progress(len(done), len(problems), {k: counts[k] / len(done) for k in ("win", "tie", "lose")})
    return [done[problem.id] for problem in problems]


def summarise(verdicts: Sequence[str]) -> dict[str, Any]:
    """Return win, tie and lose of the first policy, each a share of the judged with Wilson's 95 % interval.

    win_rate: wins among the pairs that were decided, and p: McNemar's exact test of wins against losses. What
    is a share of nothing is None.
    """
    counts = Counter(verdicts)
    judged = len(verdicts) - counts["unjudged"]
    result: dict[str, Any] = {"judged": judged, "unjudged": counts["unjudged"]}
    for name in ("win", "tie", "lose"):
        result[name] = _share(counts[name], judged)
    result["win_rate"] = _share(counts["win"], counts["win"] + counts["lose"])
    result["p"] = sign_test(counts["win"], counts["lose"])
    return result


def _share(count: int, total: int) -> dict[str, float | None]:
    low, high = wilson_interval(count, total) if total else (None, None)
    return {
        "count": count,
        "of": total,
        "value": count / total if total else None,
        "low": low,
        "high": high,
    }


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows on record; a last line that a crash tore is dropped from the file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        write_atomically(path, text[: text.rfind("\n") + 1])
    return [row for _, row in read_jsonl(path, any_text=True)]


def _referee(name: str, config: DuelConfig, device: Any) -> Referee:
    if config.reward_model is not None:
        return by_reward(load_response_scorer(config.reward_model, device=device), config.tie_margin)
    if config.judge is None and name == "prompts":
        raise UserError("prompts without an answer need a judge: give --reward-model or --judge")
    if config.judge is None:
        return by_answer(make_grader(name))
    tokenizer = load_tokenizer(config.judge)
    chat = bool(getattr(tokenizer, "chat_template", None))

    def ask(text: str) -> str:
        return chat_renderer(tokenizer)([{"role": "user", "content": text}]) if chat else text + "\n"

    generator = HFGenerator(load_backbone(config.judge).to(device), tokenizer, max_batch=config.max_batch)
    return by_judge(generator, Sampling(max_new_tokens=config.judge_max_new_tokens, temperature=0.0), ask)
