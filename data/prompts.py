"""How a problem is put to a model: named, versioned templates and the one function that renders them.

    prompt = render("boxed_chat", problem.text, tokenizer)

A template asks for an answer in one convention ("#### N", \\boxed{}); reading the answer back is not done
here. Texts never change under a name: a changed text gets a higher version, so that recorded settings tell
results apart.
"""

from dataclasses import dataclass
from typing import Any

from data.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True)
class Template:
    """Text before and after the problem."""

    version: int
    before: str = ""
    after: str = "\n"
    is_chat: bool = False
    """The text is one user message: it goes through the tokenizer's chat template where there is one. The
    others are texts to be continued as they stand, also by a tokenizer that has a chat template."""
    stop: tuple[str, ...] = ()
    """Strings at which a sample should end: a base model goes on to invent the next question."""


# Four word problems, one operation more each; the last line is GSM8K's own answer form.
_GSM8K_SHOTS = (
    (
        "A shelf holds 18 jars. 7 of them are sold and 4 new jars are put up. How many jars are there now?",
        "After the sale 18 - 7 = 11 jars are left.\nWith the new jars there are 11 + 4 = 15.\n#### 15",
    ),
    (
        "Tickets cost $6 for a child and $9 for an adult. What do 3 children and 2 adults pay together?",
        "The children pay 3 * 6 = 18 dollars.\nThe adults pay 2 * 9 = 18 dollars.\n"
        "Together they pay 18 + 18 = 36 dollars.\n#### 36",
    ),
    (
        "A tank of 240 litres is a quarter full. A pump adds 12 litres a minute. "
        "In how many minutes is the tank full?",
        "The tank holds 240 / 4 = 60 litres.\nIt lacks 240 - 60 = 180 litres.\n"
        "The pump needs 180 / 12 = 15 minutes.\n#### 15",
    ),
    (
        "Nora walks 3 km to school and back on each of 5 days, and on Saturday half of that whole distance. "
        "On Sunday she rests. How many kilometres does she walk in the week?",
        "A school day is 2 * 3 = 6 km.\nFive of them are 5 * 6 = 30 km.\nSaturday is 30 / 2 = 15 km.\n"
        "The week is 30 + 15 = 45 km.\n#### 45",
    ),
)

TEMPLATES: dict[str, Template] = {
    "plain": Template(version=1),
    "gsm8k_cot": Template(
        version=1,
        before="".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in _GSM8K_SHOTS) + "Question: ",
        after="\nAnswer:",
        stop=("\nQuestion:", "\n\nQuestion"),
    ),
    # A base model goes on with the next function; these are human-eval's own stops.
    "code_complete": Template(
        version=1, after="", stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@", "\nassert")
    ),
    "code_task": Template(version=1, after="", stop=('\n"""', "\nassert", "\nprint", "\nif __name__")),
    "code_chat": Template(
        version=1,
        before="Solve the following task in Python. Answer with one ```python block that holds the whole "
        "program.\n\n",
        after="",
        is_chat=True,
    ),
    "boxed_chat": Template(
        version=1,
        after="\n\nReason step by step, one step per paragraph, and put the final answer in \\boxed{}.",
        is_chat=True,
    ),
}


def get_template(name: str) -> Template:
    """Return the template. Raises UserError that names the nearest ones."""
    if name not in TEMPLATES:
        raise UserError(f"unknown prompt template '{name}'" + did_you_mean(name, TEMPLATES))
    return TEMPLATES[name]


def render(template: str, problem: str, tokenizer: Any = None) -> str:
    """Return the prompt for a problem, ready to be encoded.

    A chat template renders its own special tokens: encode its prompt without adding more. Raises UserError
    for an unknown template.
    """
    chosen = get_template(template)
    text = chosen.before + problem + chosen.after
    if not chosen.is_chat:
        return text
    if not getattr(tokenizer, "chat_template", None):
        return text + "\n"
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
