"""A small decoder from random weights, as the benchmarks on real labels and pairs start from."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from prm.fit import FitConfig, fit
from reasoning_rl.sft import EncodedPair, NextToken

SHOWN = ("train/loss", "train/accuracy", "valid/loss", "valid/accuracy", "valid/step_auc")


def new_decoder(vocabulary: int, max_length: int, **over: Any) -> Starcoder2ForCausalLM:
    """Two layers with dropout: some ten thousand labels do not carry more. over: settings of its config."""
    config = Starcoder2Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max_length,
        residual_dropout=0.2,
        embedding_dropout=0.1,
        sliding_window=None,
        bos_token_id=None,
        tie_word_embeddings=True,
        **{"eos_token_id": None, **over},
    )
    return Starcoder2ForCausalLM(config)


def pretrain(model: Any, texts: Sequence[Sequence[int]], *, epochs: int, seed: int, run_dir: str) -> None:
    """Teach the decoder to predict the text that it will judge, given as token ids."""
    config = FitConfig(
        epochs=epochs,
        batch_size=32,
        learning_rate=4e-3,
        final_lr_ratio=0.1,
        weight_decay=0.01,
        micro_batch_tokens=4096,
        log_every=50,
        save_every=None,
        seed=seed,
    )
    encoded = [EncodedPair(list(ids), prompt_length=0) for ids in texts]
    accelerator = Accelerator(cpu=True)
    fit(model, encoded, NextToken(), config, accelerator=accelerator, run_dir=run_dir, log=Progress("LM"))


class Progress:
    """A MetricLog that prints a line per entry."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def __call__(self, iteration: int, metrics: Mapping[str, float]) -> None:
        shown = {name: round(metrics[name], 4) for name in SHOWN if name in metrics}
        print(f"{self.stage} {iteration}: {shown} ({time.process_time():.0f} CPU s)", flush=True)

    def rewind(self, iteration: int) -> None:
        pass
