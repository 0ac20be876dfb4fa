"""Tokenizers for the built-in worlds, made of their vocabularies: nothing is downloaded."""

from typing import Any

from data import programs
from data.arithmetic import vocabulary


def word_tokenizer() -> Any:
    """Return a PreTrainedTokenizerFast with one token for each word or number, its leading space included.

    Any text of the world round-trips exactly; anything else becomes <unk>. Whole-number tokens let a model of
    half a million parameters learn the arithmetic in minutes, where digits take far longer to learn carries.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pieces = [piece for word in vocabulary() for piece in (word, f" {word}")]
    tokens = ["<unk>", "<pad>", "<eos>", "\n", *pieces]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[^\s.?]+| ?[.?]"), behavior="isolated")
    return _wrap(tokenizer)


def program_tokenizer() -> Any:
    """Return the PreTrainedTokenizerFast of the world of programs: one token for each word, number and sign,
    its leading space included, and for each depth of indentation. Texts of the world round-trip exactly."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pieces = [piece for word in programs.vocabulary() for piece in (word, f" {word}")]
    tokens = ["<unk>", "<pad>", "<eos>", "\n", "    ", "        ", *pieces]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    pattern = Regex(r"\n|(?: {4})+(?! )| ?(?:[A-Za-z_]+|\d+|[=<>]=|//|[^\sA-Za-z_\d])")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    return _wrap(tokenizer)


def character_tokenizer() -> Any:
    """Return a PreTrainedTokenizerFast with one token a character: a tokenizer unlike any reward model's."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    characters = sorted(set("".join(vocabulary())) | {" ", "\n"})
    tokens = ["<unk>", "<pad>", "<eos>", *characters]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    return _wrap(tokenizer)


def byte_bpe_tokenizer(texts: list[str], vocab_size: int = 600) -> Any:
    """Return a byte-level BPE PreTrainedTokenizerFast trained on `texts`: most models' kind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrap(tokenizer)


def _wrap(tokenizer: Any) -> Any:
    from tokenizers import decoders
    from transformers import PreTrainedTokenizerFast

    if tokenizer.decoder is None:
        tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )
