"""Benchmark problems and sample files -> Problem records and (prompt, response) pairs.

    problems = read_problems("gsm8k", "test.jsonl", limit=100)
    problems = read_problems("math500")                                  # its default hub id and split
    pairs = read_sft("demonstrations.jsonl")

A benchmark is one function (row -> fields of Problem) and one line of BENCHMARKS.
"""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import UserError, did_you_mean
from data.schema import Problem
from data.sources import Row, Source, field, read_rows, show, shown

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_BOXED = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(\{)?")


def read_problems(
    benchmark: str, source: Source | None = None, *, split: str | None = None, limit: int | None = None
) -> list[Problem]:
    """Return the problems of a benchmark in its order, at most `limit`.

    `source` is a local file, a folder, a hub id or rows in memory with that benchmark's fields; None: its
    home on the hub. `split` None: the benchmark's usual one. A local file is read whole, whatever the
    split. An id is the row's own or made from the problem's text, so it does not depend on where the rows
    were read from.

    Raises UserError for an unknown benchmark and, with file and line, for rows that lack a field.
    """
    if benchmark not in BENCHMARKS:
        raise UserError(f"benchmark '{benchmark}' is unknown{did_you_mean(benchmark, BENCHMARKS)}")
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, got {limit}; leave it out to read every problem")
    home = BENCHMARKS[benchmark]
    source = home.hub_id if source is None else source
    if not isinstance(source, str | Path):
        config = None
    elif not source:
        raise UserError(
            f"benchmark '{benchmark}' has no data of its own; give a file, folder or hub id of them"
        )
    else:
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
        raise UserError(f"{shown(source)}: no rows")
    return problems


def read_sft(source: Source, *, split: str = "train", name: str | None = None) -> list[tuple[str, str]]:
    """Return (prompt, response) pairs for supervised fine-tuning, in the order of the source.

    A row is {prompt, response or completion}, {problem or question, solution or answer} or a chat
    {messages}: an optional system message (put before the prompt), one user and one assistant message.
    Texts are taken as they stand.

    Raises UserError, with file and line, for other rows and for an empty prompt or response.
    """
    pairs = [_sft_pair(row) for row in read_rows(source, split=split, name=name)]
    if not pairs:
        raise UserError(f"{shown(source)}: no rows")
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
    """problem (or question), solution, and answer (else the last box), level, subject or type, unique_id."""
    wanted = "problem, solution, answer"
    name = "question" if "question" in row.values and "problem" not in row.values else "problem"
    text = field(row, name, str, expected=wanted)
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


def _read_svamp(row: Row) -> dict[str, Any]:
    """Body, Question, Answer: a number; ID, Type."""
    wanted = "Body, Question, Answer"
    body, question = (field(row, name, str, expected=wanted).strip() for name in ("Body", "Question"))
    body += "" if body.endswith((".", "?", "!")) else "."
    return {
        "id": row.values.get("ID"),
        "text": f"{body} {question}",
        "answer": _number(row, "Answer", wanted),
        "subject": str(row.values.get("Type") or ""),
    }


def _read_input_target(row: Row) -> dict[str, Any]:
    """input, target: a number; or question, result_float. MAWPS and GSM-Hard; type. `code` is left alone."""
    names = ("question", "result_float") if "result_float" in row.values else ("input", "target")
    wanted = "input, target"
    return {
        "text": field(row, names[0], str, expected=wanted).strip(),
        "answer": _number(row, names[1], wanted),
        "subject": str(row.values.get("type") or ""),
    }


def _number(row: Row, name: str, wanted: str) -> str:
    """A number as text: 19.0 is "19". JSON has these as floats, to which 1e22 is no round number."""
    value = field(row, name, (int, float, str), expected=wanted)
    try:
        number = Decimal(str(value).replace(",", ""))
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise UserError(f"{row.where}: field '{name}' must be a number, got {show(value)}")
    return str(int(number)) if number == number.to_integral_value() else format(number.normalize(), "f")


def _read_contest(row: Row) -> dict[str, Any]:
    """problem (or question) and answer, a whole number that hubs store as 27.0, "027" or 27; id, url."""
    wanted = "problem, answer"
    name = "problem" if "problem" in row.values else "question"
    return {
        "id": None if row.values.get("id") is None else str(row.values["id"]),
        "text": field(row, name, str, expected=wanted),
        "answer": _number(row, "answer", wanted),
        "solution": str(row.values.get("solution") or ""),
    }


def _read_minerva(row: Row) -> dict[str, Any]:
    """problem, solution, type: MIT OpenCourseWare; the answer is in the last box of the solution.

    Decimal answers are rounded there, so that one unit of the last digit written is allowed either way.
    """
    wanted = "problem, solution"
    name = "problem" if "problem" in row.values else "question"
    solution = "" if row.values.get("answer") else field(row, "solution", str, expected=wanted)
    solution = solution or str(row.values.get("solution") or "")
    answer = row.values.get("answer") or last_boxed(solution)
    if not answer:
        raise UserError(f"{row.where}: no field 'answer', and no closed \\boxed{{...}} in field 'solution'")
    tolerance = last_digit(str(answer))
    return {
        "text": field(row, name, str, expected=wanted),
        "answer": str(answer),
        "solution": solution,
        "subject": str(row.values.get("type") or ""),
        "meta": {"tolerance": tolerance} if tolerance else {},
    }


def last_digit(answer: str) -> str:
    """Return one unit of the last digit of a rounded decimal, "0.1" for 1.6, "1E+32" for 4.5e33; else ""."""
    match = _ROUNDED.fullmatch(answer.strip())
    if match is None:
        return ""
    exponent = int(match["e"] or match["power"] or 0)
    return str(Decimal(1).scaleb(exponent - len(match["decimals"])))


_ROUNDED = re.compile(
    r"-?\d*\.(?P<decimals>\d+)\s*"
    r"(?:[eE](?P<e>[-+]?\d{1,3})|\\(?:times|cdot)\s*10\^\{?(?P<power>-?\d{1,3})\}?)?"
)


def _read_olympiad(row: Row) -> dict[str, Any]:
    """question, final_answer (a list), context, unit, error: how far a number may be off, subfield."""
    wanted = "question, final_answer"
    answers = field(row, "final_answer", list, expected=wanted)
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise UserError(f"{row.where}: field 'final_answer' must be a list of texts, got {show(answers)}")
    context, error = row.values.get("context"), row.values.get("error")
    question = field(row, "question", str, expected=wanted)
    solution = row.values.get("solution")
    tolerance = str(error).partition(",")[0] if error else ""
    return {
        "id": None if row.values.get("id") is None else str(row.values["id"]),
        "text": f"{context.strip()}\n\n{question}" if context and context.strip() else question,
        "answer": ", ".join(answers),
        "solution": str(solution[0]) if isinstance(solution, list) and solution else "",
        "subject": str(row.values.get("subfield") or ""),
        "meta": {"tolerance": tolerance} if tolerance else {},
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


_TEXT_FIELDS = ("problem", "question", "prompt", "text")
_ANSWER_FIELDS = ("answer", "final_answer", "ground_truth", "target")


def _read_own(row: Row) -> dict[str, Any]:
    """problem, question, prompt or text: a text or messages; an answer under any usual name, or in the last
    box of a solution, or none. What else the row holds stays at hand for a grader or reward of one's own."""
    name = next((name for name in _TEXT_FIELDS if name in row.values), _TEXT_FIELDS[0])
    asked = field(row, name, (str, list), expected=" or ".join(_TEXT_FIELDS))
    values = {key: value for key, value in row.values.items() if key != "messages"}
    if isinstance(asked, list):
        values["messages"] = asked
        asked = _said(row, name, asked)
    solution = row.values.get("solution")
    solution = solution if isinstance(solution, str) else ""
    answer = next((row.values[key] for key in _ANSWER_FIELDS if row.values.get(key) is not None), None)
    if answer is None:
        answer = last_boxed(solution) or ""
    if not isinstance(answer, str | int | float):
        raise UserError(f"{row.where}: the answer must be a text or a number, got {show(answer)}")
    return {
        "id": None if row.values.get("id") is None else str(row.values["id"]),
        "text": asked,
        "answer": str(answer).rpartition("####")[2].strip(),
        "solution": solution,
        "meta": values,
    }


def _said(row: Row, name: str, messages: list[Any]) -> str:
    """The text of a prompt's messages: a system message, if any, before the user's. Longer dialogues are for
    the benchmark `prompts`."""
    known = [message for message in messages if isinstance(message, dict)]
    roles = [message.get("role") for message in known]
    if len(known) < len(messages) or roles not in (["user"], ["system", "user"]):
        raise UserError(
            f"{row.where}: field '{name}' must be one user message, a system message before it or none, got "
            f"the roles {', '.join(map(str, roles)) or '(none)'}; dialogues: problems_format prompts"
        )
    return "\n\n".join(str(message.get("content", "")) for message in known)


class Benchmark(NamedTuple):
    """Where a benchmark of final answers is published, and how a row of it becomes a problem."""

    hub_id: str
    config: str | None
    split: str
    """Split that is evaluated unless another is asked for."""
    read: Callable[[Row], dict[str, Any]]


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark("openai/gsm8k", "main", "test", _read_gsm8k),
    "math500": Benchmark("HuggingFaceH4/MATH-500", None, "test", _read_math),
    "math": Benchmark("DigitalLearningGmbH/MATH-lighteval", "default", "test", _read_math),
    "gsm_hard": Benchmark("reasoning-machines/gsm-hard", None, "train", _read_input_target),
    "svamp": Benchmark("ChilleD/SVAMP", None, "test", _read_svamp),
    "mawps": Benchmark("MU-NLPC/Calc-mawps", None, "test", _read_input_target),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", None, "train", _read_contest),
    "amc23": Benchmark("math-ai/amc23", None, "test", _read_contest),
    "olympiadbench": Benchmark("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train", _read_olympiad),
    "minerva_math": Benchmark("math-ai/minervamath", None, "test", _read_minerva),
    "rows": Benchmark("", None, "train", _read_own),
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
