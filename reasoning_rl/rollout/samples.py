"""What every generator shares: how a prompt becomes token ids, and sampled ids a Sample."""

import hashlib
from collections.abc import Sequence
from typing import Any

from data.errors import UserError
from data.schema import Sample, Sampling
from data.steps import decode


def check_tokenizer(tokenizer: Any) -> None:
    """Raise UserError for a tokenizer without an end-of-sequence token."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the policy's tokenizer has no end-of-sequence token, so no answer could ever end; "
            "set tokenizer.eos_token and save it again"
        )


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids with one BOS where the tokenizer has any (a chat template writes its own), and no EOS.

    Raises UserError for an empty prompt.
    """
    bos, eos = tokenizer.bos_token, tokenizer.eos_token_id
    own = bool(bos) and all(prompt.startswith(bos) for prompt in prompts)
    encoded = tokenizer(list(prompts), add_special_tokens=not own)["input_ids"]
    encoded = [ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids for ids in encoded]
    for i, ids in enumerate(encoded):
        if not ids:
            raise UserError(f"prompt {i} is empty: there is nothing to continue")
    return encoded


def make_sample(
    tokenizer: Any,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    sampling: Sampling,
    version: int,
) -> Sample:
    """Return the sample of these tokens; its text ends before the first stop string."""
    text = decode(tokenizer, token_ids)
    stops = [text.find(stop) for stop in sampling.stop if stop in text]
    ended = bool(stops) or (len(token_ids) > 0 and token_ids[-1] == tokenizer.eos_token_id)
    return Sample(
        prompt_ids=tuple(prompt_ids),
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        text=text[: min(stops)] if stops else text,
        finish_reason="stop" if ended else "length",
        version=version,
    )


def too_long(prompt_ids: Sequence[int], sampling: Sampling, version: int) -> list[Sample]:
    """The samples of a prompt that leaves no room in the context: cut before their first token."""
    return [Sample(tuple(prompt_ids), (), (), "", "length", version)] * sampling.n


def request_seed(seed: int, call: int, index: int) -> int:
    """A 62-bit seed for prompt `index` of the generator's `call`-th call: streams that never meet."""
    digest = hashlib.blake2b(f"{seed}/{call}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
