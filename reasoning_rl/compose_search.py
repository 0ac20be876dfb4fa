"""The composition root of `stepwell search`: from its settings to models, benchmark and the search."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.prompts import get_template, render
from eval.answers import extract_answer
from eval.benchmarks import get_benchmark, make_grader, read_benchmark
from eval.search.rules import Models, Rules
from eval.search.run import SearchResult, search
from eval.votes import vote_key
from prm.model import load_tokenizer
from reasoning_rl.compose import check_isolation, load_step_scorer
from reasoning_rl.rollout.pool import EngineChoice, open_generator
from reasoning_rl.search_config import SearchConfig

NO_PART_OF_THE_NUMBERS = {
    *("output_dir", "max_batch", "prm_backend", "allow_unsandboxed"),
    *EngineChoice.model_fields,
}
"""Settings that a resumed search may change, or that are recorded only where they are not the default."""


def search_benchmark(
    name: str,
    config: SearchConfig,
    *,
    device: Any = "cpu",
    on_progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> tuple[SearchResult, Path]:
    """Search on a benchmark; return the numbers and the folder, output_dir/name/METHOD_N.

    Raises UserError before a model is loaded for settings that contradict each other.
    """
    benchmark = get_benchmark(name)
    isolation = None
    if benchmark.judges == "program":
        isolation = check_isolation(allow_unsandboxed=config.allow_unsandboxed)
    given = config.model_dump(include=set(Rules.__dataclass_fields__), exclude_none=True)
    rules = Rules(**({"max_new_tokens": benchmark.max_new_tokens} | given))
    problems = read_benchmark(
        name,
        source=config.source,
        split=config.split,
        limit=config.limit,
        difficulty=config.difficulty,
        seed=config.seed,
    )
    template = config.template or benchmark.template
    stop = get_template(template).stop
    scorer = None
    if config.prm is not None and rules.needs_scores:
        loaded = load_step_scorer(config.prm, config.prm_format, device=device, backend=config.prm_backend)
        if rules.chosen_by == "weighted" and not loaded.format.is_probability:
            raise UserError(
                f"{config.prm}: format '{loaded.format.name}' gives raw scores, which cannot weigh votes; "
                "set --choice best, or take a format with another readout (docs/formats.md)"
            )
        scorer = loaded.scorer
        if config.aggregation is None:
            rules = replace(rules, aggregation=loaded.format.aggregation)
    tokenizer = load_tokenizer(config.model)
    folder = Path(config.output_dir) / name / f"{config.method}_{config.n}"

    def extract(response: str) -> str | None:
        answer = extract_answer(response, benchmark.chain)
        return None if answer is None else vote_key(answer)

    with open_generator(
        config, path=config.model, tokenizer=tokenizer, device=device, max_batch=config.max_batch
    ) as generator:
        result = search(
            problems,
            rules=rules,
            models=Models(
                generator=generator,
                render=lambda text: render(template, text, tokenizer),
                has_ended=lambda sample: sample.token_ids[-1:] == (tokenizer.eos_token_id,),
                scorer=scorer,
                stop=stop,
            ),
            grader=make_grader(name, config.grader),
            extract=extract,
            out_dir=folder,
            seed=config.seed,
            batch_size=config.batch_size,
            settings={
                "benchmark": name,
                **config.model_dump(mode="json", exclude=NO_PART_OF_THE_NUMBERS),
                **config.identity(),
                **({"isolation": isolation} if isolation else {}),
                **({} if config.prm_backend == "local" else {"prm_backend": config.prm_backend}),
            },
            on_progress=on_progress,
        )
    return result, folder
