"""Tiny random models of every published architecture, in folders, with tokenizers that hold the tags."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MistralForTokenClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)

from prm.formats import load_scorer
from prm.formats.registry import FORMATS

TEXTS = [
    "Add 2 and 3.\n\nIt is 5.\n\nSo 5.\n\nThe answer is 4.\nStep 1: a ки\nStep 2: b ки\n + - и",
    *["So \n\n\n\nSo \n\n\n\n\nSo"] * 9,
    "# Question\n\nWhat is 2 + 3?\n\n# Solution\n\nQuestion:\nAnswer:\nHuman: Assistant:",
] * 4
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<s>{% for m in messages %}<|head|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
)
TAGS = ["<extra_0>", "[PRM]", " ки", " и", "ки"]
TAGS += ["<|im_start|>", "<|im_end|>", "<|head|>", "<|end|>", "<|eot|>"]
LLAMA3_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen cut text into words: white space that ends in line breaks stays in one piece."""
WORDS = [" +", " -", "+", "-", "Yes}", "No}"]

_ROOT = TemporaryDirectory(prefix="formats-")
"""Holds the checkpoints; goes when the tests end."""
PROBLEM = "What is 2 + 3?"
STEPS = ["It is 5.", "So 5.", "The answer is 4."]
WILD = [
    "Two\nlines.",
    "",
    "A tag ки and <extra_0> and [PRM] +",
    "Blank\n\nline",
    "  ünïcödé 数学 ✓ ",
    "\n",
    "<pad> <s> -",
    "Step 3: numbered",
]
"""Steps that shift a reader which looks for its separator."""


@cache
def byte_tokenizer(pad: str = "<pad>", template: str = CHATML, bos: str | None = None) -> Any:
    """Byte-level BPE (Llama 3, Qwen) with the tags as tokens of their own."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, eos_token="<eos>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", *TAGS]})
    tokenizer.add_tokens(WORDS)
    if bos:
        tokenizer.bos_token = bos
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
        )
    tokenizer.chat_template = template
    return tokenizer


@cache
def metaspace_tokenizer(pad: str = "</s>", bos: bool = False) -> Any:
    """SentencePiece's kind (Llama 2, Mistral): a space in front of everything, tags learned as words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", behavior="isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=pad
    )


def config_of(kind: type, tokenizer: Any, **more: Any) -> Any:
    return kind(
        vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.4,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )


ARCHITECTURES: dict[str, tuple[str, Any, Any]] = {
    "math-shepherd": ("causal", MistralForCausalLM, MistralConfig),
    "er-prm": ("causal", LlamaForCausalLM, LlamaConfig),
    "math-psa": ("causal", Qwen2ForCausalLM, Qwen2Config),
    "llama-prm800k": ("causal", LlamaForCausalLM, LlamaConfig),
    "rlhflow-deepseek": ("causal", LlamaForCausalLM, LlamaConfig),
    "llemma": ("causal", LlamaForCausalLM, LlamaConfig),
    "qwen-math-prm": ("two_layer", None, Qwen2Config),
    "trl": ("classifier", Qwen2ForTokenClassification, Qwen2Config),
    "pure": ("classifier", Qwen2ForTokenClassification, Qwen2Config),
    "math-minos": ("classifier", MistralForTokenClassification, MistralConfig),
    "reasoneval-7b": ("score_head", None, MistralConfig),
    "reasoneval-34b": ("score_head", None, LlamaConfig),
    "skywork": ("value_head", None, Qwen2Config),
    "pqm": ("value_head", None, LlamaConfig),
    "actprm": ("ensemble", None, Qwen2Config),
    "rest-mcts": ("vocab_value", MistralForCausalLM, MistralConfig),
    "implicit-prm": ("ratio", LlamaForCausalLM, LlamaConfig),
    "eurus-prm-stage2": ("ratio", Qwen2ForCausalLM, Qwen2Config),
}
"""Format -> how its tiny checkpoint is laid out, its class in transformers (if any), its config."""


def tokenizer_for(name: str) -> Any:
    """The kind of tokenizer that the published model has."""
    if name in ("rest-mcts", "math-minos"):
        return metaspace_tokenizer()
    if name in ("llemma", "reasoneval-34b"):
        return metaspace_tokenizer(bos=True)
    if name == "reasoneval-7b":  # its padding token is its BOS
        return metaspace_tokenizer(pad="<s>", bos=True)
    if name.startswith("rlhflow"):
        return byte_tokenizer(template=LLAMA3, bos="<s>")
    return byte_tokenizer(bos="<s>" if name in ("er-prm", "trl") else None)


