"""From a folder to a scorer: which format it is, what is refused, formats of one's own, readouts by hand."""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from format_cases import (
    ARCHITECTURES,
    PROBLEM,
    STEPS,
    byte_tokenizer,
    checkpoint,
    config_of,
    metaspace_tokenizer,
    scorer,
    weights_of,
)
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from data.aggregation import aggregate
from data.errors import UserError
from data.world_tokenizer import word_tokenizer
from prm.checkpoint import save_model
from prm.formats import FORMATS, PRMFormat, get_format, load, load_scorer, read_format
from prm.formats.encode import encode_all
from prm.formats.readout import READ
from prm.formats.recognise import recognise
from prm.formats.spec import are_right
from prm.formats.tokens import token_id
from prm.model import new_prm
from prm.scorer import LocalScorer


def score(folder, name, **options) -> list[float]:
    return load_scorer(folder, name, **options).score([PROBLEM], [STEPS])[0]


# --- readouts, by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readout", "logits", "expected"),
    [
        ("two_token", [math.log(3), 0.0], 0.75),  # good is first
        ("class2", [math.log(3), 0.0], 0.25),  # the right class is second
        ("class2_difference", [math.log(3), 0.0], -0.5),
        ("validity", [math.log(2), math.log(3), math.log(5)], 0.8),
        ("redundancy", [math.log(2), math.log(3), math.log(5)], 0.7),
        ("sigmoid", [math.log(4)], 0.8),
        ("mean_logits", [math.log(4)], 0.8),
        ("raw", [-7.5], -7.5),
        ("ensemble_mean", [math.log(4), 0.0], 0.65),
        ("two_token", [0.0, 400.0], 0.0),
    ],
)
def test_readouts_by_hand(readout, logits, expected) -> None:
    assert float(READ[readout](torch.tensor([logits]))[0]) == pytest.approx(expected, abs=1e-6)


def test_redundancy_goes_by_the_neutral_class_of_the_same_model() -> None:
    validity = score(checkpoint("reasoneval-34b"), "reasoneval-34b")
    redundancy = score(checkpoint("reasoneval-34b"), "reasoneval-34b-redundancy")
    # (neutral + positive) + (negative + positive) = 1 + positive
    assert all(1 < r + v < 2 for r, v in zip(redundancy, validity, strict=True))


@pytest.mark.parametrize("name", ["reasoneval-7b-redundancy", "reasoneval-34b-redundancy"])
def test_a_redundant_step_is_below_its_threshold(name) -> None:
    """To the authors a step is redundant when P(neutral) is above 0.15; the worst decides."""
    spec = get_format(name)
    neutral = torch.tensor([0.1, 0.2])
    logits = torch.stack([(1 - neutral) / 2, neutral, (1 - neutral) / 2], dim=-1).log()
    scores = READ[spec.readout](logits).tolist()
    assert spec.are_right(scores) == [True, False]
    assert aggregate(scores, spec.aggregation) == pytest.approx(0.8)


def test_thresholds_compare_scores_or_their_changes() -> None:
    assert are_right([0.5, 0.49, None], 0.5) == [True, False, None]
    # Changes: 0.4, -0.1, -0.04, and none after a step without a score.
    scores = [0.4, 0.3, 0.26, None, 0.9]
    assert are_right(scores, -0.05, "difference") == [True, False, True, None, None]
    assert FORMATS["skywork-difference"].are_right([0.9, 0.1]) == [True, False]


@pytest.mark.parametrize(
    ("model", "config", "more"),
    [
        (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 2.0, "head_dim": 16}),
        (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
        (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 4.0}),
    ],
)
@torch.no_grad()
def test_scaled_and_capped_logits_are_those_of_the_model_itself(tmp_path, model, config, more) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    model(config_of(config, tokenizer, **more)).save_pretrained(tmp_path)
    spec = get_format("math-shepherd")
    found = score(tmp_path, "math-shepherd")
    (row,) = encode_all(tokenizer, spec, [PROBLEM], [STEPS])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    logits = whole(torch.tensor([row.input_ids])).logits[0, row.step_ends]
    pair = [tokenizer.convert_tokens_to_ids(" +"), tokenizer.convert_tokens_to_ids(" -")]
    assert found == pytest.approx(logits[:, pair].softmax(-1)[:, 0].tolist(), abs=1e-5)


