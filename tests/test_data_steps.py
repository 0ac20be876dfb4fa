"""Step boundaries: any text, several kinds of tokenizer, token ids a model may sample rather than encode."""

from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data.steps import (
    JOINER,
    decode,
    join_steps,
    split_steps,
    step_end_tokens,
    step_texts,
    token_char_ends,
)

PROPERTY = settings(max_examples=100, deadline=None)
SENTENCES = [
    "First we add the two numbers.\n\nThen we halve the sum.\n\nSo the answer is 12.\n\n",
    "Step 1: take 3 apples.\nStep 2: eat 1.\nStep 3: 2 remain.\n# Answer: 2\n",
    "If x + 4 = 9.\n\nThen x = 5, naïve café prices in € rise.\n\n",
] * 8
TEXTS = st.lists(
    st.sampled_from(["\n", "\n\n", ".\n\n", "\r\n", " ", "\t", "\u3000", "\u2028", "Step 1: ", "Step 2. "])
    | st.sampled_from(["the answer", "12", "naïve", "€", "🙂", "👩‍👧", "e\u0301", "\ufffd", "</s>", "x = 5."])
    | st.text(max_size=5),
    max_size=12,
).map("".join)
SPLITTERS = ("newline", "blank_line", "step_marker")


# --- text to spans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splitter", "text", "steps"),
    [
        ("newline", "", []),
        ("newline", " \n\t\n ", []),
        ("newline", "one giant step", ["one giant step"]),
        ("newline", "\n\na \n\n\n  b\r\nc\n", ["a", "b", "c"]),
        ("blank_line", "a\nb\n\n\n\nc\n \t\nd", ["a\nb", "c", "d"]),
        ("blank_line", "a\r\n\r\nb", ["a", "b"]),
        ("step_marker", "Step 1: a\nb\n\nStep 2: c\nStep 10. d", ["Step 1: a\nb", "Step 2: c", "Step 10. d"]),
        ("step_marker", "Let us see.\nStep 1: a\nStep 2: b", ["Let us see.\nStep 1: a", "Step 2: b"]),
        ("step_marker", "\n\nStep 1: a\nStep 2: b", ["Step 1: a", "Step 2: b"]),
        ("step_marker", "## Step 1: a\n**Step 2:** b\n", ["## Step 1: a", "**Step 2:** b"]),
        ("step_marker", "no marker\nat all; Step 2: is inside", ["no marker\nat all; Step 2: is inside"]),
    ],
)
def test_named_texts_split_as_written_by_hand(splitter, text, steps):
    assert step_texts(text, splitter) == steps


@pytest.mark.parametrize("splitter", SPLITTERS)
@PROPERTY
@given(text=TEXTS)
def test_spans_are_ordered_disjoint_trimmed_and_cover_all_but_white_space(splitter, text):
    spans = split_steps(text, splitter)
    reached = 0
    for start, end in spans:
        assert reached <= start < end <= len(text)
        assert not text[start].isspace() and not text[end - 1].isspace()
        assert not text[reached:start].strip()
        reached = end
    assert not text[reached:].strip()


@pytest.mark.parametrize(("splitter", "separator"), [("newline", "\n"), ("blank_line", "\n\n")])
@PROPERTY
@given(text=TEXTS)
def test_no_step_holds_a_separator_and_adjacent_steps_have_one_between(splitter, separator, text):
    spans = split_steps(text, splitter)
    assert not any(separator in text[start:end] for start, end in spans)
    for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
        assert text[end:start].count("\n") >= len(separator)


@pytest.mark.parametrize("splitter", SPLITTERS)
@PROPERTY
@given(text=TEXTS)
def test_joined_steps_split_into_the_same_steps(splitter, text):
    steps = step_texts(text, splitter)
    assert step_texts(JOINER[splitter].join(steps), splitter) == steps


@PROPERTY
@given(problem=TEXTS, steps=st.lists(TEXTS, max_size=4), joiner=st.sampled_from(["\n", "\n\n", " ки\n"]))
def test_join_steps_points_at_each_step_in_the_joined_text(problem, steps, joiner):
    text, spans = join_steps(problem, steps, joiner)
    assert text == joiner.join([problem, *steps]) + joiner
    assert [text[start:end] for start, end in spans] == steps


