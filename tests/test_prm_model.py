import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from data.errors import UserError
from data.world_tokenizer import byte_bpe_tokenizer
from prm.checkpoint import save_model
from prm.model import (
    check_vocabulary,
    encode_solution,
    encode_solutions,
    is_causal,
    is_stepwell_prm,
    load_prm,
    load_tokenizer,
    new_prm,
    pad_right,
    step_logits,
)

CORPUS = ["Add 2 and 3.\n\nIt is 5.\nSo 5.\n", "Half of 8 is 4.\nThe answer is 4.\n"] * 3


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama's: white space as a mark, byte fallback, BOS in front."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)]]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """Like BERT's: drops white space, [CLS] in front, [SEP] behind."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(
            vocab_size=120, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
        ),
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]")


BYTES = byte_bpe_tokenizer(CORPUS, 320)
METASPACE = metaspace_tokenizer()
WORDPIECE = wordpiece_tokenizer()


def config(**changes) -> LlamaConfig:
    values = {
        "vocab_size": 400,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }
    return LlamaConfig(**{**values, **changes})


def random_prm(**changes):
    torch.manual_seed(0)
    prm = new_prm(config(**changes))
    torch.nn.init.normal_(prm.score.weight)
    return prm.eval()


def test_step_ends_by_hand():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({c: i for i, c in enumerate("?ab\n")}, unk_token="?")),
        unk_token="?",
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    # a \n a b \n b \n: the steps "ab" and "b" end at tokens 3 and 5.
    encoded = encode_solution(tokenizer, "a", ["ab", "b"], joiner="\n")
    assert encoded.input_ids == [1, 3, 1, 2, 3, 2, 3]
    assert encoded.step_ends == [3, 5]


TEXT = st.text(alphabet="ab5. é漢😀\n", max_size=8)


@pytest.mark.parametrize("tokenizer", [BYTES, METASPACE], ids=["bytes", "metaspace"])
@settings(max_examples=150, deadline=None)
@given(problem=TEXT, steps=st.lists(TEXT, max_size=4), joiner=st.sampled_from(["\n", "\n\n", " "]))
def test_a_step_ends_at_the_first_token_that_completes_its_text(tokenizer, problem, steps, joiner):
    encoded = encode_solution(tokenizer, problem, steps, joiner=joiner)
    text = problem + joiner
    for step, end in zip(steps, encoded.step_ends, strict=True):
        text += step

        def complete(k, text=text):
            decoded = tokenizer.decode(encoded.input_ids[encoded.input_ids[0] == tokenizer.bos_token_id : k])
            return decoded.startswith(text) and not decoded[len(text) :].startswith("\ufffd")

        if text:
            assert complete(end + 1)
            assert not complete(end)
        text += joiner


def test_white_space_that_a_tokenizer_drops_belongs_to_the_token_before():
    # [CLS] half of 8 ... : a step ending in blanks must not end in the next step.
    encoded = encode_solution(WORDPIECE, "Half of 8", ["is 4.  ", "", "So 5."], joiner="\n")
    tokens = WORDPIECE.convert_ids_to_tokens(encoded.input_ids)
    assert [tokens[end] for end in encoded.step_ends] == [".", ".", "."]
    assert encoded.step_ends[0] == encoded.step_ends[1] < encoded.step_ends[2]


def test_bos_is_added_once_and_nothing_stands_behind_the_text():
    encoded = encode_solution(METASPACE, "Add 2", ["It is 5."], joiner="\n")
    assert encoded.input_ids.count(METASPACE.bos_token_id) == 1
    assert encoded.input_ids[0] == METASPACE.bos_token_id
    assert encode_solution(WORDPIECE, "Add", ["5."], joiner="\n").input_ids[-1] != WORDPIECE.sep_token_id


def test_truncation_gives_none_and_moves_no_other_step():
    steps = ["It is 5.", "So 5.", "The answer is 4."]
    whole = encode_solution(BYTES, "Add 2 and 3.", steps, joiner="\n")
    for limit in range(1, len(whole) + 2):
        cut = encode_solution(BYTES, "Add 2 and 3.", steps, joiner="\n", max_length=limit)
        assert cut.input_ids == whole.input_ids[:limit]
        assert cut.step_ends == [end if end < limit else None for end in whole.step_ends]


def test_batched_encoding_equals_single():
    problems, solutions = ["Add 2", "", "8?"], [["It is 5."], [], ["a", "", "b"]]
    batch = encode_solutions(METASPACE, problems, solutions, joiner="\n\n", ids=["x", "y", "z"])
    for problem, steps, encoded in zip(problems, solutions, batch, strict=True):
        single = encode_solution(METASPACE, problem, steps, joiner="\n\n")
        assert (encoded.input_ids, encoded.step_ends) == (single.input_ids, single.step_ends)
    assert [encoded.id for encoded in batch] == ["x", "y", "z"]


