import json

import pytest
import torch
from accelerate import Accelerator
from tokenizers import processors
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from data.errors import UserError
from data.world_tokenizer import byte_bpe_tokenizer, word_tokenizer
from prm.fit import FitConfig, fit
from prm.model import load_tokenizer
from reasoning_rl.sft import EncodedPair, NextToken, SFTConfig, encode_pairs, train_sft

PAIRS = [(f"{a} plus {b} is ", f"{a + b}\nDone.") for a in range(6) for b in range(6)]
TOKENIZER = byte_bpe_tokenizer([prompt + response for prompt, response in PAIRS], 320)


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
    )


def tiny(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config())


class Log:
    def __init__(self) -> None:
        self.rows = []

    def __call__(self, iteration, metrics):
        machine = ("time/", "memory/")
        self.rows.append((iteration, {k: v for k, v in metrics.items() if not k.startswith(machine)}))

    def rewind(self, iteration):
        self.rows = [row for row in self.rows if row[0] <= iteration]


def test_a_pair_is_prompt_response_and_eos():
    (encoded,) = encode_pairs(TOKENIZER, [("2 plus 3 is ", "5\nDone.")], 64)
    prompt = TOKENIZER("2 plus 3 is ")["input_ids"]
    assert encoded.input_ids == [*prompt, *TOKENIZER("5\nDone.")["input_ids"], TOKENIZER.eos_token_id]
    assert encoded.prompt_length == len(prompt)


def test_bos_comes_from_the_tokenizer_and_its_closing_eos_is_dropped():
    tokenizer = byte_bpe_tokenizer(["2 plus 3"], 300)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", bos), ("<eos>", eos)]
    )
    (encoded,) = encode_pairs(tokenizer, [("2", "3")])
    assert encoded.input_ids[0] == bos
    assert (encoded.input_ids.count(bos), encoded.input_ids.count(eos)) == (1, 1)
    assert encoded.prompt_length == 2


def test_the_loss_is_that_of_the_response_tokens_by_definition():
    encoded = encode_pairs(TOKENIZER, [PAIRS[0], ("Half of 8 is what? ", "4"), ("", "Done.")])
    objective = NextToken()
    batch = objective.collate(encoded)
    model = tiny().double()
    loss, stats = objective.loss(model, batch)
    expected, hits, count = 0.0, 0, 0
    for example in encoded:
        logprobs = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1).detach()
        for t in range(max(example.prompt_length, 1), len(example)):
            expected -= float(logprobs[t - 1, example.input_ids[t]])
            hits += int(logprobs[t - 1].argmax()) == example.input_ids[t]
            count += 1
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    assert (objective.count(batch), int(stats["accuracy"])) == (count, hits)


def test_prompt_tokens_and_padding_have_no_loss():
    example = encode_pairs(TOKENIZER, [PAIRS[0]])[0]
    alone = NextToken().loss(tiny(), NextToken().collate([example]))[0]
    long = EncodedPair(example.input_ids * 3, prompt_length=len(example) * 3)
    padded = NextToken().loss(tiny(), NextToken().collate([example, long]))[0]
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=0)


def test_no_logits_are_computed_where_no_loss_is():
    rows = []
    model = tiny()
    model.lm_head.register_forward_hook(lambda _, __, output: rows.append(output.shape))
    batch = NextToken().collate(encode_pairs(TOKENIZER, PAIRS[:4]))
    NextToken().loss(model, batch)
    assert rows == [(int(batch["target_mask"].sum()), len(TOKENIZER))]