@torch.no_grad()
def test_separators_can_be_hidden_from_attention() -> None:
    """As Math-psa was trained: no token sees a tag before it, while scores are still read at the tags."""
    folder, tokenizer = checkpoint("math-psa"), byte_tokenizer()
    hidden = get_format("math-psa").model_copy(update={"mask_separators": True})
    found, plain = score(folder, hidden), score(folder, "math-psa")
    assert abs(found[2] - plain[2]) > 1e-3
    (row,) = encode_all(tokenizer, hidden, [PROBLEM], [STEPS])
    mask = torch.ones(1, len(row), dtype=torch.long)
    mask[0, list(row.separators)] = 0
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits = model(torch.tensor([row.input_ids]), attention_mask=mask).logits[0, row.step_ends]
    pair = [tokenizer.convert_tokens_to_ids(" +"), tokenizer.convert_tokens_to_ids(" -")]
    assert found == pytest.approx(logits[:, pair].softmax(-1)[:, 0].tolist(), abs=2e-5)


# --- which format it is ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen-math-prm", "actprm", "reasoneval-7b", "reasoneval-34b"])
def test_a_class_of_one_format_alone_tells_it(name) -> None:
    assert load(checkpoint(name)).format.name == name


@pytest.mark.parametrize(
    ("path", "classes", "expected"),
    [
        ("peiyi9979/math-shepherd-mistral-7b-prm", ["MistralForCausalLM"], "math-shepherd"),
        ("models/Math-Shepherd-Mistral-7B-PRM", ["MistralForCausalLM"], "math-shepherd"),
        ("jinachris/Qwen2.5-Math-7B-PRM800K", ["Qwen2ForTokenClassification"], "pure"),
        ("Qwen/Qwen2.5-Math-7B-PRM800K", [], "qwen-math-prm"),
        ("here/Qwen2.5-Math-7B-PRM800K", ["Qwen2ForProcessRewardModel"], "qwen-math-prm"),
        ("PRIME-RL/EurusPRM-Stage2", ["Qwen2ForCausalLM"], "eurus-prm-stage2"),
        ("RLHFlow/Llama3.1-8B-PRM-Mistral-Data", ["LlamaForCausalLM"], "rlhflow-mistral"),
        ("x/Llama3.1-8B-PRM-Deepseek-Data", ["LlamaForCausalLM"], "rlhflow-deepseek"),
        ("Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B", ["Qwen2ForCausalLM"], "skywork"),
        ("GenPRM/GenPRM-7B", ["Qwen2ForCausalLM"], "genprm"),
    ],
)
def test_published_names_tell_the_format(path, classes, expected) -> None:
    assert recognise(path, SimpleNamespace(architectures=classes)).name == expected


def test_what_cannot_be_told_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"cannot tell its PRM format \(MistralForCausalLM\)[^\n]*\nknown: "):
        load_scorer(checkpoint("math-shepherd"))
    with pytest.raises(UserError, match="may be qwen-math-prm or pure; name one: --format"):
        recognise("here/Qwen2.5-Math-7B-PRM800K", SimpleNamespace(architectures=[]))
    with pytest.raises(UserError, match="'math-shepard' is unknown; did you mean 'math-shepherd'"):
        load_scorer(checkpoint("math-shepherd"), "math-shepard")


def test_no_two_formats_claim_one_published_model() -> None:
    claims = [model for entry in FORMATS.values() for model in entry.models]
    assert len(claims) == len(set(claims))
    for entry in FORMATS.values():
        for model in entry.models:
            if "/" in model and "*" not in model:
                assert recognise(model, SimpleNamespace(architectures=[])).name == entry.name