# --- spans to tokens -------------------------------------------------------------------------------------


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE that lets punctuation take the line breaks after it, so ".\\n\\n" becomes one token."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?[^\s\p{L}\p{N}]+[\r\n]*| ?\p{L}+|\p{N}|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrap(tokenizer)


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """SentencePiece BPE as Llama 2 has it: a space before the text, unknown characters as <0xXX> bytes."""
    prepend = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence(prepend)
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    trained.train_from_iterator(SENTENCES, trainer)
    kept = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *(token for token, _ in kept)]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [(a, b) for a, _ in kept for b, _ in kept if a + b in vocab]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(prepend)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


@cache
def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece Unigram with Metaspace; what it does not know is <unk> and decodes to nothing."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrap(tokenizer)


@cache
def characters() -> PreTrainedTokenizerFast:
    """One token a character; unknown ones decode to nothing."""
    tokens = ["<unk>", *sorted(set("".join(SENTENCES)) | set("🙂\u3000\u2028\ufffd\t\r"))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return wrap(tokenizer)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


KINDS = {f.__name__: f for f in (byte_level, byte_fallback, unigram, characters)}


@cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}


@cache
def token_bytes(kind: str) -> list[bytes]:
    """The UTF-8 bytes of every token, read off the vocabulary; special tokens have none."""
    tokenizer = KINDS[kind]()
    table = []
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if index in tokenizer.all_special_ids:
            table.append(b"")
        elif kind == "byte_level":
            table.append(bytes(byte_of_character()[character] for character in token))
        elif kind == "byte_fallback" and token.startswith("<0x"):
            table.append(bytes([int(token[3:5], 16)]))
        else:
            table.append((token if kind == "characters" else token.replace("▁", " ")).encode())
    return table


def ends_from_bytes(kind: str, ids: list[int], text: str, spans: list[tuple[int, int]]) -> list[int | None]:
    """By the definition: the first token after which every byte up to the step's last character is there."""
    pieces = [token_bytes(kind)[i] for i in ids]
    whole = b"".join(pieces)
    dropped = len(whole) - len(text.encode())
    assert whole[dropped:] == text.encode() and whole[:dropped].strip() == b""
    ends = []
    for _, end in spans:
        needed = dropped + len(text[:end].encode())
        sizes = (len(b"".join(pieces[: k + 1])) for k in range(len(ids)))
        ends.append(next((k for k, size in enumerate(sizes) if size >= needed), None))
    return ends


