"""Reading next-token logits in chunks: the plain values and gradients, and never all logits at once."""

import copy

import pytest
import torch
from rl_world import tiny_policy, world
from torch import Tensor

from prm import next_token
from prm.next_token import read_next_tokens
from reasoning_rl.functional import entropy, token_logprobs

CHUNK = 8


def read(logits: Tensor, token_ids: Tensor) -> tuple[Tensor, ...]:
    return token_logprobs(logits / 0.7, token_ids), entropy(logits / 0.7)


def batch_of(rows: int, width: int, vocabulary: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(vocabulary, (rows, width))
    target = torch.rand(rows, width) < 0.6
    target[:, 0] = False
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "target_mask": target}


def counted(head: torch.nn.Linear) -> list[int]:
    """Positions of every computation of the head, from now on."""
    calls = []

    def forward(states: Tensor) -> Tensor:
        calls.append(len(states))
        return torch.nn.Linear.forward(head, states)

    head.forward = forward
    return calls


@pytest.fixture
def chunked(monkeypatch) -> None:
    monkeypatch.setattr(next_token, "CHUNK", CHUNK)
    monkeypatch.setattr(next_token, "SMALL", 0)


@pytest.mark.parametrize("head_learns", [True, False])
def test_chunks_give_the_values_and_gradients_of_all_logits(chunked, head_learns: bool) -> None:
    model = tiny_policy(world(1)[0]).double()
    model.get_output_embeddings().weight.requires_grad_(head_learns)
    plain = copy.deepcopy(model)
    batch = batch_of(3, 15, model.config.vocab_size)
    logprobs, entropies = read_next_tokens(model, batch, read)
    ids, mask = batch["input_ids"], batch["target_mask"]
    table = (plain(ids).logits[:, :-1] / 0.7).log_softmax(-1)  # (B, T-1, V)
    expected = table.gather(-1, ids[:, 1:, None]).squeeze(-1)[mask[:, 1:]]
    spread = -(table.exp() * table).sum(-1)[mask[:, 1:]]
    assert logprobs.dtype == torch.float64 and len(logprobs) > 2 * CHUNK
    torch.testing.assert_close(logprobs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropies, spread, rtol=1e-12, atol=1e-12)
    weights = torch.randn(2, len(logprobs), dtype=torch.float64)
    (logprobs @ weights[0] + entropies @ weights[1]).backward()
    (expected @ weights[0] + spread @ weights[1]).backward()
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (parameter.grad is None) == (other.grad is None), name
        if other.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_no_more_than_a_chunk_of_logits_exists_and_none_is_kept_for_the_backward(chunked) -> None:
    model = tiny_policy(world(1)[0])
    vocabulary = model.config.vocab_size
    calls, hooked, kept = counted(model.lm_head), [], []
    model.lm_head.register_forward_hook(lambda *_: hooked.append(1))
    batch = batch_of(4, 30, vocabulary)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logprobs, entropies = read_next_tokens(model, batch, read)
    (logprobs.sum() + entropies.sum()).backward()
    num_chunks = -(-len(logprobs) // CHUNK)
    assert num_chunks > 4 and max(calls) == CHUNK
    assert len(calls) == 2 * num_chunks  # each once more in the backward
    assert len(hooked) == 1  # engines that gather weights around a call do so as often on every process
    again = model.lm_head(torch.zeros(1, model.config.hidden_size))
    assert again.shape == (1, vocabulary) and len(hooked) == 2  # the head is itself again
    width = model.config.hidden_size  # of the head's weight, which may be kept the other way round
    assert not [shape for shape in kept if shape[-1:] == (vocabulary,) and shape != (width, vocabulary)]


def test_few_logits_are_kept_as_they_are() -> None:
    """At a small vocabulary a second pass through the head costs more than the memory is worth."""
    model = tiny_policy(world(1)[0])
    calls = counted(model.lm_head)
    batch = batch_of(30, 90, model.config.vocab_size)
    logprobs, _ = read_next_tokens(model, batch, read)
    logprobs.sum().backward()
    assert len(logprobs) > next_token.CHUNK and calls == [len(logprobs)]