def test_our_own_models_take_the_fast_path(tmp_path) -> None:
    prm = new_prm(config_of(ARCHITECTURES["trl"][2], byte_tokenizer()))
    torch.nn.init.normal_(prm.score.weight)
    save_model(tmp_path, prm, byte_tokenizer())
    loaded = load(tmp_path)
    assert isinstance(loaded.scorer, LocalScorer) and loaded.format.name == "stepwell"
    assert score(tmp_path, None) == LocalScorer.load(tmp_path).score([PROBLEM], [STEPS])[0]


# --- what is refused ---------------------------------------------------------------------------------------


def test_token_ids_of_published_models_are_compared(tmp_path) -> None:
    """The right name with another tokenizer: the scores would be of some other token."""
    folder = shutil.copytree(checkpoint("math-shepherd"), tmp_path / "math-shepherd-mistral-7b-prm")
    with pytest.raises(UserError, match="good is token 3.. in this tokenizer, 648 in the published one"):
        load_scorer(folder)


def test_tokens_are_found_by_the_vocabularys_spelling() -> None:
    byte, meta = byte_tokenizer(), metaspace_tokenizer()
    assert token_id(byte, " +", "good") != token_id(byte, "+", "good")
    assert meta.convert_ids_to_tokens(token_id(meta, " ки", "separator")) == "▁ки"
    assert byte.convert_ids_to_tokens(token_id(byte, "\n", "separator")) == "Ċ"
    assert byte.convert_ids_to_tokens(token_id(byte, " ", "space")) == "Ġ"
    with pytest.raises(UserError, match="no single token ' maybe'"):
        token_id(byte, " maybe", "good")


def test_a_tokenizer_without_the_separator_is_refused(tmp_path) -> None:
    folder = shutil.copytree(checkpoint("math-shepherd"), tmp_path / "model")
    tokenizer = word_tokenizer()
    for file in folder.glob("token*"):
        file.unlink()
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="does not know the separator ' ки'"):
        load_scorer(folder, "math-shepherd")


@pytest.mark.parametrize(
    ("name", "as_format", "message"),
    [
        ("math-shepherd", "skywork", "no weight 'v_head.summary.weight', which format 'skywork' reads"),
        ("math-shepherd", "qwen-math-prm", "no weight 'score.0.weight'"),
        ("math-shepherd", "trl", "weights are missing .*score.* that format 'trl' reads"),
        ("math-minos", "trl", "format 'trl' reads 2 outputs, the model's head has 1"),
        ("trl", "math-minos", "format 'math-minos' reads 1 outputs, the model's head has 2"),
        ("implicit-prm", "prime", "compares two models; give the other one"),
        ("math-shepherd", "genprm", "writes critiques; give make_generator"),
    ],
)
def test_a_checkpoint_that_is_laid_out_otherwise_is_refused(name, as_format, message) -> None:
    with pytest.raises(UserError, match=message):
        load_scorer(checkpoint(name), as_format).score([PROBLEM], [STEPS])


def test_a_chat_needs_a_template_and_a_padding_mark_its_token(tmp_path) -> None:
    tokenizer = byte_tokenizer(template=None)
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        encode_all(tokenizer, FORMATS["qwen-math-prm"], [PROBLEM], [STEPS])
    bare = word_tokenizer()
    bare.pad_token = None
    with pytest.raises(UserError, match="marks steps with the padding token"):
        encode_all(bare, FORMATS["reasoneval-7b"], [PROBLEM], [STEPS])


