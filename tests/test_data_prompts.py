import re

import pytest

from data.errors import UserError
from data.prompts import TEMPLATES, describe_template, get_template, render
from data.world_tokenizer import word_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def chat_tokenizer():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


def test_plain_is_the_problem_and_a_newline():
    assert render("plain", "1 + 1?") == "1 + 1?\n"


def test_continued_texts_ignore_a_chat_template(chat_tokenizer):
    # Base models ship chat templates too; a policy tuned on "problem\n" must be asked in just that form.
    for name in ("plain", "gsm8k_cot"):
        assert render(name, "1 + 1?", chat_tokenizer) == render(name, "1 + 1?")


def test_a_chat_prompt_goes_through_the_tokenizers_template(chat_tokenizer):
    prompt = render("boxed_chat", "1 + 1?", chat_tokenizer)
    assert prompt.startswith("<|user|>1 + 1?") and prompt.endswith("\\boxed{}.<|end|><|assistant|>")
    without = render("boxed_chat", "1 + 1?", word_tokenizer())
    assert without == prompt.removeprefix("<|user|>").removesuffix("<|end|><|assistant|>") + "\n"


def test_braces_and_percent_signs_of_a_problem_survive():
    text = "Is {x} 100% of \\frac{1}{2}? {problem}"
    for name in TEMPLATES:
        assert text in render(name, text)


def test_the_few_shot_examples_are_right():
    prompt = render("gsm8k_cot", "Q?")
    assert prompt.endswith("\n\nQuestion: Q?\nAnswer:")
    solutions = re.findall(r"Answer: (.*?)\n\n", prompt, flags=re.DOTALL)
    assert len(solutions) == 4
    for solution in solutions:
        *_, last_value = equations = re.findall(r"([\d +*/-]+) = (\d+)", solution)
        for left, right in equations:
            assert eval(left) == int(right), left
        assert solution.splitlines()[-1] == f"#### {last_value[1]}"


def test_a_few_shot_sample_stops_before_an_invented_question():
    example = render("gsm8k_cot", "Q?").split("Question: ")[2]
    continued = example + "\n\nQuestion: another"
    stops = get_template("gsm8k_cot").stop
    cut = min(continued.find(stop) for stop in stops if stop in continued)
    assert continued[:cut].rstrip().splitlines()[-1].startswith("#### ")


def test_an_unknown_template_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown prompt template 'gsm8k_cott'; did you mean 'gsm8k_cot'"):
        render("gsm8k_cott", "x")


def test_eight_shots_are_right_and_in_the_published_form():
    prompt = render("gsm8k_cot_8shot", "How many?")
    assert prompt.endswith("\n\nQ: How many?\nA:")
    solutions = re.findall(r"A: (.*?) The answer is (\d+)\.\n\n", prompt)
    assert len(solutions) == 8
    for solution, answer in solutions:
        equations = re.findall(r"([\d +*/-]+) = (\d+)", solution)
        assert equations and all(eval(left) == int(right) for left, right in equations), solution
        assert equations[-1][1] == answer


def test_four_shots_end_in_the_final_answers_sentence():
    prompt = render("minerva_4shot", "Find $x$.")
    assert prompt.endswith("\n\nProblem:\nFind $x$.\n\nSolution:")
    boxed = re.findall(r"\\boxed\{(.*)\}", prompt)
    final = re.findall(
        r"Final Answer: The final answer is \$(.*)\$\. I hope it is correct\.\n\nProblem:", prompt
    )
    assert boxed == final and len(final) == 4
    # What a model of this prompt writes is read back, up to the stop string and beyond it.
    from eval.answers import extract_answer

    for answer in (r"Final Answer: The final answer is $\frac{3}{2}$. ", r"so $\boxed{\frac{3}{2}}$"):
        assert extract_answer(answer, "math").strip("$") == r"\frac{3}{2}"


def test_a_system_message_comes_first(chat_tokenizer):
    prompt = render("qwen_boxed", "1 + 1?", chat_tokenizer)
    assert prompt.startswith("<|system|>Please reason step by step") and "<|user|>1 + 1?<|end|>" in prompt
    assert render("qwen_boxed", "1 + 1?").startswith("Please reason step by step")


def test_a_template_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"before": "Q: ", "after": " A:", "stop": ["Q:"], "version": 3}')
    assert render(str(path), "x") == "Q: x A:"
    assert get_template(str(path)).stop == ("Q:",)
    described = describe_template(str(path))
    assert described["version"] == 3
    path.write_text('{"before": "Question: ", "after": " A:", "version": 3}')
    assert describe_template(str(path))["sha256"] != described["sha256"]
    for broken in ("{", "[]", '{"befor": ""}', '{"before": 1}'):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"mine\.json"):
            get_template(str(path))
    with pytest.raises(UserError, match="unreadable"):
        get_template(str(tmp_path / "none.json"))
