"""The definition of a step: text <-> steps (character spans) <-> the token that ends each step.

Boundaries are found by character offset and only then mapped to tokens, because BPE merges separators into
their neighbours (".\\n\\n" is one token in several published vocabularies). Policy and reward model therefore
agree on steps even when they share no token.

    spans = split_steps(text, "newline")
    ends = step_end_tokens(spans, token_char_ends(tokenizer, token_ids))
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Literal

Splitter = Literal["newline", "blank_line", "step_marker"]
"""newline: one step a line. blank_line: paragraphs. step_marker: a new step at each line "Step k:" (any
text before the first marker belongs to the first step)."""

_SEPARATOR: dict[str, re.Pattern[str]] = {
    "newline": re.compile(r"\n"),
    "blank_line": re.compile(r"\n[ \t\r]*\n"),
    "step_marker": re.compile(r"\n(?=[ \t]*Step \d+[:.])"),
}
JOINER: dict[str, str] = {"newline": "\n", "blank_line": "\n\n", "step_marker": "\n"}


def split_steps(text: str, splitter: Splitter) -> list[tuple[int, int]]:
    """Return the character span [start, end) of every step, outer white space cut off, empty steps dropped.

    Text without any separator is one step; white space alone is none.
    """
    spans = []
    start = 0
    for match in [*_SEPARATOR[splitter].finditer(text), None]:
        end = match.start() if match else len(text)
        piece = text[start:end]
        left = start + len(piece) - len(piece.lstrip())
        right = start + len(piece.rstrip())
        if left < right:
            spans.append((left, right))
        if match:
            start = match.end()
    return spans


def step_texts(text: str, splitter: Splitter) -> list[str]:
    """Return the steps of a text as strings."""
    return [text[start:end] for start, end in split_steps(text, splitter)]


def join_steps(problem: str, steps: Sequence[str], joiner: str = "\n") -> tuple[str, list[tuple[int, int]]]:
    """Return (problem, joiner, step, joiner, step, joiner ...) as one text, and each step's span in it."""
    text = problem + joiner
    spans = []
    for step in steps:
        spans.append((len(text), len(text) + len(step)))
        text += step + joiner
    return text, spans


def step_end_tokens(spans: Sequence[tuple[int, int]], char_ends: Sequence[int]) -> list[int | None]:
    """Return for each span the index of the token that holds its last character, None when no token does.

    `char_ends[i]` is how many characters of the text are complete after token i (never decreasing).
    """
    ends: list[int | None] = []
    for _, end in spans:
        index = bisect_left(char_ends, end)
        ends.append(index if index < len(char_ends) else None)
    return ends


def token_char_ends(tokenizer: Any, token_ids: Sequence[int], text: str | None = None) -> list[int]:
    """Return how many characters of the decoded text are complete after each token of *sampled* ids.

    Sampled ids need not be the tokenizer's own encoding of their text, so offsets come from re-encoding only
    where that gives the same ids, and from decoding every prefix otherwise. A token that ends inside a
    multi-byte character completes nothing yet. `text` is the decoded text, if already at hand.
    """
    ids = list(token_ids)
    if text is None:
        text = decode(tokenizer, ids)
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        body = encoded["input_ids"]
        if body == ids[: len(body)] and all(i in tokenizer.all_special_ids for i in ids[len(body) :]):
            offsets = encoded["offset_mapping"]
            # Byte-level tokens that share one character all claim it: only the last of them completes it.
            starts = [start for start, _ in offsets[1:]] + [len(text)]
            ends = _running_max(min(end, start) for (_, end), start in zip(offsets, starts, strict=True))
            return ends + [len(text)] * (len(ids) - len(body))
    return _running_max(_complete_chars(tokenizer, ids[: k + 1], text) for k in range(len(ids)))


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Decode without special tokens and without the tokenizer's clean-up of spaces."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _complete_chars(tokenizer: Any, ids: list[int], text: str) -> int:
    """Characters of `text` that the prefix `ids` already determines."""
    prefix = decode(tokenizer, ids)
    if text.startswith(prefix) and not prefix.endswith("\ufffd"):
        return len(prefix)
    common = 0
    for a, b in zip(prefix, text, strict=False):
        if a != b:
            break
        common += 1
    # A trailing U+FFFD that also stands in the text may still turn into another character.
    while common and len(prefix) == common and prefix[common - 1] == "\ufffd" and prefix != text:
        common -= 1
    return common


def _running_max(values: Any) -> list[int]:
    best, out = 0, []
    for value in values:
        best = max(best, value)
        out.append(best)
    return out
