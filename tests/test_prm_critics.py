"""Critiques in words: reading them, asking for them, and the probability of GenPRM's verdict."""

import math

import pytest
import torch
from format_cases import PROBLEM, STEPS, byte_tokenizer, config_of
from transformers import LlamaConfig, LlamaForCausalLM

from data.schema import Sample, Sampling
from prm.formats import FORMATS, load_scorer
from prm.formats.critiques import average, read_boxes, read_index, read_yes_no
from prm.formats.generative import CriticScorer, fill
from prm.formats.genprm import GenPRMScorer
from reasoning_rl.rollout.hf import HFGenerator


class Scripted:
    """A TextGenerator that answers from a function of the prompt, and remembers what it was asked."""

    def __init__(self, answer) -> None:
        self.answer, self.prompts, self.samplings = answer, [], []

    def generate(self, prompts, sampling: Sampling) -> list[list[Sample]]:
        self.prompts += prompts
        self.samplings.append(sampling)
        return [
            [Sample((), (), (), text=self.answer(prompt, k), finish_reason="stop") for k in range(sampling.n)]
            for prompt in prompts
        ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fine until here. \\boxed{1}", [1.0, 0.0, 0.0]),
        ("\\boxed{0}", [0.0, 0.0, 0.0]),
        ("all right: $\\boxed{-1}$.", [1.0, 1.0, 1.0]),
        ("first \\boxed{2}, no: \\boxed{\\text{1}}", [1.0, 0.0, 0.0]),
        ("\\boxed{paragraph 2}", [1.0, 1.0, 0.0]),
        ("\\boxed{3}", None),  # there is no such step
        ("\\boxed{1 or 2}", None),
        ("no box", None),
    ],
)
def test_an_index_of_the_first_error(text, expected) -> None:
    assert read_index(text, 3) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{correct} ... \\boxed{incorrect}", [1.0, 0.0, 0.0]),  # stopped at the mistake
        ("\\boxed{correct} \\boxed{correct}", [1.0, 1.0, None]),  # was cut: the rest is not judged
        ("\\boxed{\\text{Correct}} \\boxed{7} \\boxed{correct} \\boxed{incorrect}", [1.0, 1.0, 0.0]),
        ("\\boxed{correct} " * 5, [1.0, 1.0, 1.0]),
        ("Is the solution correct? Yes", None),
    ],
)
def test_one_box_a_step(text, expected) -> None:
    assert read_boxes(text, 3) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Verification: Is the step correct (Yes/No)? Yes", 1.0),
        ("Is the step correct (Yes/No)? **No**", 0.0),
        ("(Yes/No)? Yes ... after all: Is the step correct (Yes/No)? No.", 0.0),
        ("(Yes/No)? None", None),
        ("Yes.", None),
    ],
)
def test_a_verdict_on_one_step(text, expected) -> None:
    assert read_yes_no(text) == expected


def test_scores_are_shares_of_the_critiques_that_judged() -> None:
    assert average([[1.0, 0.0], [1.0, None], None, [0.0, None]], 2) == [2 / 3, 0.0]
    assert average([None], 2) == [None, None]


def test_places_are_filled_once() -> None:
    places = {"{problem}": lambda: "{steps} and {problem}", "{steps}": lambda: "S"}
    assert fill("<{problem}|{steps}|{other}>", places) == "<{steps} and {problem}|S|{other}>"


def test_a_critic_of_whole_solutions() -> None:
    answers = [
        "\\boxed{1}",
        "\\boxed{-1}",
        "\\boxed{1}",
        "?",
        "\\boxed{2}",
        "\\boxed{-1}",
        "?",
        "\\boxed{-1}",
    ]
    generator = Scripted(lambda prompt, k: answers[k] if "2 + 3" in prompt else "\\boxed{0}")
    scorer = CriticScorer(generator, byte_tokenizer(), FORMATS["critic"])
    rows = scorer.score([PROBLEM, "empty", "other"], [STEPS, [], ["one"]])
    assert rows == [[1.0, 4 / 6, 3 / 6], [], [0.0]]  # two of eight critiques cannot be read
    assert "<paragraph_0>\nIt is 5.\n</paragraph_0>\n\n<paragraph_1>\nSo 5." in generator.prompts[0]
    assert generator.prompts[0].endswith("<|im_start|>assistant\n") and len(generator.prompts) == 2
    assert generator.samplings[0].n == 8


