"""How a problem is put to a model: named, versioned templates and the one function that renders them.

    prompt = render("boxed_chat", problem.text, tokenizer)

A template asks for an answer in one convention ("#### N", \\boxed{}); reading the answer back is not done
here. Texts never change under a name: a changed text gets a higher version, so that recorded settings tell
results apart.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
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
    system: str = ""
    """System message of a chat; put before the text where the tokenizer has no chat template."""
    reply: str = ""
    """How the answer of a chat begins: put after the assistant's header, e.g. an opened code fence."""
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

# Eight problems in the form of arXiv:2201.11903 (Q:/A:, "The answer is N."). The texts are our own: with the
# published ones in a file, `--template FILE.json` gives the published prompt to the letter.
_EIGHT_SHOTS = (
    ("A bus carries 14 people. At the next stop 9 get off and 6 get on. How many people are on the bus?",
     "After 9 got off there were 14 - 9 = 5. After 6 got on there were 5 + 6 = 11.", 11),
    ("Mia reads 12 pages a day. How many pages does she read in two weeks?",
     "Two weeks are 14 days. She reads 12 * 14 = 168 pages.", 168),
    ("A baker fills 7 trays with 24 rolls each and sells 95 rolls. How many rolls are left?",
     "There were 7 * 24 = 168 rolls. After the sale 168 - 95 = 73 are left.", 73),
    ("Ivan has three times as many stamps as Lena, who has 26. How many stamps do they have together?",
     "Ivan has 3 * 26 = 78 stamps. Together they have 78 + 26 = 104.", 104),
    ("A rope of 45 metres is cut into pieces of 3 metres. How many cuts are made?",
     "There are 45 / 3 = 15 pieces. Between 15 pieces there are 15 - 1 = 14 cuts.", 14),
    ("Five friends share a bill of $85 and a tip of $15 equally. How much does each pay?",
     "Bill and tip are 85 + 15 = 100 dollars. Each pays 100 / 5 = 20 dollars.", 20),
    ("A train leaves at 9 and drives 80 km an hour. How far has it come by noon?",
     "From 9 to noon are 12 - 9 = 3 hours. In them it drives 80 * 3 = 240 km.", 240),
    ("Half of the 36 pupils walk to school, and 10 of the others cycle. How many neither walk nor cycle?",
     "36 / 2 = 18 pupils walk. Of the other 18 pupils 10 cycle, so 18 - 10 = 8 do neither.", 8),
)  # fmt: skip

# Four problems in the form of arXiv:2206.14858 (Problem:/Solution:, a box, the final answer's sentence); the
# texts are our own, as above.
_FOUR_SHOTS = (
    (r"For which real $x$ is $\sqrt{x+1}+\sqrt{4-x}$ defined?",
     r"Both radicands must not be negative: $x+1 \ge 0$ gives $x \ge -1$, and $4-x \ge 0$ gives $x \le 4$. "
     r"So the expression is defined for $x$ in $\boxed{[-1,4]}$.", "[-1,4]"),
    (r"A $2 \times 2$ matrix has determinant $5$. What is the determinant of three times this matrix?",
     r"Both rows are multiplied by $3$, so the determinant becomes $3^2 \cdot 5 = \boxed{45}$.", "45"),
    (r"A cyclist covers $36$ km in $\frac{3}{2}$ hours. How many kilometres does he cover in $50$ minutes?",
     r"His speed is $36 / \frac{3}{2} = 24$ km an hour. In $50$ minutes, $\frac{5}{6}$ of an hour, he covers "
     r"$24 \cdot \frac{5}{6} = \boxed{20}$ km.", "20"),
    (r"If $2x - 3y = 0$ and $y \ne 0$, what is $\frac{x}{y}$?",
     r"From $2x = 3y$ we have $\frac{x}{y} = \boxed{\frac{3}{2}}$.", r"\frac{3}{2}"),
)  # fmt: skip