def test_a_new_prm_copies_the_backbone_and_scores_one_half():
    lm = LlamaForCausalLM(config())
    prm = new_prm(lm, joiner="\n\n").eval()
    torch.testing.assert_close(prm.model.state_dict(), lm.model.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        prm.model.embed_tokens.weight.add_(1.0)
    assert not torch.equal(prm.model.embed_tokens.weight, lm.model.embed_tokens.weight)
    assert (prm.config.step_joiner, prm.config.id2label) == ("\n\n", {0: "wrong", 1: "correct"})
    assert not hasattr(lm.config, "prm_format")
    scores = prm(input_ids=torch.tensor([[1, 2, 3]])).logits.softmax(-1)
    torch.testing.assert_close(scores, torch.full((1, 3, 2), 0.5), rtol=0, atol=0)


def test_a_new_prm_from_a_folder_equals_one_from_the_model(tmp_path):
    lm = LlamaForCausalLM(config(tie_word_embeddings=True))
    save_model(tmp_path / "lm", lm, BYTES)
    assert not is_stepwell_prm(tmp_path / "lm")
    torch.testing.assert_close(
        new_prm(tmp_path / "lm").state_dict(), new_prm(lm).state_dict(), rtol=0, atol=0
    )
    fresh = new_prm(tmp_path / "lm" / "config.json")
    assert not torch.equal(fresh.model.embed_tokens.weight, lm.model.embed_tokens.weight)


def test_a_saved_prm_is_a_plain_transformers_token_classifier(tmp_path):
    prm = random_prm()
    save_model(tmp_path / "prm", prm, BYTES)
    assert is_stepwell_prm(tmp_path / "prm")
    ids = torch.tensor([[5, 6, 7]])
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "prm").eval()
    torch.testing.assert_close(plain(ids).logits, prm(ids).logits, rtol=1e-6, atol=0)
    torch.testing.assert_close(load_prm(tmp_path / "prm").state_dict(), prm.state_dict(), rtol=0, atol=0)
    assert plain.config.step_joiner == "\n"
    assert load_tokenizer(tmp_path / "prm")("It is 5.")["input_ids"] == BYTES("It is 5.")["input_ids"]


def test_a_tokenizer_beside_a_qwen2_model_is_read_as_it_was_saved(tmp_path):
    # transformers' AutoTokenizer puts Qwen2's splitting rules in place of the saved ones.
    qwen = Qwen2ForCausalLM(Qwen2Config(**config().to_diff_dict() | {"model_type": "qwen2"}))
    text = "Add 2 and 3.\nIt is 5."
    with pytest.warns(UserWarning, match="AutoTokenizer reads this tokenizer as Qwen2Tokenizer"):
        save_model(tmp_path / "qwen", qwen, BYTES)
    assert load_tokenizer(tmp_path / "qwen")(text)["input_ids"] == BYTES(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "qwen")(text)["input_ids"] != BYTES(text)["input_ids"]


def test_what_is_no_prm_or_does_not_exist_is_a_user_error(tmp_path):
    save_model(tmp_path / "lm", LlamaForCausalLM(config()))
    with pytest.raises(UserError, match="no process reward model of this project"):
        load_prm(tmp_path / "lm")
    for missing in (load_prm, load_tokenizer, new_prm):
        with pytest.raises(UserError, match="nowhere"):
            missing(tmp_path / "nowhere")
    with pytest.raises(UserError, match="tokens, the model's embedding 30 rows"):
        check_vocabulary(random_prm(vocab_size=30), BYTES)


def test_attention_that_looks_both_ways_is_told_apart():
    bert = BertForTokenClassification(
        BertConfig(
            vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    )
    assert is_causal(random_prm())
    assert not is_causal(bert)


@pytest.mark.parametrize("causal", [True, False])
def test_step_logits_equal_the_full_masked_forward_at_their_places(causal):
    if causal:
        prm = random_prm()
    else:
        torch.manual_seed(0)
        small = BertConfig(
            vocab_size=400, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        prm = BertForTokenClassification(small).eval()
    steps = [["It is 5.", "So 5."], ["Half."], ["a", "b", "The answer is 4."]]
    encoded = encode_solutions(BYTES, ["Add 2", "Half of 8 is what?", ""], steps, joiner="\n")
    input_ids, attention_mask = pad_right(encoded)
    assert attention_mask.sum(1).tolist() == [len(e) for e in encoded]
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    columns = torch.tensor([end for e in encoded for end in e.step_ends])
    full = prm(input_ids=input_ids, attention_mask=attention_mask).logits
    picked = step_logits(prm, input_ids, attention_mask, rows, columns)
    torch.testing.assert_close(picked, full[rows, columns], rtol=1e-5, atol=1e-6)
