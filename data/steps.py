"""The definition of a step: text <-> steps (character spans) <-> the token that ends each step.

Boundaries are found by character offset and only then mapped to tokens, because BPE merges separators into
their neighbours (".\\n\\n" is one token in several published vocabularies). Policy and reward model therefore
agree on steps even when they share no token.

    spans = split_steps(text, "newline")
    ends = step_end_tokens(spans, token_char_ends(tokenizer, token_ids))
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator

from data.errors import UserError, did_you_mean
from data.own import own_joiner, own_spans
from data.plugins import installed, is_plugin

_Known = Literal["newline", "blank_line", "step_marker", "code_line", "code_block"]


def _check_splitter(name: str) -> str:
    known = (*get_args(_Known), *installed("splitter"))
    if name not in known and not is_plugin(name):
        raise UserError(
            f"splitter '{name}' is unknown{did_you_mean(name, known)} (your own: module:function)"
        )
    return name


Splitter = Annotated[_Known | str, AfterValidator(_check_splitter)]
"""newline: one step a line. blank_line: paragraphs. step_marker: a new step at each line "Step k:", also as a
heading or in bold (any text before the first marker belongs to the first step). code_line: a program's line,
with its indentation. code_block: a program's statement with all that stands under it; the head of a function
or class is a step of its own, else it all would be one step. module:function: your own (docs/plugins.md)."""

_SEPARATOR: dict[str, re.Pattern[str]] = {
    "newline": re.compile(r"\n"),
    "blank_line": re.compile(r"\n[ \t\r]*\n"),
    "step_marker": re.compile(r"\n(?=[ \t#*]*Step \d+[:.])"),
}
_STARTS_WITH_MARKER = re.compile(r"[\s#*]*Step \d+[:.]")
_REPLACEMENT = "\ufffd"
_PARTS_OF_PROGRAMS = ("code_line", "code_block")
_HEAD = re.compile(r"\s*(?:async\s+def|def|class)\b")
_GOES_ON = re.compile(r"\s*(?:(?:else|elif|except|finally)\b|[)\]}])")
JOINER: dict[str, str] = {
    "newline": "\n",
    "blank_line": "\n\n",
    "step_marker": "\n",
    "code_line": "\n",
    "code_block": "\n",
}


def joiner_of(splitter: Splitter) -> str:
    """Return what stands between two steps that a splitter has cut."""
    return JOINER[splitter] if splitter in JOINER else own_joiner(splitter)


def split_steps(text: str, splitter: Splitter) -> list[tuple[int, int]]:
    """Return the character span [start, end) of every step, outer white space cut off, empty steps dropped.

    Text without any separator is one step; white space alone is none. Steps of programs keep the indentation
    of their first line: without it they are other programs.
    """
    if splitter in _PARTS_OF_PROGRAMS:
        return _split_program(text, by_block=splitter == "code_block")
    if splitter not in _SEPARATOR:
        return own_spans(splitter, text)
    spans = []
    start = 0
    cuts = list(_SEPARATOR[splitter].finditer(text))
    if splitter == "step_marker" and not _STARTS_WITH_MARKER.match(text):
        cuts = cuts[1:]
    for match in [*cuts, None]:
        end = match.start() if match else len(text)
        piece = text[start:end]
        left = start + len(piece) - len(piece.lstrip())
        right = start + len(piece.rstrip())
        if left < right:
            spans.append((left, right))
        if match:
            start = match.end()
    return spans


def _split_program(text: str, *, by_block: bool) -> list[tuple[int, int]]:
    """Cut by lines and their indentation alone: what a policy wrote need not compile."""
    spans: list[tuple[int, int]] = []
    start, depth = 0, -1  # where a line begins; how deep the open block's first line is, -1: none is open
    for line in text.split("\n"):
        bare = line.strip()
        end = start + len(line.rstrip())
        if bare:
            indentation = len(line.expandtabs()) - len(line.expandtabs().lstrip())
            goes_on = indentation > depth or (indentation == depth and _GOES_ON.match(line))
            if by_block and depth >= 0 and goes_on:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
                depth = -1 if _HEAD.match(line) else indentation
        start += len(line) + 1
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
    where that gives the same ids, and from decoding otherwise. A token that ends inside a multi-byte
    character completes nothing yet; a special token completes what the one before it did. `text` is the
    decoded text, if already at hand; where it stops short of the ids, so do the counts.
    """
    ids = list(token_ids)
    if text is None:
        text = decode(tokenizer, ids)
    special = set(tokenizer.all_special_ids)
    body = [i for i in ids if i not in special]
    ends = _ends_by_offsets(tokenizer, body, text)
    if ends is None:
        ends = _ends_by_decoding(tokenizer, body, text)
    remaining = iter(ends)
    return _running_max(0 if i in special else next(remaining) for i in ids)


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Decode without special tokens and without the tokenizer's clean-up of spaces."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _ends_by_offsets(tokenizer: Any, ids: list[int], text: str) -> list[int] | None:
    """The tokenizer's own offsets; None when it has none or encodes the text into other ids."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if encoded["input_ids"] != ids:
        return None
    # Byte-level tokens that share one character all claim it: only the last of them completes it.
    offsets = encoded["offset_mapping"]
    starts = [start for start, _ in [*offsets[1:], (len(text), len(text))]]
    return _running_max(min(end, start) for (_, end), start in zip(offsets, starts, strict=False))


def _ends_by_decoding(tokenizer: Any, ids: list[int], text: str) -> list[int]:
    """Counts from decoded prefixes: right for any tokenizer, in linear time where `_windows` may slide."""
    prefixes = _windows(tokenizer, ids, text)
    if prefixes is None:
        prefixes = [(0, decode(tokenizer, ids[: k + 1])) for k in range(len(ids))]
    lengths = [done + len(piece) for done, piece in prefixes]
    # Undecided bytes may show as more U+FFFD than the characters they become: count what stays.
    kept = list(accumulate(reversed(lengths), min))[::-1]
    ends = []
    for k, (done, piece) in enumerate(prefixes):
        end = min(done + _common_length(piece, text[done : done + len(piece)]), kept[k])
        if kept[k + 1 : k + 2] == [end] and text[end - 1 : end] == _REPLACEMENT:
            # U+FFFD stands in the text itself, and its own bytes are still coming in.
            end -= 1
        ends.append(min(end, len(text)))
    return _running_max(ends)


def _windows(tokenizer: Any, ids: list[int], text: str) -> list[tuple[int, str]] | None:
    """For each token (characters settled before, what the tokens since then decode to); None if that fails.

    Only the tokens since the last two clean character boundaries are decoded, the first of them for context:
    decoders treat the start of a text apart (they drop its space).
    """
    pieces = []
    context, start, done = 0, 0, 0
    head = ""
    for k in range(len(ids)):
        piece = decode(tokenizer, ids[context : k + 1])
        if not piece.startswith(head):
            return None
        piece = piece[len(head) :]
        pieces.append((done, piece))
        if piece and not piece.endswith(_REPLACEMENT):
            # A text cut at a stop string ends before its tokens do.
            if not piece.startswith(text[done : done + len(piece)]):
                return None
            done += len(piece)
            context, start = start, k + 1
            head = decode(tokenizer, ids[context:start])
    return pieces


def _common_length(a: str, b: str) -> int:
    """Length of the longest common prefix."""
    if a == b:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _running_max(values: Iterable[int]) -> list[int]:
    return list(accumulate(values, max))
