"""Problem and steps -> token ids and the index at which each step's score is read, for any PRMFormat.

Places are found by character span (or by piece), never by searching for the separator's id: a problem or step
that contains the separator shifts nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import UserError
from data.steps import step_end_tokens
from prm.formats.spec import PRMFormat
from prm.model import char_ends

_MARK = "\ue000\ue001"
"""Stands where a chat template is to be filled later; private-use characters, dropped from all input."""
_OWN_NUMBER = re.compile(r"\s*(?:#+\s*)?(?:\*\*)?Step \d+\s*[:.](?:\*\*)?\s*")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One solution as token ids, cut after the last place that is read."""

    input_ids: list[int]
    step_ends: list[int | None]
    """Index at which each step is read; None beyond max_length."""
    start: int = 0
    """Index of the first token after the prompt."""
    separators: tuple[int, ...] = ()
    """Indices of the separators' tokens."""

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    is_mark: bool = False
    """Whether it is a separator or verdict."""
    step: int | None = None
    """The step that a mark belongs to; None for the mark behind the prompt."""


def encode_all(
    tokenizer: Any,
    spec: PRMFormat,
    problems: Sequence[str],
    solutions: Sequence[Sequence[str]],
    *,
    max_length: int | None = None,
) -> list[Encoded]:
    """Return every solution's ids and places. Raises UserError when the format needs what is not there."""
    pieces = [
        lay_out(tokenizer, spec, problem, steps) for problem, steps in zip(problems, solutions, strict=True)
    ]
    counts = [len(steps) for steps in solutions]
    encode = _encode_separate if spec.tokenise == "separate" else _encode_joint
    return [
        _cut(*row, count, spec.read_offset, max_length)
        for row, count in zip(encode(tokenizer, spec, pieces), counts, strict=True)
    ]


def lay_out(tokenizer: Any, spec: PRMFormat, problem: str, steps: Sequence[str]) -> list[_Piece]:
    """Return the pieces whose texts joined are what the model is given."""
    problem = _clean(problem, spec.replace_in_problem, spec.strip)
    texts = [step_text(spec, k, step) for k, step in enumerate(steps)]
    prompt = spec.prompt.replace("{problem}", problem)
    if spec.layout == "turns":
        return _lay_out_turns(tokenizer, spec, prompt, texts)
    separator = spec.separator
    if "{pad}" in separator:
        if tokenizer.pad_token is None:
            raise UserError(
                f"format '{spec.name}' marks steps with the padding token; the tokenizer has none"
            )
        separator = separator.replace("{pad}", tokenizer.pad_token)
    body = [_Piece("", is_mark=False)]
    for k, text in enumerate(texts):
        body += [_Piece(spec.between if k else ""), _Piece(text), _Piece(separator, True, k)]
    if spec.separator_removed:
        body.insert(0, _Piece(separator, True))
    if spec.layout == "plain":
        return [_Piece(prompt), *body]
    messages = [{"role": "system", "content": spec.system}] if spec.system is not None else []
    messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": _MARK}]
    before, mark, after = render_chat(tokenizer, messages, spec.name).rpartition(_MARK)
    if not mark:
        raise UserError(f"format '{spec.name}': the tokenizer's chat template drops the assistant's message")
    return [_Piece(before), *body, _Piece(after)]


def _lay_out_turns(
    tokenizer: Any,
    spec: PRMFormat,
    prompt: str,
    texts: Sequence[str],
) -> list[_Piece]:
    messages = [{"role": "system", "content": spec.system}] if spec.system is not None else []
    for k, text in enumerate(texts):
        messages.append({"role": "user", "content": text if k else prompt + text})
        messages.append({"role": "assistant", "content": _MARK})
    if not texts:
        return [_Piece(prompt)]
    parts = render_chat(tokenizer, messages, spec.name).split(_MARK)
    if len(parts) != len(texts) + 1:
        raise UserError(f"format '{spec.name}': the tokenizer's chat template does not keep every turn")
    pieces = [_Piece(parts[0])]
    for k, part in enumerate(parts[1:]):
        pieces += [_Piece(spec.good, True, k), _Piece(part)]
    return pieces


def render_chat(
    tokenizer: Any, messages: list[dict[str, str]], name: str, *, add_generation_prompt: bool = False
) -> str:
    """Return the messages under the tokenizer's chat template. Raises UserError when it has none."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"format '{name}' is a chat, but the tokenizer has no chat template; set chat_template"
        )
    return tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )


def step_text(spec: PRMFormat, k: int, step: str) -> str:
    """Return step k (from 0) as the format writes it."""
    step = _clean(step, spec.replace_in_steps, spec.strip)
    if "{i}" in spec.step:
        step = _OWN_NUMBER.sub("", step, count=1) if _OWN_NUMBER.match(step) else step
    return spec.step.replace("{i}", str(k + 1)).replace("{step}", step)


def _clean(text: str, replacements: dict[str, str], strip: bool) -> str:
    text = text.replace(_MARK, "")
    if strip:
        text = text.strip()
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


_Row = tuple[list[int], dict[int, int], int, list[int]]
"""Token ids; step -> index where it is read; first token after the prompt; separators' indices."""


