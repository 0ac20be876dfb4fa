"""What a vLLM engine in this process and one behind HTTP share: arguments, sampling parameters, faults."""

import hashlib
import importlib.util
import logging
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from data.schema import Sampling
from reasoning_rl.rollout.settings import EngineConfig

WORKER_EXTENSION = "reasoning_rl.rollout.vllm_worker.WeightReceiver"
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    # Binding threads to cores would bind the trainer's as well.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Set for an engine where the user has not."""

OUT_OF_MEMORY = (
    "No available memory for the cache blocks",
    "larger than the maximum number of tokens that can be stored in KV cache",
    "to serve at least one request with the models's max seq len",
    "KV cache is needed, which is larger than the available KV cache memory",
    "is less than requested memory for kv",
    "is less than desired",
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
)


def require_vllm(what: str) -> None:
    """Raise UserError when vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            f"{what} needs vLLM, which is not installed: pip install 'stepwell[vllm]' "
            "(without a GPU: see docs/rollouts.md), or use backend hf"
        )


def has_gpu() -> bool:
    """Return whether engines run on a GPU; STEPWELL_DEVICE=cpu keeps them from it."""
    return torch.cuda.is_available() and os.environ.get("STEPWELL_DEVICE") != "cpu"


def set_environment() -> None:
    """Set vLLM's environment variables, those that the user left unset, before vLLM is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Remarks of vLLM's and torch's authors to one another.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)


def engine_arguments(
    config: EngineConfig, model: str, *, tokenizer: str, max_model_len: int | None
) -> dict[str, Any]:
    """Return vLLM's engine arguments; the names are those of `vllm.LLM` and, with dashes, of its server."""
    gpu = has_gpu()
    arguments: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "dtype": config.dtype if config.dtype != "auto" else ("bfloat16" if gpu else "float32"),
        "max_num_seqs": config.max_num_seqs,
        "max_model_len": max_model_len,
        "enforce_eager": not gpu if config.enforce_eager is None else config.enforce_eager,
        "tensor_parallel_size": config.tensor_parallel,
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False,
        # Logprobs of the distribution that was sampled from: after temperature, top-p and top-k.
        "logprobs_mode": "processed_logprobs",
        # The model folder's generation_config.json must not change what was asked for.
        "generation_config": "vllm",
        "worker_extension_cls": WORKER_EXTENSION,
        "weight_transfer_config": {"backend": config.sync},
    }
    if gpu:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
        arguments["enable_sleep_mode"] = config.sleep
    else:
        # A prompt prefilled in pieces rewinds its request's random generator, which CPU generators cannot.
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(4096, max_model_len or 0)
    if config.kv_gib is not None or not gpu:
        arguments["kv_cache_memory_bytes"] = int((config.kv_gib or 2.0) * 2**30)
    return arguments


def save_tokenizer(tokenizer: Any) -> tempfile.TemporaryDirectory[str]:
    """A folder with the tokenizer and not its model, for the engine to read.

    Beside the model's config.json, transformers may take the architecture's usual tokenizer class over the
    saved one, and stop strings would be looked for in other text.
    """
    folder = tempfile.TemporaryDirectory(prefix="stepwell-tokenizer-")
    tokenizer.save_pretrained(folder.name)
    # vLLM reads a config beside a tokenizer, and waits and tries again where there is none; this type is one
    # that leaves the saved class alone.
    Path(folder.name, "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    return folder


def context_of(config: EngineConfig, model_config: Any) -> int | None:
    """Tokens of prompt and response together: the model's context, or less where settings say so."""
    own = getattr(model_config, "max_position_embeddings", None)
    asked = config.max_model_len
    if own is None or asked is None:
        return asked or own
    if asked > own:
        raise UserError(f"max_model_len {asked} is beyond the model's context of {own}; lower it")
    return asked


def sampling_arguments(sampling: Sampling, *, eos: int, room: int, seed: int) -> dict[str, Any]:
    """Return the fields of vllm.SamplingParams, and of an HTTP completion request, for one prompt.

    room: tokens left in the context behind the prompt. The end token is named explicitly: a model folder may
    name others, and what ends an answer must not depend on the engine.
    """
    return {
        "n": sampling.n if sampling.temperature else 1,  # greedy samples are all the same: one is drawn
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": min(sampling.max_new_tokens, room),
        "stop": list(sampling.stop),
        "stop_token_ids": [eos],
        "ignore_eos": True,
        "seed": seed,
        "logprobs": 0,
        "skip_special_tokens": True,
    }


def start_error(error_text: str, model: str) -> UserError:
    """What went wrong while an engine started, as one message with its remedy."""
    lines = [line.strip() for line in error_text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\(.*?\) ERROR .*?\] )?[\w.]*(Error|Exception): ", line)]
    last = (errors or lines or ["no message"])[-1]
    if any(sign in error_text for sign in OUT_OF_MEMORY):
        where = next((x for x in error_text.splitlines() if any(s in x for s in OUT_OF_MEMORY)), last)
        return UserError(
            f"vLLM ran out of memory while starting {model}: {where.strip()[-300:]}\n"
            "lower max_model_len or max_num_seqs; change kv_gib (GiB of its cache) or, on a GPU, "
            "gpu_memory_utilization"
        )
    remedy = ""
    if "root cause above" in last:  # of an engine in a process of its own
        remedy = (
            "\nits own message stands above; where that is about memory: lower max_model_len or "
            "max_num_seqs, change kv_gib or gpu_memory_utilization"
        )
    return UserError(f"vLLM did not start {model}: {last[-400:]}{remedy}")


def fingerprint(folder: str) -> str:
    """A digest of a model folder's safetensors files: sizes, headers, and a sample of each one's bytes.

    Empty where there are none. Not proof against forgery: it tells one training run's weights from another's.
    """
    digest = hashlib.blake2b(digest_size=8)
    files = sorted(Path(folder).glob("*.safetensors"))
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            for part in range(16):
                stream.seek(size * part // 16)
                digest.update(stream.read(2**16))
    return digest.hexdigest() if files else ""
