"""Shared by the tests that start vLLM: a tiny model in a folder, logprobs from a forward over the text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rl_world import world
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from data.schema import Sample
from prm.checkpoint import save_model


def sharp_policy(tokenizer: Any, *, tied: bool, hidden: int = 64, seed: int = 0) -> Qwen2ForCausalLM:
    """A random model whose distributions are far from uniform, so that every weight shows in them."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


def saved_policy(folder: Path, *, tied: bool, **options: Any) -> tuple[Any, PreTrainedModel, str]:
    """Return (tokenizer, model, its folder)."""
    tokenizer, _ = world(1)
    model = sharp_policy(tokenizer, tied=tied, **options)
    save_model(folder, model, tokenizer)
    return tokenizer, model, str(folder)


def prompts_of(count: int) -> list[str]:
    return [f"{problem.text}\n" for problem in world(count)[1]]


def mismatch(model: PreTrainedModel, samples: Sequence[Sample], *, temperature: float = 1.0) -> float:
    """Largest difference between the samples' logprobs and those of a forward in float64 afterwards."""
    worst = 0.0
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.token_ids]])
        with torch.no_grad():
            logprobs = (model(ids).logits[0, :-1].double() / temperature).log_softmax(-1)
        begin = len(sample.prompt_ids)
        expected = logprobs[begin - 1 :].gather(1, ids[0, begin:, None]).squeeze(1)
        worst = max(worst, (expected - torch.tensor(sample.logprobs).double()).abs().max().item())
    return worst


def perturb(model: PreTrainedModel, group: str) -> int:
    """Move the weights whose names contain `group`; return how many there are."""
    found = [p for name, p in model.named_parameters() if group in name]
    with torch.no_grad():
        for parameter in found:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(group)))
            parameter.add_(0.3 * parameter.std().clamp(min=0.1) * noise)
    return len(found)