def test_no_remote_code_is_run_or_asked_for(tmp_path, monkeypatch) -> None:
    """A config whose class only its own code knows: refused at once, without a question on the terminal."""
    settings = {
        "model_type": "brand_new",
        "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_scorer(tmp_path)


class Bomb:
    """A pickle that would run code when it is read without care."""

    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_pickle_that_holds_code_is_not_run(tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(checkpoint("skywork"), tmp_path / "model")
    torch.save({"v_head.summary.weight": Bomb()}, folder / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="unreadable as plain tensors"):
        load_scorer(folder, "skywork")
    assert not (tmp_path / "exploded").exists()


def test_a_lora_adapter_says_what_it_needs(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    folder = shutil.copytree(checkpoint("math-psa"), tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a LoRA adapter; pip install 'stepwell\[lora\]'"):
        load_scorer(folder, "math-psa")


# --- weights and formats from files ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_weights_are_read_like_whole_ones(tmp_path, kind) -> None:
    folder = shutil.copytree(checkpoint("qwen-math-prm"), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    items = sorted(weights_of("qwen-math-prm").items())
    stem = "model" if kind == "safetensors" else "pytorch_model"
    places = {}
    for shard in (0, 1):
        part = dict(items[shard::2])
        name = f"{stem}-0000{shard + 1}-of-00002.{kind}"
        if kind == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name)
        places |= dict.fromkeys(part, name)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": places}))
    whole = scorer("qwen-math-prm").score([PROBLEM], [STEPS])[0]
    assert score(folder, None) == pytest.approx(whole, abs=1e-6)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"shard {name} is missing"):
        load_scorer(folder)


def test_a_format_in_yaml_scores_as_the_entry_it_repeats(tmp_path) -> None:
    for name, entry in FORMATS.items():
        entry.to_yaml(tmp_path / f"{name}.yaml")
        assert read_format(tmp_path / f"{name}.yaml") == entry
    file = str(tmp_path / "pure.yaml")
    assert score(checkpoint("pure"), file) == scorer("pure").score([PROBLEM], [STEPS])[0]


def test_a_format_may_build_on_a_registered_one(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: pure\nreadout: class2\nthreshold: 0.5\naggregation: min\n")
    spec = get_format(str(file))
    assert (spec.name, spec.models, spec.tokenise, spec.readout) == ("mine", (), "separate", "class2")
    probabilities = score(checkpoint("pure"), str(file))
    differences = scorer("pure").score([PROBLEM], [STEPS])[0]
    assert [2 * p - 1 for p in probabilities] == pytest.approx(differences, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seperator: x\n", "unknown key 'seperator'; did you mean 'separator'"),
        (
            "head: value_head\nreadout: class2\n",
            "readout 'class2' does not fit head 'value_head'; choose",
        ),
        ("base: pur\n", "base 'pur' is unknown; did you mean 'pure'"),
        ("base: [pure]\n", "base '['pure']' is unknown"),
        # Our own models are not read by these fields at all: threshold alone would be, and the token not.
        ("base: stepwell\nthreshold: 0.3\n", "'stepwell' is how models trained here are read"),
        ("base: trl\nname: stepwell\n", "'stepwell' is how models trained here are read"),
        ("step: 'Step {i}'\n", "`step` must hold {step}"),
        ("layout: chat\ntokenise: separate\n", "tokenise: separate works for layout plain"),
        ("head: generative\nreadout: critique\n", "a generative format needs `critique`"),
        ("separator: ''\n", "`separator` must not be empty"),
        ("aggregation: median\n", "aggregation: Input should be 'min'"),
    ],
)
def test_a_wrong_format_file_is_explained(tmp_path, text, message) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        get_format(str(file))
    assert message in str(error.value) and str(file) in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_scorers_leave_training_and_grad_modes_as_they_were() -> None:
    each = load_scorer(checkpoint("trl"), "trl")
    each.decoder.train()
    each.score([PROBLEM], [STEPS])
    assert each.decoder.training and torch.is_grad_enabled()


def test_formats_say_whether_their_scores_are_probabilities() -> None:
    raw = {name for name, entry in FORMATS.items() if not entry.is_probability}
    ratios = {"implicit-prm", "eurus-prm-stage1", "eurus-prm-stage2", "prime"}
    assert raw == {"pure", "pqm", "math-minos", "rest-mcts"} | ratios
    assert PRMFormat(name="x").is_probability


def test_the_documents_table_names_every_format() -> None:
    text = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
    table = text[text.index("| format |") : text.index("Where the source")].strip()
    first_cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    named = {name for cell in first_cells for name in re.findall(r"`([a-z0-9-]+)`", cell)}
    assert named == set(FORMATS)
    for field in set(PRMFormat.model_fields) - {"name"}:
        assert f"`{field}`" in text, field
