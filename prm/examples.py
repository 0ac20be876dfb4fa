"""Step-labelled solutions -> token ids with labels at their places, for each kind of objective.

examples = label_solutions(tokenizer, solutions, joiner="\\n", supervise="first_error")
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data.errors import UserError
from data.schema import StepSolution
from prm.losses import Supervision, supervision_mask
from prm.model import encode_solutions
from prm.pairs import StepPair

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """Token ids with a label at the last token of each supervised step."""

    input_ids: list[int]
    places: list[int]
    """Index of each supervised step's last token."""
    labels: list[float]
    id: str = ""
    prompt_length: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Two continuations of one prefix, each read at its last token."""

    chosen_ids: list[int]
    rejected_ids: list[int]
    id: str = ""

    def __len__(self) -> int:
        """Tokens of the longer side; a pair takes two rows of it."""
        return max(len(self.chosen_ids), len(self.rejected_ids))


def label_solutions(
    tokenizer: Any,
    solutions: Sequence[StepSolution],
    *,
    joiner: str,
    limit: int | None = None,
    supervise: Supervision = "all",
    overlong: Literal["error", "skip"] = "error",
    cut_unread_tail: bool = True,
) -> list[LabelledSolution]:
    """Return the token ids and supervised places of every solution that has any.

    A supervised step that ends beyond `limit` tokens is a UserError naming it; "skip" leaves it and all after
    it out, keeps the steps before, and counts what was left out in a warning. `cut_unread_tail` drops tokens
    after the last supervised step, which a causal model would compute for nothing.
    """
    names = [solution.id or f"solution {index}" for index, solution in enumerate(solutions)]
    encoded = encode_solutions(
        tokenizer, [s.problem for s in solutions], [s.steps for s in solutions], joiner=joiner, ids=names
    )
    examples = []
    num_skipped = 0
    for solution, tokens in zip(solutions, encoded, strict=True):
        places, labels = [], []
        mask = supervision_mask(
            solution.labels, supervise, kind=solution.label_kind, first_error=solution.first_error
        )
        for step, (end, label, counts) in enumerate(
            zip(tokens.step_ends, solution.labels, mask, strict=True)
        ):
            if not counts:
                continue
            assert end is not None and label is not None  # encoded without a limit
            if limit is not None and end >= limit:
                if overlong == "error":
                    raise UserError(_too_long(tokens.id, step, end, limit))
                num_skipped += 1
                continue
            places.append(end)
            labels.append(float(label))
        if places:
            kept = tokens.input_ids[: places[-1] + 1] if cut_unread_tail else tokens.input_ids[:limit]
            examples.append(LabelledSolution(kept, places, labels, tokens.id, tokens.prompt_length))
    if num_skipped:
        logger.warning("%d labelled steps end beyond %d tokens and are left out", num_skipped, limit)
    if not examples:
        raise UserError("none of the solutions has a labelled step that fits; check labels and max_length")
    return examples


def outcome_solutions(solutions: Sequence[StepSolution]) -> list[StepSolution]:
    """Return the solutions whose final answer was judged, labelled at their last step with the outcome.

    Raises UserError when there is none: `answer_correct` is the only supervision of an implicit PRM.
    """
    judged = []
    for solution in solutions:
        if solution.answer_correct is not None and solution.steps:
            labels = (*[None] * (len(solution.steps) - 1), float(solution.answer_correct))
            judged.append(
                StepSolution(solution.problem, solution.steps, labels, solution.id, solution.source)
            )
    if not judged:
        raise UserError(
            "objective implicit learns from outcomes, and no solution says whether its answer is right; "
            'give rows with "answer_correct": true or false'
        )
    if len(judged) < len(solutions):
        logger.warning("%d solutions without answer_correct are left out", len(solutions) - len(judged))
    return judged


def encode_pairs(
    tokenizer: Any,
    pairs: Sequence[StepPair],
    *,
    joiner: str,
    limit: int | None = None,
    overlong: Literal["error", "skip"] = "error",
) -> list[EncodedPair]:
    """Return the token ids of both sides, cut behind the last step's end, where the reward is read."""
    sides = [
        encode_solutions(
            tokenizer, [p.problem for p in pairs], [(*p.prefix, *side(p)) for p in pairs], joiner=joiner
        )
        for side in (lambda pair: pair.chosen, lambda pair: pair.rejected)
    ]
    encoded, num_skipped = [], 0
    for index, (pair, chosen, rejected) in enumerate(zip(pairs, *sides, strict=True)):
        cut = [side.input_ids[: (side.step_ends[-1] or 0) + 1] for side in (chosen, rejected)]
        longest = max(len(ids) for ids in cut)
        if limit is not None and longest > limit:
            if overlong == "error":
                raise UserError(_too_long(pair.id or f"pair {index}", len(pair.prefix), longest - 1, limit))
            num_skipped += 1
            continue
        encoded.append(EncodedPair(cut[0], cut[1], pair.id))
    if num_skipped:
        logger.warning("%d of %d pairs exceed %d tokens and are left out", num_skipped, len(pairs), limit)
    if not encoded:
        raise UserError("none of the pairs fits; raise max_length")
    return encoded


def _too_long(name: str, step: int, end: int, limit: int) -> str:
    return (
        f"{name}: step {step} ends at token {end + 1}, the limit is {limit}; raise "
        "max_length (within the model's context) or fit.micro_batch_tokens, or set "
        "fit.overlong: skip"
    )