def _encode_joint(tokenizer: Any, spec: PRMFormat, rows: Sequence[list[_Piece]]) -> list[_Row]:
    """Tokenise each text at once and find the places through the tokens' character offsets."""
    texts = ["".join(piece.text for piece in pieces) for pieces in rows]
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=spec.bos and spec.layout == "plain",
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    out = []
    for pieces, text, ids, offsets in zip(
        rows, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        ends = char_ends(offsets, len(text))
        spans = _mark_spans(pieces)
        wanted = [_read_span(spec, start, end) for _, start, end in spans]
        places = step_end_tokens(wanted, ends)
        last = step_end_tokens([(start, end) for _, start, end in spans], ends)
        first_of = step_end_tokens([(start, start + 1) for _, start, _ in spans], ends)
        marks = sorted(
            {
                index
                for low, high in zip(first_of, last, strict=True)
                if low is not None and high is not None
                for index in range(low, high + 1)
            }
        )
        (start,) = step_end_tokens([(0, len(pieces[0].text))], ends)
        start = 0 if start is None else start + 1
        reads = {
            step: place
            for (step, _, _), place in zip(spans, places, strict=True)
            if step is not None and place is not None
        }
        if spec.separator_removed:
            ids, reads, start = _without(ids, marks, reads, start)
            marks = []
        out.append((list(ids), reads, start, marks))
    return out


def _mark_spans(pieces: Sequence[_Piece]) -> list[tuple[int | None, int, int]]:
    """(step, first character, end) of every mark in the joined text."""
    spans, at = [], 0
    for piece in pieces:
        if piece.is_mark:
            spans.append((piece.step, at, at + len(piece.text)))
        at += len(piece.text)
    return spans


def _read_span(spec: PRMFormat, start: int, end: int) -> tuple[int, int]:
    """A span whose last character lies in the token to be read."""
    if spec.layout == "turns" or spec.read == "before":
        return 0, start
    return (start, start + 1) if spec.read == "separator_start" else (start, end)


def _without(
    ids: Sequence[int], removed: Sequence[int], reads: dict[int, int], start: int
) -> tuple[list[int], dict[int, int], int]:
    """The same ids, places and start once the tokens at `removed` are gone."""
    gone = set(removed)
    kept = [token for index, token in enumerate(ids) if index not in gone]
    # An empty step ends on a separator: it is read at the last token that stays before it.
    places = {step: place - sum(r <= place for r in removed) for step, place in reads.items()}
    return kept, places, start - sum(r < start for r in removed)


def _encode_separate(tokenizer: Any, spec: PRMFormat, rows: Sequence[list[_Piece]]) -> list[_Row]:
    """Tokenise prompt, steps and separators each for itself, then concatenate ids."""
    texts = sorted({piece.text for pieces in rows for piece in pieces if piece.text})
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    ids_of = dict(zip(texts, encoded, strict=True)) | {"": []}
    bos = tokenizer.bos_token_id if spec.bos else None
    out = []
    for pieces in rows:
        ids = [] if bos is None else [bos]
        reads: dict[int, int] = {}
        marks: list[int] = []
        start = None
        for piece in pieces:
            first = len(ids)
            ids = ids + ids_of[piece.text]
            start = len(ids) if start is None else start
            if piece.is_mark and piece.step is not None:
                if len(ids) == first:
                    raise UserError(
                        f"format '{spec.name}': the tokenizer makes no token of separator {piece.text!r}"
                    )
                marks += range(first, len(ids))
                reads[piece.step] = first if spec.read == "separator_start" else len(ids) - 1
        out.append((ids, reads, start or 0, marks))
    return out


def _cut(
    ids: list[int],
    reads: dict[int, int],
    start: int,
    marks: Sequence[int],
    num_steps: int,
    offset: int,
    max_length: int | None,
) -> Encoded:
    """Drop what stands behind the last place read, then what exceeds max_length."""
    places = [reads.get(step) for step in range(num_steps)]
    places = [None if place is None else max(place + offset, 0) for place in places]
    keep = max((place + 1 for place in places if place is not None), default=0)
    if max_length is not None:
        keep = min(keep, max_length)
    return Encoded(
        input_ids=ids[:keep],
        step_ends=[place if place is not None and place < keep else None for place in places],
        start=start,
        separators=tuple(index for index in marks if index < keep),
    )
