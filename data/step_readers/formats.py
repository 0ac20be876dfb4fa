"""The table of step-label formats: a new one is a function (row -> records) and one entry here."""

from typing import Any

from data.errors import UserError
from data.sources import Row
from data.step_readers.chat import read_rlhflow
from data.step_readers.first_error import (
    read_bigbench_mistake,
    read_mr_gsm8k,
    read_processbench,
    read_reasoneval_invalid,
)
from data.step_readers.own import read_stepwell, read_trl
from data.step_readers.planted import (
    read_prmbench,
    read_reasoneval_perturbation,
    read_reasoneval_redundant,
)
from data.step_readers.prefixes import read_math_aps, read_math_aps_tree, read_r_prm
from data.step_readers.prm800k import read_prm800k, read_prm800k_flat
from data.step_readers.reading import Format
from data.step_readers.tagged import read_er_prm, read_math_shepherd, read_openrlhf

_META_REASONING = ("model_output_solution_correctness", "model_output_solution_first_error_step")

FORMATS: dict[str, Format] = {
    "stepwell": Format(("problem", "steps", "labels"), read_stepwell, "labels in [0, 1], null = unrated"),
    "trl": Format(("prompt", "completions", "labels"), read_trl, "true/false a step"),
    "prm800k": Format(
        ("question.problem", "label.steps"), read_prm800k, "human -1/0/1 a candidate, null = unrated"
    ),
    "prm800k_flat": Format(
        ("instruction", "responses", "next_response", "rating"),
        read_prm800k_flat,
        "human -1/0/1 of the last step, null = unrated",
    ),
    "math_shepherd": Format(("input", "label"), read_math_shepherd, "hard Monte Carlo, + or - a tag"),
    "openrlhf": Format(("input", "value"), read_openrlhf, "hard (+/-) or soft Monte Carlo a tag"),
    "er_prm": Format(("text", "value"), read_er_prm, "soft values a tag"),
    "rlhflow": Format(("conversations",), read_rlhflow, "hard Monte Carlo, + or - a turn"),
    "processbench": Format(
        ("problem", "steps", "label", "final_answer_correct"),
        read_processbench,
        "human, first error from 0, -1 = none",
    ),
    "prmbench": Format(
        ("modified_question", "modified_process", "error_steps", "classification", "idx"),
        read_prmbench,
        "planted errors, steps from 1",
    ),
    "mr_gsm8k": Format(
        ("question", "model_output_steps", *_META_REASONING),
        read_mr_gsm8k,
        'human, first error from 1, "N/A" = none',
    ),
    "bigbench_mistake": Format(
        ("input", "steps", "target", "answer", "mistake_index"),
        read_bigbench_mistake,
        "human, first error from 0, null = none",
    ),
    "reasoneval_invalid": Format(
        ("question", "model_output_step_format", *_META_REASONING),
        read_reasoneval_invalid,
        'human, first error from 1, "N/A" = none',
    ),
    "reasoneval_redundant": Format(
        ("question", "model_output_step_format", "rating"),
        read_reasoneval_redundant,
        "human 1/0 a step, 0 = neutral",
    ),
    "reasoneval_perturbation": Format(
        ("question", "hypothesis_steps", "error_type", "tags"),
        read_reasoneval_perturbation,
        "planted errors, steps from 0",
    ),
    "math_aps": Format(
        ("question", "reasoning_steps"), read_math_aps, "soft Monte Carlo of prefixes with the question"
    ),
    "math_aps_tree": Format(
        ("question", "reasoning_steps.text", "reasoning_steps.children"),
        read_math_aps_tree,
        "soft Monte Carlo of a tree's nodes",
    ),
    "r_prm": Format(
        ("question", "previous_steps", "now_step", "label"), read_r_prm, "0/1 of the last step only"
    ),
}


def detect_format(row: Row) -> str:
    """Return the name of the format whose needed fields a row has, the one with most where several fit.

    Raises UserError listing the known formats with their fields.
    """
    fitting = [
        name for name, known in FORMATS.items() if all(_has(row.values, part) for part in known.fields)
    ]
    if fitting:
        return max(fitting, key=lambda name: len(FORMATS[name].fields))
    known = "; ".join(f"{name}: {', '.join(known.fields)}" for name, known in FORMATS.items())
    raise UserError(
        f"{row.where}: the fields {', '.join(row.values) or '(none)'} fit no known step format\n"
        f"known: {known}"
    )


def _has(values: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True