def check_step_ends(kind: str, ids: list[int]) -> None:
    """Every splitter, with and without an end-of-sequence token behind the ids."""
    tokenizer = KINDS[kind]()
    text = decode(tokenizer, ids)
    char_ends = token_char_ends(tokenizer, ids)
    assert len(char_ends) == len(ids)
    assert char_ends == sorted(char_ends)
    assert token_char_ends(tokenizer, [*ids, tokenizer.eos_token_id], text) == [*char_ends, len(text)]
    for splitter in SPLITTERS:
        spans = split_steps(text, splitter)
        assert step_end_tokens(spans, char_ends) == ends_from_bytes(kind, ids, text, spans)


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(text=TEXTS)
def test_the_tokenizers_own_encoding_ends_steps_at_the_token_of_their_last_character(kind, text):
    check_step_ends(kind, KINDS[kind]()(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(pieces=st.lists(TEXTS, max_size=5))
def test_ids_no_encoder_would_give_end_steps_at_the_token_of_their_last_character(kind, pieces):
    # A policy samples tokens one by one: pieces encoded apart give the same text in other tokens.
    tokenizer = KINDS[kind]()
    check_step_ends(
        kind, [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    )


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@PROPERTY
@given(text=TEXTS, cut=st.integers(0, 20))
@example(text="\ufffd\ufffd\na\ufffd", cut=9)
def test_tokens_that_are_single_bytes_complete_a_character_with_its_last_byte(kind, text, cut):
    byte_ids = {piece: i for i, piece in reversed(list(enumerate(token_bytes(kind)))) if len(piece) == 1}
    if kind == "byte_fallback":
        vocab = KINDS[kind]().get_vocab()
        byte_ids = {bytes([byte]): vocab[f"<0x{byte:02X}>"] for byte in range(256)}
    ids = [byte_ids[bytes([byte])] for byte in text.encode()]
    canonical = KINDS[kind]()(text[cut:], add_special_tokens=False)["input_ids"]
    check_step_ends(kind, ids)
    check_step_ends(kind, [byte_ids[bytes([byte])] for byte in text[:cut].encode()] + canonical)


@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(data=st.data())
def test_random_ids_even_invalid_utf8_complete_each_character_when_a_prefix_first_shows_it(kind, data):
    tokenizer = KINDS[kind]()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    text = decode(tokenizer, ids)
    char_ends = token_char_ends(tokenizer, ids)
    assert char_ends == sorted(char_ends)
    assert not ids or char_ends[-1] == len(text)
    prefixes = [decode(tokenizer, ids[: k + 1]) for k in range(len(ids))]
    for end in range(1, len(text) + 1):
        # U+FFFD shows both what is broken and what is not finished: no prefix tells which.
        if "\ufffd" not in text[:end]:
            first = next(k for k, prefix in enumerate(prefixes) if prefix.startswith(text[:end]))
            assert step_end_tokens([(0, end)], char_ends) == [first]


def test_a_separator_merged_into_the_full_stop_puts_the_step_end_on_the_merged_token():
    tokenizer = byte_level()
    ids = tokenizer("So 1.\n\nThen 2.\n\n")["input_ids"]
    tokens = [decode(tokenizer, [i]) for i in ids]
    assert tokens.count(".\n\n") == 2
    spans = split_steps(decode(tokenizer, ids), "blank_line")
    ends = step_end_tokens(spans, token_char_ends(tokenizer, ids))
    assert ends == [tokens.index(".\n\n"), len(tokens) - 1]


def test_a_text_cut_at_a_stop_string_leaves_the_tokens_after_it_without_characters():
    tokenizer = byte_level()
    ids = tokenizer("Then 5.\n\nThen 7. STOP it")["input_ids"]
    whole = token_char_ends(tokenizer, ids)
    text = "Then 5.\n\nThen 7."
    cut = token_char_ends(tokenizer, ids, text)
    assert cut == [min(end, len(text)) for end in whole]


def test_a_step_that_no_token_completes_has_no_end_token():
    assert step_end_tokens([(0, 3), (4, 9)], [2, 3, 5]) == [1, None]
    assert step_end_tokens([(0, 3)], []) == [None]


def test_a_chat_marker_that_is_special_but_unnamed_completes_nothing():
    tokenizer = Tokenizer.from_str(characters().backend_tokenizer.to_str())
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer = wrap(tokenizer)
    ids = tokenizer("x = 5.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 7
    assert token_char_ends(tokenizer, ids) == [1, 2, 3, 4, 5, 6, 6]


def test_other_ids_of_the_same_number_do_not_take_the_encoders_offsets():
    vocab = {"<unk>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "b"), ("b", "c")]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer = wrap(tokenizer)
    assert tokenizer("abc")["input_ids"] == [4, 3]
    assert token_char_ends(tokenizer, [4, 3]) == [2, 3]
    assert token_char_ends(tokenizer, [1, 5]) == [1, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_no_encoder_would_give_take_time_in_proportion_to_their_number(kind):
    tokenizer = KINDS[kind]()
    decoded = 0

    class Counting:
        all_special_ids = tokenizer.all_special_ids

        def decode(self, ids, **options):
            nonlocal decoded
            decoded += len(ids)
            return tokenizer.decode(ids, **options)

    word = [i for letter in " naïve € cafe" for i in tokenizer(letter, add_special_tokens=False)["input_ids"]]
    ends = token_char_ends(Counting(), word * 100)
    assert ends[-1] == len(decode(tokenizer, word * 100))
    assert decoded < 12 * 100 * len(word)