@cache
def checkpoint(name: str, tokenizer: Any = None) -> Path:
    """Write the tiny checkpoint of a format and return its folder."""
    layout, kind, config_kind = ARCHITECTURES[name]
    tokenizer = tokenizer or tokenizer_for(name)
    folder = Path(_ROOT.name) / f"{name}{len(list(Path(_ROOT.name).iterdir()))}"
    folder.mkdir()
    torch.manual_seed(len(name))
    labels = 1 if name == "math-minos" else 2
    config = config_of(config_kind, tokenizer, num_labels=labels)
    tokenizer.save_pretrained(folder)
    if layout in ("causal", "classifier"):
        model = kind(config)
        if layout == "classifier":
            torch.nn.init.normal_(model.score.weight)
        model.save_pretrained(folder)
    elif layout == "ratio":
        kind(config).save_pretrained(folder)
        kind(config).save_pretrained(folder / "reference")
    else:
        save_wrapped(folder, layout, config)
    return folder


def save_wrapped(folder: Path, layout: str, config: Any) -> None:
    """Write a checkpoint under the names that its own authors' wrapper class gave the weights."""
    if layout == "vocab_value":
        base = MistralForCausalLM(config)
        weights = {f"base_model.{k}": v for k, v in base.state_dict().items()}
    else:
        base = AutoModel.from_config(config)
        prefix = "pretrained_model.model." if layout == "value_head" else "model."
        weights = {prefix + k: v for k, v in base.state_dict().items()}
    hidden = config.hidden_size
    if layout == "two_layer":
        config.architectures = ["Qwen2ForProcessRewardModel"]
        config.auto_map = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
        shapes = {"score.0.weight": (hidden, hidden), "score.0.bias": (hidden,)}
        shapes |= {"score.2.weight": (2, hidden), "score.2.bias": (2,)}
    elif layout == "value_head":
        config.architectures = ["AutoModelForCausalLMWithValueHead"]
        shapes = {"v_head.summary.weight": (1, hidden), "v_head.summary.bias": (1,)}
    elif layout == "score_head":
        small = config.model_type == "mistral"
        config.architectures = ["ReasonEval_7B" if small else "ReasonEval_34B"]
        shapes = {"score_head.weight": (3, hidden)} | ({} if small else {"score_head.bias": (3,)})
        names = ("score_dimension", "use_bias") if small else ("score_dim", "bias")
        for key, value in zip(names, (3, not small), strict=True):
            setattr(config, key, value)
    elif layout == "ensemble":
        config.architectures = ["Qwen2ForEnsemblePRM"]
        shapes = {}
        for part in ("model", "reg_model"):
            for layer, (rows, columns) in {"nn1": (hidden, 8), "nn2": (8, 8), "nn_out": (8, 1)}.items():
                shapes[f"score.{part}.{layer}.weight"] = (5, rows, columns)
                shapes[f"score.{part}.{layer}.bias"] = (5, columns)
    else:
        shapes = {"LN.weight": (1, config.vocab_size), "LN.bias": (1,)}
    weights |= {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    config.save_pretrained(folder)
    if layout in ("value_head", "vocab_value"):
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")


@cache
def scorer(name: str, **options: Any) -> Any:
    """The format's scorer over its tiny checkpoint."""
    folder = checkpoint(name)
    if FORMATS[name].head == "log_ratio":
        options.setdefault("reference", str(folder / "reference"))
    return load_scorer(folder, name, **options)


def weights_of(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a tiny checkpoint, read without the code under test."""
    folder = checkpoint(name)
    if (folder / "model.safetensors").exists():
        from safetensors.torch import load_file

        return load_file(folder / "model.safetensors")
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def decoder_of(name: str, prefix: str) -> Any:
    """transformers' own decoder with the checkpoint's weights under `prefix`."""
    config = AutoConfig.from_pretrained(checkpoint(name))
    decoder = AutoModel.from_config(config).eval()
    decoder.load_state_dict(
        {k.removeprefix(prefix): v for k, v in weights_of(name).items() if k.startswith(prefix)}
    )
    return decoder
