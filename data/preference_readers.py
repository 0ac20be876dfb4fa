"""Preference data of any source -> `Preference` records: a prompt, a better response, a worse one.

    pairs = read_preferences("hh_rlhf_train.jsonl.gz")

Told from a row's fields:

own, TRL        prompt, chosen, rejected: texts taken as they stand (and prefix, chosen_ends, rejected_ends)
TRL, implicit   chosen, rejected: the prompt is what both begin with
conversational  the same with lists of {role, content}; `render` makes the prompt's text of all messages but
                the last
HH-RLHF         chosen, rejected: transcripts of "\\n\\nHuman: ..." and "\\n\\nAssistant: ..." turns, cut
                before the last one
PKU-SafeRLHF    prompt, response_0, response_1, better_response_id, safer_response_id: `prefer` says which
                judgement counts
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from data.errors import UserError
from data.files import write_atomically
from data.schema import Preference, Problem
from data.sources import Row, Source, field, read_rows, show, shown

logger = logging.getLogger(__name__)

Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], str]
"""Messages up to and with the last one before the response -> the prompt's text."""
Prefer = Literal["better", "safer"]
"""Which judgement of PKU-SafeRLHF counts: the more helpful response, or the safer one."""

SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_WANTED = "prompt, chosen, rejected"


def transcript(messages: Sequence[Message]) -> str:
    """Return a dialogue in HH-RLHF's form, open for the assistant's next turn."""
    turns = [f"\n\n{SPEAKERS.get(m['role'], m['role'])}: {m['content']}" for m in messages]
    return "".join(turns) + "\n\nAssistant:"


def read_preferences(
    source: Source,
    *,
    split: str = "train",
    name: str | None = None,
    prefer: Prefer = "better",
    render: Render = transcript,
) -> list[Preference]:
    """Return the pairs in the order of the source.

    A row whose two responses are equal, or whose two dialogues differ before their last message (HH-RLHF has
    3 in a thousand), is left out; a warning counts them. Raises UserError, with file and line, for rows of
    none of the forms above, and for a source without a single pair.
    """
    pairs: list[Preference] = []
    left_out: Counter[str] = Counter()
    for row in read_rows(source, split=split, name=name):
        pair = _read(row, prefer, render)
        if pair is None:
            left_out["two prompts"] += 1
        elif pair.chosen == pair.rejected:
            left_out["equal responses"] += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise UserError(
            f"{shown(source)}: no pair of two different responses to one prompt (left out: {dict(left_out)})"
        )
    if left_out:
        logger.warning("%s: %d pairs; left out: %s", shown(source), len(pairs), dict(left_out))
    return pairs


def read_prompts(source: Source, *, split: str = "train", limit: int | None = None) -> list[Problem]:
    """Return the distinct prompts of a source, in order, at most `limit`; they have no answer.

    A row is {prompt: text or messages}, or any preference row, whose responses are left. Messages are written
    as a transcript. Raises UserError, with file and line, for other rows.
    """
    prompts: dict[str, dict[str, Any]] = {}
    for row in read_rows(source, split=split):
        if limit is not None and len(prompts) >= limit:
            break
        if "chosen" in row.values or "response_0" in row.values:
            pair = _read(row, "better", transcript)
            text = pair.prompt if pair else ""
        else:
            prompt = field(row, "prompt", (str, list), expected="prompt")
            text = prompt if isinstance(prompt, str) else transcript(_messages(row, "prompt", prompt))
        if text.strip():
            prompts.setdefault(text, row.values)
    if not prompts:
        raise UserError(f"{shown(source)}: no prompt")
    return [
        Problem(
            id=f"prompts/{values.get('id') or sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]}",
            text=text,
            answer="",
            source="prompts",
            meta=_columns(values),
        )
        for text, values in prompts.items()
    ]


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says besides its prompt and responses, for a reward of the user's own."""
    kept = {k: v for k, v in values.items() if k not in ("prompt", "chosen", "rejected", "messages")}
    return kept | ({"messages": values["prompt"]} if isinstance(values.get("prompt"), list) else {})


def write_preferences(path: str | Path, pairs: Sequence[Preference]) -> None:
    """Write pairs as rows that `read_preferences` reads back equal, whole or not at all."""
    defaults = {"id": "", "source": "", "prefix": "", "chosen_ends": True, "rejected_ends": True}
    lines = []
    for pair in pairs:
        row = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        row |= {k: getattr(pair, k) for k, usual in defaults.items() if getattr(pair, k) != usual}
        lines.append(json.dumps(row) + "\n")
    write_atomically(path, "".join(lines))