TEMPLATES: dict[str, Template] = {
    "plain": Template(version=1),
    # A prompt that says itself where the response begins, such as a transcript of a dialogue.
    "raw": Template(version=1, after="", stop=("\n\nHuman:",)),
    "gsm8k_cot": Template(
        version=1,
        before="".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in _GSM8K_SHOTS) + "Question: ",
        after="\nAnswer:",
        stop=("\nQuestion:", "\n\nQuestion"),
    ),
    # A base model goes on with the next function: the stops of arXiv:2107.03374, section 2, and two more.
    "code_complete": Template(
        version=1, after="", stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@", "\nassert")
    ),
    # The task and its first test as a docstring, the form of arXiv:2204.05999.
    "code_task": Template(version=1, after="", stop=('\n"""', "\nassert", "\nprint", "\nif __name__")),
    # EvalPlus' stops for base models (evalplus/provider/utility.py, commit 26d6d00); special tokens end a
    # sample here anyway. A helper function after the first one is allowed in MBPP+ only, as there.
    "evalplus_humaneval": Template(
        version=1,
        after="",
        stop=("\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ", "\nif __name__", "\nprint("),
    ),
    "evalplus_mbpp": Template(
        version=1, after="", stop=('\n"""', "\nassert", "\nif __name__", "\ndef main(", "\nprint(")
    ),
    "code_chat": Template(
        version=1,
        before="Solve the following task in Python. Answer with one ```python block that holds the whole "
        "program.\n\n",
        after="",
        is_chat=True,
    ),
    "gsm8k_cot_8shot": Template(
        version=1,
        before="".join(f"Q: {q}\nA: {a} The answer is {n}.\n\n" for q, a, n in _EIGHT_SHOTS) + "Q: ",
        after="\nA:",
        stop=("Q:", "</s>", "<|im_end|>"),
    ),
    "minerva_4shot": Template(
        version=1,
        before="".join(
            f"Problem:\n{q}\n\nSolution:\n{a}\nFinal Answer: The final answer is ${n}$. I hope it is correct."
            "\n\n"
            for q, a, n in _FOUR_SHOTS
        )
        + "Problem:\n",
        after="\n\nSolution:",
        stop=("Problem:", "I hope it is correct"),
    ),
    # Zero-shot with the system prompt of Qwen2.5-Math's README.
    "qwen_boxed": Template(
        version=1,
        system="Please reason step by step, and put your final answer within \\boxed{}.",
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
    """Return the template of that name, or that of a file FILE.json with the fields of Template.

    Raises UserError that names the nearest ones, or what is wrong with the file.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    if not name.endswith(".json"):
        raise UserError(f"unknown prompt template '{name}'" + did_you_mean(name, TEMPLATES))
    try:
        values = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{name}: unreadable as a prompt template ({error}); give JSON with before, after"
        ) from error
    kinds = {"version": int, "before": str, "after": str, "system": str, "is_chat": bool}
    kinds |= {"reply": str, "stop": list}
    wrong = (
        [key for key, value in values.items() if type(value) is not kinds.get(key)]
        if isinstance(values, dict)
        else [""]
    )
    if wrong or not ({"before", "after"} & values.keys()):
        raise UserError(
            f"{name}: field '{wrong[0] if wrong else 'before'}' is missing, unknown or of another type; "
            f"a prompt template has {', '.join(kinds)}"
        )
    return Template(**{"version": 1, **values, "stop": tuple(map(str, values.get("stop", ())))})


def describe_template(name: str) -> dict[str, Any]:
    """Return what a result keeps of a prompt: name, version, and a digest of the texts."""
    chosen = get_template(name)
    parts = [chosen.system, chosen.before, chosen.after, chosen.is_chat, chosen.stop]
    texts = json.dumps(parts + ([chosen.reply] if chosen.reply else []))
    return {"name": name, "version": chosen.version, "sha256": sha256(texts.encode()).hexdigest()[:16]}


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
        return (f"{chosen.system}\n\n" if chosen.system else "") + text + "\n" + chosen.reply
    messages = [{"role": "system", "content": chosen.system}] if chosen.system else []
    messages += [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return prompt + chosen.reply