def test_a_critic_of_single_steps_sees_what_stands_before() -> None:
    generator = Scripted(lambda prompt, k: f"Step correct (Yes/No)? {'Yes' if k < 7 else 'No'}")
    scorer = CriticScorer(generator, byte_tokenizer(), FORMATS["r-prm"])
    assert scorer.score([PROBLEM], [STEPS]) == [[0.7, 0.7, 0.7]]
    assert len(generator.prompts) == 3
    assert "Previous Steps: \nNow Step: It is 5." in generator.prompts[0]
    assert "Previous Steps: It is 5.\nSo 5.\nNow Step: The answer is 4." in generator.prompts[2]
    assert "The answer is 4." not in generator.prompts[1]
    # A tie of ten verdicts counts as wrong, as its authors count it.
    assert FORMATS["r-prm"].are_right([0.5, 0.6]) == [False, True]


def test_thinkprm_is_asked_as_it_was_trained() -> None:
    generator = Scripted(lambda prompt, k: " \\boxed{correct} \\boxed{incorrect}")
    scorer = CriticScorer(generator, byte_tokenizer(), FORMATS["thinkprm"])
    assert scorer.score([PROBLEM], [["Step 1: a", "b", "c"]]) == [[1.0, 0.0, 0.0]]
    assert "[Solution]\n\nStep 1: a\nStep 2: b\nStep 3: c\n\nReview and" in generator.prompts[0]
    assert generator.prompts[0].endswith("<|im_start|>assistant\n\nLet's verify step by step:")


# --- GenPRM ------------------------------------------------------------


def constant_model(logits: dict[str, float]) -> LlamaForCausalLM:
    """A model with the same next-token logits everywhere: `logits` for these tokens, 0 for all others."""
    tokenizer = byte_tokenizer()
    config = config_of(LlamaConfig, tokenizer, tie_word_embeddings=False)
    config.max_position_embeddings = 4096
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for token, value in logits.items():
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token), 0] = value
    return model


@pytest.mark.parametrize(("verdict", "other"), [("Yes}", "No}"), ("No}", "Yes}")])
def test_genprm_scores_the_probability_of_yes(verdict, other) -> None:
    model, tokenizer = constant_model({verdict: 9.0, other: 7.0}), byte_tokenizer()
    spec = FORMATS["genprm"].model_copy(update={"max_new_tokens": 12, "samples": 2})
    scorer = GenPRMScorer(HFGenerator(model, tokenizer), tokenizer, spec)
    total = math.exp(9) + math.exp(7) + model.config.vocab_size - 2
    p = math.exp(9) / total
    expected = p if verdict == "Yes}" else 1 - p
    rows = scorer.score([PROBLEM, PROBLEM, "x"], [STEPS, [], ["one"]])
    assert [len(row) for row in rows] == [3, 0, 1]
    assert [*rows[0], *rows[2]] == pytest.approx([expected] * 4, abs=1e-4)


def test_genprm_runs_code_through_what_it_is_given_and_shows_what_it_printed() -> None:
    def answer(prompt: str, k: int) -> str:
        if prompt.endswith("```python\n"):
            return f"print({prompt.count('<output>')})"
        return "{unclear}" if prompt.endswith("\\boxed") else "It seems fine."

    ran = []
    generator = Scripted(answer)
    scorer = GenPRMScorer(
        generator, byte_tokenizer(), FORMATS["genprm"], run_code=lambda code: ran.append(code) or f"<{code}>"
    )
    assert scorer.score([PROBLEM], [STEPS[:2]]) == [[0.5, 0.5]]  # no verdict either way
    assert ran == ["print(0)", "print(1)"]
    verdict = [prompt for prompt in generator.prompts if prompt.endswith("\\boxed")][1]
    assert "Question: What is 2 + 3?\n\nIt is 5.<|im_end|>" in verdict  # the first turn holds the problem
    assert "\\boxed{unclear}</output>\n<|im_end|>\n<|im_start|>user\nSo 5.<|im_end|>" in verdict
    assert "Let's analyze the Paragraph 2 step by step: It seems fine.</analyze>\n<verify>" in verdict
    assert "print(1)\n```\n[Code Output]\n\n```\n<print(1)>\n```\n</verify>\n<output>" in verdict


def test_without_a_sandbox_no_code_is_asked_for(caplog) -> None:
    generator = Scripted(lambda prompt, k: "fine")
    scorer = GenPRMScorer(generator, byte_tokenizer(), FORMATS["genprm"])
    assert "its code step is left out" in caplog.text
    scorer.score([PROBLEM], [STEPS[:1]])
    assert not any("```python" in prompt for prompt in generator.prompts)


def test_a_critic_loads_like_any_other_format(tmp_path) -> None:
    model, tokenizer = constant_model({"Yes}": 9.0}), byte_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    spec = FORMATS["genprm"].model_copy(update={"max_new_tokens": 8})
    scorer = load_scorer(tmp_path, spec, make_generator=lambda m, t: HFGenerator(m, t))
    assert scorer.score([PROBLEM], [STEPS])[0][0] > 0.9