def test_capped_logits_are_computed_by_the_model_itself():
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.5,
        initializer_range=0.3,
    )
    model = Gemma2ForCausalLM(config).eval()
    encoded = encode_pairs(TOKENIZER, [PAIRS[0], ("Half of 8 is what? ", "4")])
    batch = NextToken().collate(encoded)
    loss, _ = NextToken().loss(model, batch)
    expected = 0.0
    for example in encoded:
        logprobs = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1).detach()
        for t in range(example.prompt_length, len(example)):
            expected -= float(logprobs[t - 1, example.input_ids[t]])
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_in_memory_training_learns_the_sums(tmp_path):
    model, log = tiny(), Log()
    config = FitConfig(epochs=40, batch_size=12, learning_rate=5e-3, micro_batch_tokens=256, log_every=60)
    fit(
        model,
        encode_pairs(TOKENIZER, PAIRS, 64),
        NextToken(),
        config,
        accelerator=Accelerator(cpu=True),
        run_dir=tmp_path,
        log=log,
    )
    assert log.rows[-1][1]["train/accuracy"] > 0.95
    prompt = TOKENIZER("2 plus 3 is ", return_tensors="pt")["input_ids"]
    answer = model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :]
    assert TOKENIZER.decode(answer) == "5\nDone.<eos>"


def test_the_worlds_word_tokenizer_works():
    tokenizer = word_tokenizer()
    (encoded,) = encode_pairs(tokenizer, [("2 + 3", "5\n5")])
    assert encoded.input_ids[-1] == tokenizer.eos_token_id


def test_unusable_pairs_and_tokenizers_are_named():
    with pytest.raises(UserError, match=r"pair 1 has \d+ tokens, the limit is 20"):
        encode_pairs(TOKENIZER, [PAIRS[0], ("x" * 30, "y")], 20)
    kept = encode_pairs(TOKENIZER, [PAIRS[0], ("x" * 30, "y")], 20, overlong="skip", ids=["a", "b"])
    assert [example.id for example in kept] == ["a"]
    with pytest.raises(UserError, match="both empty"):
        encode_pairs(TOKENIZER, [("", "")])
    mute = byte_bpe_tokenizer(["2"], 300)
    mute.eos_token = None
    with pytest.raises(UserError, match=r"no EOS token.*set tokenizer.eos_token"):
        encode_pairs(mute, PAIRS)
    assert encode_pairs(TOKENIZER, []) == []


def test_a_run_from_files_resumes_and_saves_a_plain_model(tmp_path):
    lines = [json.dumps({"prompt": p, "response": r}) for p, r in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    tiny_config().save_pretrained(tmp_path / "config")
    values = {
        "data": str(tmp_path / "pairs.jsonl"),
        "model_config_file": str(tmp_path / "config" / "config.json"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "output_dir": str(tmp_path / "run"),
        "fit": {"batch_size": 12, "save_every": 1, "learning_rate": 1e-3, "micro_batch_tokens": 256},
    }
    config = SFTConfig.from_dict(values)
    run = {"accelerator": Accelerator(cpu=True)}
    log = Log()
    folder = train_sft(config, log=log, validate=lambda model: {"valid/x": 1.0}, **run)
    assert [iteration for iteration, _ in log.rows] == [1, 2, 3]
    assert log.rows[-1][1]["valid/x"] == 1.0
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert load_tokenizer(folder)("2 plus")["input_ids"] == TOKENIZER("2 plus")["input_ids"]
    again = train_sft(config, log=Log(), resume=True, **run)
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(again).state_dict(), model.state_dict(), rtol=0, atol=0
    )
    further = {**values, "model": str(folder), "model_config_file": None, "tokenizer": None}
    train_sft(SFTConfig.from_dict({**further, "output_dir": str(tmp_path / "b")}), log=Log(), **run)
    with pytest.raises(UserError, match="exactly one of"):
        train_sft(SFTConfig.from_dict({**values, "model": "x"}), log=Log(), **run)
    adapted = {**further, "output_dir": str(tmp_path / "lora"), "lora": {"rank": 2}}
    found = AutoModelForCausalLM.from_pretrained(train_sft(SFTConfig.from_dict(adapted), log=Log(), **run))
    moved = {name for name, p in found.named_parameters() if not torch.equal(p, model.get_parameter(name))}
    assert moved == {name for name, _ in model.named_parameters() if name.endswith("_proj.weight")}
    small = json.loads((tmp_path / "config" / "config.json").read_text()) | {"vocab_size": 100}
    (tmp_path / "config" / "config.json").write_text(json.dumps(small))
    with pytest.raises(UserError, match="the model's embedding 100 rows"):
        train_sft(SFTConfig.from_dict({**values, "output_dir": str(tmp_path / "c")}), log=Log(), **run)
