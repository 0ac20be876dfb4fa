"""Benchmark problems and sample files -> Problem records and (prompt, response) pairs.

    problems = read_problems("gsm8k", "test.jsonl", limit=100)
    problems = read_problems("math500")                                  # its default hub id and split
    pairs = read_sft("demonstrations.jsonl")

A benchmark is one function (row -> fields of Problem) and one line of BENCHMARKS.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import UserError, did_you_mean
from data.schema import Problem
from data.sources import Row, field, read_rows, show

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_BOXED = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(\{)?")


def read_problems(
    benchmark: str, source: str | Path | None = None, *, split: str | None = None, limit: int | None = None
) -> list[Problem]:
    """Return the problems of a benchmark in its order, at most `limit`.

    `source` is a local file, a folder or a hub id with that benchmark's fields; None: its home on the hub.
    `split` None: the benchmark's usual one. A local file is read whole, whatever the split. An id is the
    row's own or made from the problem's text, so it does not depend on where the rows were read from.

    Raises UserError for an unknown benchmark and, with file and line, for rows that lack a field.
    """
    if benchmark not in BENCHMARKS:
        raise UserError(f"benchmark '{benchmark}' is unknown{did_you_mean(benchmark, BENCHMARKS)}")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}; leave it out to read every problem")
    home = BENCHMARKS[benchmark]
    source = home.hub_id if source is None else source
    config = home.config if source == home.hub_id or Path(source).is_dir() else None
    problems = []
    seen: dict[str, int] = {}
    for row in islice(read_rows(source, split=split or home.split, name=config), limit):
        problem = home.read(row)
        key = problem.pop("id", None) or sha256(problem["text"].encode("utf-8", "replace")).hexdigest()[:12]
        seen[key] = seen.get(key, 0) + 1
        # A benchmark may hold a problem twice; results are kept by id.
        key = key if seen[key] == 1 else f"{key}-{seen[key]}"
        problems.append(Problem(id=f"{benchmark}/{key}", source=benchmark, **problem))
    if not problems:
        raise UserError(f"{source}: no rows")
    return problems


def read_sft(source: str | Path, *, split: str = "train", name: str | None = None) -> list[tuple[str, str]]:
    """Return (prompt, response) pairs for supervised fine-tuning, in the order of the source.

    A row is {prompt, response or completion}, {problem or question, solution or answer} or a chat
    {messages}: an optional system message (put before the prompt), one user and one assistant message.
    Texts are taken as they stand.

    Raises UserError, with file and line, for other rows and for an empty prompt or response.
    """
    pairs = [_sft_pair(row) for row in read_rows(source, split=split, name=name)]
    if not pairs:
        raise UserError(f"{source}: no rows")
    return pairs


def last_boxed(text: str) -> str | None:
    """Return the content of the last \\boxed{...} (or \\fbox), braces nested; None without a closed one."""
    for match in reversed(list(_BOXED.finditer(text))):
        if match[1] is None:  # "\boxed 5$", as some rows of MATH have it
            word = re.match(r"[^\s$]+", text[match.end() :])
            if word:
                return word[0].rstrip(".,")
            continue
        depth, escaped = 1, False
        for index in range(match.end(), len(text)):
            char = text[index]
            if not escaped:
                depth += (char == "{") - (char == "}")
            if depth == 0:
                return text[match.end() : index].strip()
            escaped = char == "\\" and not escaped
    return None


# --- benchmarks ------------------------------------------------------------------------------------------


def _read_gsm8k(row: Row) -> dict[str, Any]:
    """question, answer: a worked solution with <<48/2=24>> calculator marks and a last line "#### N"."""
    wanted = "question, answer"
    solution, marker, answer = field(row, "answer", str, expected=wanted).rpartition("####")
    answer = answer.strip().replace(",", "")
    if not marker or not answer:
        raise UserError(f"{row.where}: field 'answer' has no final line '#### N'")
    text = field(row, "question", str, expected=wanted)
    return {"text": text, "answer": answer, "solution": _CALCULATOR.sub("", solution).strip()}


def _read_math(row: Row) -> dict[str, Any]:
    """problem, solution, and where present answer (else the last box), level, subject or type, unique_id."""
    wanted = "problem, solution, answer"
    text = field(row, "problem", str, expected=wanted)
    solution = field(row, "solution", str, expected=wanted) if "solution" in row.values else ""
    answer = row.values.get("answer")
    if answer is None:
        field(row, "solution", str, expected=wanted)
        answer = last_boxed(solution)
        if answer is None:
            raise UserError(
                f"{row.where}: no field 'answer', and no closed \\boxed{{...}} in field 'solution'"
            )
    return {
        "id": row.values.get("unique_id"),
        "text": text,
        "answer": str(answer),
        "solution": solution,
        "level": _level(row),
        "subject": str(row.values.get("subject") or row.values.get("type") or ""),
    }


def _level(row: Row) -> int | None:
    """5, "5" and "Level 5" are 5; "Level ?" (two rows of MATH) and none at all are None."""
    level = row.values.get("level")
    if level is None or level == "Level ?":
        return None
    number = re.fullmatch(r"(?:Level )?(\d+)", str(level))
    if number is None:
        raise UserError(f"{row.where}: field 'level' must be a number or 'Level N', got {show(level)}")
    return int(number[1])


class Benchmark(NamedTuple):
    hub_id: str
    config: str | None
    split: str
    """Split that is evaluated unless another is asked for."""
    read: Callable[[Row], dict[str, Any]]


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark("openai/gsm8k", "main", "test", _read_gsm8k),
    "math500": Benchmark("HuggingFaceH4/MATH-500", None, "test", _read_math),
    "math": Benchmark("DigitalLearningGmbH/MATH-lighteval", "default", "test", _read_math),
}


# --- sample files ----------------------------------------------------------------------------------------

_PROMPT_FIELDS = (
    ("prompt", ("response", "completion")),
    *((p, ("solution", "answer")) for p in ("problem", "question")),
)


def _sft_pair(row: Row) -> tuple[str, str]:
    if "messages" in row.values:
        return _chat_pair(row, "messages", field(row, "messages", list))
    for prompt_name, response_names in _PROMPT_FIELDS:
        for response_name in response_names:
            if prompt_name in row.values and response_name in row.values:
                prompt, response = row.values[prompt_name], row.values[response_name]
                if isinstance(prompt, list) and isinstance(response, list):
                    return _chat_pair(row, prompt_name, [*prompt, *response])
                return _filled(row, prompt_name), _filled(row, response_name)
    raise UserError(
        f"{row.where}: no sample in the fields {', '.join(row.values) or '(none)'}; expected prompt + "
        f"response or completion, problem or question + solution or answer, or messages"
    )


def _filled(row: Row, name: str) -> str:
    text = field(row, name, str)
    if not text.strip():
        raise UserError(f"{row.where}: field '{name}' is empty; fill it in or leave the row out")
    return text


def _chat_pair(row: Row, name: str, messages: list[Any]) -> tuple[str, str]:
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UserError(
                f"{row.where}: field '{name}[{index}]' must be an object with string role and content, "
                f"got {show(message)}"
            )
    roles = [str(message.get("role")) for message in messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise UserError(
            f"{row.where}: field '{name}' has the roles {', '.join(roles) or '(none)'}; expected one user "
            f"and one assistant message, a system message before them or none: split longer dialogues"
        )
    texts = [message["content"] for message in messages]
    if not texts[-1].strip() or not texts[-2].strip():
        raise UserError(f"{row.where}: field '{name}' has an empty message; fill it in or leave the row out")
    return "\n\n".join(texts[:-1]), texts[-1]