def parse_transcript(text: str) -> list[dict[str, str]]:
    """Return the messages of an HH-RLHF transcript. Raises UserError when it does not begin with a turn."""
    marks = list(_TURN.finditer(text))
    if not marks or marks[0].start() != 0:
        raise UserError('a transcript begins with "\\n\\nHuman:" or "\\n\\nAssistant:"')
    roles = {"Human": "user", "Assistant": "assistant"}
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        {"role": roles[mark[1]], "content": text[mark.end() : end].removeprefix(" ")}
        for mark, end in zip(marks, ends, strict=True)
    ]


def _read(row: Row, prefer: Prefer, render: Render) -> Preference | None:
    """The pair of a row; None when its sides answer different prompts."""
    values = row.values
    if "response_0" in values:
        return _safe_rlhf(row, prefer, render)
    chosen = field(row, "chosen", (str, list), expected=_WANTED)
    rejected = field(row, "rejected", (str, list), expected=_WANTED)
    if isinstance(chosen, list) or isinstance(rejected, list):
        return _dialogue(row, values.get("prompt"), chosen, rejected, render)
    if "prompt" in values:
        return _plain(row, chosen, rejected)
    if _TURN.match(chosen) and _TURN.match(rejected):
        return _dialogue(row, None, parse_transcript(chosen), parse_transcript(rejected), render)
    start = _common_start(chosen, rejected)
    if not start.strip():
        raise UserError(f"{row.where}: no field 'prompt', and chosen and rejected begin differently")
    return _pair(row, start, chosen[len(start) :], rejected[len(start) :])


def _plain(row: Row, chosen: str, rejected: str) -> Preference:
    """Texts as they stand, with this project's own extra fields where they are."""
    prompt = field(row, "prompt", str)
    prefix = field(row, "prefix", str) if "prefix" in row.values else ""
    ends = {k: field(row, k, bool) for k in ("chosen_ends", "rejected_ends") if k in row.values}
    pair = _pair(row, prompt, chosen, rejected)
    return Preference(prompt, pair.chosen, pair.rejected, pair.id, pair.source, prefix, **ends)


def _pair(row: Row, prompt: str, chosen: str, rejected: str) -> Preference:
    if not (chosen.strip() or rejected.strip()):
        raise UserError(f"{row.where}: both responses are empty; leave the row out")
    name = row.values.get("id")
    return Preference(
        prompt, chosen, rejected, row.where if name is None else str(name), str(row.values.get("source", ""))
    )


def _dialogue(row: Row, prompt: Any, chosen: Any, rejected: Any, render: Render) -> Preference | None:
    """Both sides as messages; the prompt is a list of its own, or what both sides begin with."""
    # Some sources repeat the first message's text in `prompt`.
    before = _messages(row, "prompt", prompt) if isinstance(prompt, list) else []
    sides = [_messages(row, "chosen", chosen), _messages(row, "rejected", rejected)]
    if any(not side or side[-1]["role"] != "assistant" for side in sides):
        raise UserError(f"{row.where}: chosen and rejected must end with the assistant's message")
    if sides[0][:-1] != sides[1][:-1]:
        return None
    before = before + sides[0][:-1]
    if not before:
        raise UserError(f"{row.where}: nothing stands before the response; give a prompt")
    text = render(before)
    # A transcript's turn is set off by the space behind its colon.
    space = "" if text[-1:].isspace() or not text.endswith(":") else " "
    return _pair(row, text, *(space + side[-1]["content"] for side in sides))


def _messages(row: Row, name: str, value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise UserError(f"{row.where}: field '{name}' must be a list of messages, got {show(value)}")
    messages: list[dict[str, str]] = []
    for index, message in enumerate(value):
        role, content = (message.get(k) if isinstance(message, dict) else None for k in ("role", "content"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise UserError(
                f"{row.where}: field '{name}[{index}]' must be an object with string role and content, "
                f"got {show(message)}"
            )
        messages.append({"role": role, "content": content})
    return messages


def _safe_rlhf(row: Row, prefer: Prefer, render: Render) -> Preference | None:
    wanted = f"prompt, response_0, response_1, {prefer}_response_id"
    responses = [field(row, f"response_{i}", str, expected=wanted) for i in (0, 1)]
    first = field(row, f"{prefer}_response_id", int, expected=wanted)
    if first not in (0, 1):
        raise UserError(f"{row.where}: field '{prefer}_response_id' must be 0 or 1, got {first}")
    messages = [{"role": "user", "content": field(row, "prompt", str, expected=wanted)}]
    chosen, rejected = ([{"role": "assistant", "content": responses[k]}] for k in (first, 1 - first))
    return _dialogue(row, messages, chosen, rejected, render)


def _common_start(a: str, b: str) -> str:
    """What both texts begin with, up to a word's beginning: its space belongs to the response."""
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    while length and not a[length - 1].isspace():
        length -= 1
    return a[:length].rstrip(" ")
