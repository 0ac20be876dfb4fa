"""Shared by the RL tests: a tiny random policy over the arithmetic world, and an exact scorer."""

from collections.abc import Sequence
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from transformers import Qwen2Config, Qwen2ForCausalLM

from data.arithmetic import judge_steps, label_solution, make_problems
from data.schema import Problem, Verdict
from data.world_tokenizer import word_tokenizer
from prm.fit import FitConfig, fit
from reasoning_rl.sft import NextToken, encode_pairs
from reasoning_rl.telemetry import RunLog


def tiny_policy(tokenizer: Any, seed: int = 0, hidden: int = 32) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


@cache
def _taught(hidden: int) -> tuple[Any, dict[str, torch.Tensor]]:
    tokenizer, problems = world(1600, seed=11)
    model = tiny_policy(tokenizer, hidden=hidden)
    pairs = encode_pairs(tokenizer, [(f"{p.text}\n", p.solution) for p in problems])
    with TemporaryDirectory() as folder:
        config = FitConfig(learning_rate=1e-2, batch_size=16)
        accelerator = Accelerator(cpu=True)
        fit(model, pairs, NextToken(), config, accelerator=accelerator, run_dir=folder, log=RunLog(folder))
    return tokenizer, model.state_dict()


def taught_policy(hidden: int = 48) -> tuple[Any, Qwen2ForCausalLM]:
    """A policy that knows the form of a solution, ends it, and mostly computes it wrong."""
    tokenizer, state = _taught(hidden)
    model = tiny_policy(tokenizer, hidden=hidden)
    model.load_state_dict(state)
    return tokenizer, model.eval()


class OracleScorer:
    """A StepScorer that knows: 1 while every step so far is right, 0 afterwards."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = {p.text: p for p in problems}

    def score(self, problems: Sequence[str], solutions: Sequence[Sequence[str]]) -> list[list[float | None]]:
        out: list[list[float | None]] = []
        for text, steps in zip(problems, solutions, strict=True):
            right = True
            row: list[float | None] = []
            for verdict in judge_steps(self.problems[text], steps):
                right = right and verdict == "right"
                row.append(float(right))
            out.append(row)
        return out


def oracle_grader(problem: Problem, response: str) -> Verdict:
    return Verdict("correct" if label_solution(problem, response).answer_correct else "wrong")


def world(count: int = 64, seed: int = 0) -> tuple[Any, list[Problem]]:
    return word_tokenizer(), make_problems(count, seed, split="train")
