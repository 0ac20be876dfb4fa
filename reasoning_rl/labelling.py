"""`stepwell label`: a policy's or a file's solutions, labelled step by step by rollouts, to a folder."""

from collections.abc import Callable, Mapping
from typing import Any

from data.errors import UserError
from data.prompts import get_template, render
from data.schema import Sampling
from data.steps import step_texts
from eval.benchmarks import get_benchmark, make_grader, read_benchmark
from eval.sample_files import read_samples
from prm.labelling.completer import Completer
from prm.labelling.judge import JudgeFormat, ask_for_index, read_boxed_index
from prm.labelling.run import Judge, Labelled, label_problems
from prm.labelling.settings import LabelConfig, LabelSettings
from prm.model import load_backbone, load_tokenizer
from reasoning_rl.compose import check_isolation
from reasoning_rl.rollout.hf import HFGenerator
from reasoning_rl.rollout.pool import EngineChoice, open_generator

NO_PART_OF_THE_LABELS = {
    *("output_dir", "max_batch", "allow_unsandboxed"),
    *EngineChoice.model_fields,
    *LabelSettings.model_fields,
}
"""Settings that a resumed run may change, or that are recorded elsewhere."""


def label_benchmark(
    name: str,
    config: LabelConfig,
    *,
    device: Any = "cpu",
    on_progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> tuple[Labelled, int]:
    """Label the steps of a model's, or a file's, solutions; return the labels and the number of problems.

    Raises UserError for programs cut by a splitter that strips the indentation they need.
    """
    benchmark = get_benchmark(name)
    if benchmark.judges == "program":
        if config.splitter not in ("code_block", "code_line"):
            raise UserError(
                f"{name}: answers are programs, whose indentation splitter '{config.splitter}' loses; "
                "set splitter: code_block (a statement with what stands under it) or code_line"
            )
        check_isolation(allow_unsandboxed=config.allow_unsandboxed)
    problems = read_benchmark(
        name,
        source=config.source,
        split=config.split,
        limit=config.limit,
        difficulty=config.difficulty,
        seed=config.seed,
    )
    given = None
    if config.solutions is not None:
        if config.method == "omega_prm":
            raise UserError("omega_prm labels its own rollouts; with solutions set method: binary_search")
        responses = read_samples(config.solutions, problems)
        given = {
            problem: [tuple(step_texts(text, config.splitter)) for text in texts]
            for problem, texts in responses.items()
        }
        problems = [problem for problem in problems if problem.id in given]
    template = config.template or benchmark.template
    tokenizer = load_tokenizer(config.model)
    choice = config if isinstance(config, EngineChoice) else EngineChoice()
    with open_generator(
        choice, path=config.model, tokenizer=tokenizer, device=device, max_batch=config.max_batch
    ) as generator:
        completer = Completer(
            generator,
            make_grader(name, config.grader),
            prompt=lambda text: render(template, text, tokenizer),
            sampling=Sampling(
                max_new_tokens=config.max_new_tokens or benchmark.max_new_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                n=config.k,
                stop=get_template(template).stop,
            ),
            splitter=config.splitter,
        )
        labelled = label_problems(
            problems,
            LabelSettings(**config.model_dump(include=set(LabelSettings.model_fields))),
            completer=completer,
            output_dir=config.output_dir,
            given=given,
            judge=_judge(config, device),
            identity={
                "benchmark": name,
                **config.model_dump(
                    mode="json", exclude={*NO_PART_OF_THE_LABELS, *LabelSettings.model_fields}
                ),
                **choice.identity(),
            },
            on_progress=on_progress,
        )
    return labelled, len(problems)


def _judge(config: LabelConfig, device: Any) -> Judge | None:
    if config.judge is None:
        return None
    model, tokenizer = load_backbone(config.judge).to(device), load_tokenizer(config.judge)

    def ask(problem: str, steps: tuple[str, ...]) -> str:
        text = ask_for_index(problem, steps)
        if not getattr(tokenizer, "chat_template", None):
            return text
        messages = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    return Judge(
        HFGenerator(model, tokenizer, max_batch=config.max_batch),
        Sampling(
            max_new_tokens=config.judge_max_new_tokens,
            temperature=0.0 if config.judge_votes == 1 else 1.0,
            n=config.judge_votes,
        ),
        JudgeFormat(ask, read_boxed_index),
    )
