"""The quickstart's world in training terms: the small policy, demonstrations, step-labelled samples."""

from random import Random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from data.arithmetic import CORRUPTIONS, Habits, corrupt, demonstrate, label_solution, make_problems
from data.protocols import TextGenerator
from data.schema import Problem, Sampling, StepSolution
from data.settings import Settings
from reasoning_rl.config import Count, Fraction

MAX_NEW_TOKENS = 64


class WorldConfig(Settings):
    """How the quickstart's demonstrations are made, and how large its model is."""

    fewer_as_more: Fraction = 0.75
    """Share of the demonstrations' "fewer than" steps solved with +: the main bad habit."""
    times_as_more: Fraction = 0.4
    """Share of the "times as many" steps solved with +."""
    slip: Fraction = 0.0
    """Share of results off by one."""
    hidden_size: Count = 128
    num_layers: Count = 3

    @property
    def habits(self) -> Habits:
        return Habits(self.fewer_as_more, self.times_as_more, self.slip)


def new_policy(tokenizer: Any, config: WorldConfig, seed: int) -> PreTrainedModel:
    """Return a fresh decoder (0.64 M parameters by default) for the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=3 * config.hidden_size,
            num_hidden_layers=config.num_layers,
            # The usual 0.02 suits widths in the thousands: at 128 it takes half as long again to learn.
            initializer_range=config.hidden_size**-0.5,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )


def prompt(text: str) -> str:
    """The policy's prompt: the problem and a newline, as in data.prompts' "plain"."""
    return f"{text}\n"


def demonstrations(count: int, seed: int, habits: Habits) -> list[tuple[str, str]]:
    """Return (prompt, response) pairs with mistakes at the given rates."""
    rng = Random(f"demonstrations {seed}")
    problems = make_problems(count, seed, split="train")
    return [(prompt(p.text), demonstrate(p, rng, habits)) for p in problems]


def labelled_samples(generator: TextGenerator, problems: list[Problem]) -> list[StepSolution]:
    """Sample one response a problem at temperature 1 and label its steps by the exact oracle."""
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, temperature=1.0)
    drawn = generator.generate([prompt(p.text) for p in problems], sampling)
    return [label_solution(p, samples[0].text) for p, samples in zip(problems, drawn, strict=True)]


SYNTHETIC_HABITS = Habits(confusion=0.2, slip=0.1)


def labelled_corruptions(count: int, seed: int) -> list[StepSolution]:
    """Return synthetic labelled solutions: mistakes that a fresh policy rarely makes, but may come to.

    A PRM that only saw the policy's own habit (adding) never learned that subtracting can be wrong too, and
    PPO finds that out at once: its score rises while the answers get worse. So half of these are wrong in any
    operation, with later steps following consistently, and half carry one planted corruption of any kind.
    """
    rng = Random(f"corruptions {seed}")
    out = []
    for i, problem in enumerate(make_problems(count, seed, split="train")):
        kind = CORRUPTIONS[(i // 2) % len(CORRUPTIONS)]
        text = demonstrate(problem, rng, SYNTHETIC_HABITS) if i % 2 else corrupt(problem, rng, kind)
        out.append(label_solution(problem, text))
    return out
