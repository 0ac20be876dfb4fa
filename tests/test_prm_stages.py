"""How a PRM may be trained: the head first, with adapters, with solutions packed."""

import pytest
import torch
from accelerate import Accelerator
from prm_cases import auc, tiny, train
from test_prm_train import FAST, TOKENIZER, Log, solutions, tiny_config
from transformers import Qwen2Config

from data.errors import UserError
from data.schema import StepSolution
from prm.checkpoint import save_model
from prm.examples import label_solutions
from prm.fit import FitConfig
from prm.lora import LoraSettings, add_adapters, merge
from prm.model import classifier, load_prm, new_prm
from prm.objectives import StepObjective, make_objective
from prm.packing import VARLEN, packed_attention, sliding_window
from prm.scorer import LocalScorer
from prm.train import PRMConfig, _is_packed, fit_prm

# --- stages ----------------------------------------------------------------------------------------------


def test_the_head_trains_alone_first(tmp_path):
    prm, rows = tiny(), solutions(64)
    start = {name: value.clone() for name, value in prm.state_dict().items()}
    seen = []

    class Watch(Log):
        def __call__(self, iteration, metrics):
            super().__call__(iteration, metrics)
            changed = {n for n, v in prm.state_dict().items() if not torch.equal(v, start[n])}
            seen.append((metrics["train/lr"], any(n.startswith("model.") for n in changed)))

    settings = {**FAST, "epochs": 1, "log_every": 1, "warmup_ratio": 0, "schedule": "constant"}
    train(prm, rows, [], tmp_path, Watch(), head_updates=2, head_learning_rate=1e-2, fit=settings)
    assert seen == [(1e-2, False), (1e-2, False), (3e-3, True), (3e-3, True)]
    assert not torch.equal(prm.score.weight, start["score.weight"])
    with pytest.raises(UserError, match="head_updates 4 leaves none of the 4 updates"):
        train(tiny(), rows, [], tmp_path / "b", head_updates=4, fit=settings)


def test_a_run_killed_in_either_stage_resumes_to_the_same_weights(tmp_path):
    rows = solutions(64)
    settings = {**FAST, "epochs": 1, "save_every": 1}
    config = PRMConfig(data="", supervise="all", output_dir=str(tmp_path / "a"), head_updates=2, fit=settings)
    whole = tiny()
    run = {"accelerator": Accelerator(cpu=True), "log": Log()}
    fit_prm(whole, TOKENIZER, rows, [], config, **run)
    for stop in (1, 3):

        class Stop(Log):
            def __call__(self, iteration, metrics, stop=stop):
                if iteration == stop:
                    raise KeyboardInterrupt

        other = config.model_copy(
            update={"output_dir": str(tmp_path / str(stop)), "fit": FitConfig(**{**settings, "log_every": 1})}
        )
        with pytest.raises(KeyboardInterrupt):
            fit_prm(tiny(), TOKENIZER, rows, [], other, accelerator=Accelerator(cpu=True), log=Stop())
        again = tiny()
        fit_prm(again, TOKENIZER, rows, [], other, resume=True, **run)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name


# --- adapters --------------------------------------------------------------------------------------------


def test_adapters_train_few_weights_merge_and_resume(tmp_path):
    pytest.importorskip("peft", reason="LoRA needs the extra 'lora'")
    rows = solutions(200)
    settings = {**FAST, "learning_rate": 5e-3, "save_every": 5}
    lora = {"rank": 4, "alpha": 8.0}
    prm = tiny()
    start = {name: value.clone() for name, value in prm.state_dict().items()}
    log = train(
        prm, rows[:160], rows[160:], tmp_path / "run", lora=lora, fit=settings, keep_best="valid/step_auc"
    )
    assert set(prm.state_dict()) == set(start)  # merged: no trace of the adapters
    assert torch.equal(prm.model.embed_tokens.weight, start["model.embed_tokens.weight"])
    change = prm.model.layers[0].mlp.up_proj.weight - start["model.layers.0.mlp.up_proj.weight"]
    assert (
        int(torch.linalg.matrix_rank(change.detach(), rtol=1e-4)) <= 4
        and float(change.detach().abs().max()) > 0
    )
    assert log.rows[-1][1]["valid/loss"] < 0.5
    save_model(tmp_path / "model", prm, TOKENIZER)
    assert LocalScorer.load(tmp_path / "model").score(["sum 1?"], [["one plus two is three"]])[0][0] > 0.5
    # A checkpoint holds adapters and head alone, and resuming from it ends at the same weights.
    checkpoint = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    held = torch.load(checkpoint / "model.pt", weights_only=True)
    assert held and all(".lora_" in name or name.startswith("score") for name in held)
    again = tiny()
    values = {
        "data": "",
        "output_dir": str(tmp_path / "run"),
        "supervise": "all",
        "lora": lora,
        "fit": settings,
    }
    config = PRMConfig.from_dict(values)
    fit_prm(
        again, TOKENIZER, rows[:160], [], config, accelerator=Accelerator(cpu=True), log=Log(), resume=True
    )
    problems, steps = [s.problem for s in rows[160:]], [s.steps for s in rows[160:]]
    scores = LocalScorer(again, TOKENIZER).score(problems, steps)
    labels = [s.labels for s in rows[160:]]
    assert auc(labels, scores) > 0.9


def test_adapters_learn_on_a_4_bit_backbone(tmp_path):
    pytest.importorskip("peft", reason="LoRA needs the extra 'lora'")
    pytest.importorskip("bitsandbytes", reason="a 4-bit base needs the extra 'qlora'")
    rows = solutions(200)
    settings = {**FAST, "learning_rate": 5e-3}
    lora = {"rank": 4, "alpha": 8.0, "quantize": "nf4"}
    prm = tiny()
    names = set(prm.state_dict())
    log = train(
        prm, rows[:160], rows[160:], tmp_path / "run", lora=lora, fit=settings, keep_best="valid/step_auc"
    )
    assert log.rows[-1][1]["valid/loss"] < 0.5
    save_model(tmp_path / "model", prm, TOKENIZER)
    assert set(load_prm(tmp_path / "model").state_dict()) == names
    assert LocalScorer.load(tmp_path / "model").score(["sum 1?"], [["one plus two is three"]])[0][0] > 0.5


def test_merging_adapters_changes_no_score():
    pytest.importorskip("peft", reason="LoRA needs the extra 'lora'")
    prm = tiny()
    torch.nn.init.normal_(classifier(prm).weight)
    add_adapters(prm, LoraSettings(rank=2))
    with torch.no_grad():
        for name, parameter in prm.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.2)
    text = (["sum 1?"], [["one plus two is four", "three"]])
    adapted = LocalScorer(prm, TOKENIZER).score(*text)[0]
    merge(prm)
    assert LocalScorer(prm, TOKENIZER).score(*text)[0] == pytest.approx(adapted, abs=1e-5)
    assert adapted != pytest.approx(LocalScorer(tiny(), TOKENIZER).score(*text)[0], abs=1e-3)


# --- packing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["cross_entropy", "pqm"])
def test_packed_solutions_give_the_padded_loss_and_gradient(objective):
    examples = label_solutions(TOKENIZER, solutions(5), joiner="\n", supervise="first_error")
    assert len({len(example) for example in examples}) > 1
    results = []
    for packed in (False, True):
        prm = tiny(objective).eval()
        torch.nn.init.normal_(classifier(prm).weight, generator=torch.Generator().manual_seed(1))
        learned = make_objective(objective, packed=packed)
        batch = learned.collate(examples)
        if packed:
            assert batch["input_ids"].shape == (1, sum(len(e) for e in examples))
            with packed_attention(prm):
                loss, _ = learned.loss(prm, batch)
        else:
            loss, _ = learned.loss(prm, batch)
        loss.backward()
        results.append(
            (loss.detach(), prm.model.layers[0].self_attn.k_proj.weight.grad, learned.count(batch))
        )
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-6)
    assert results[0][2] == results[1][2]


def test_packed_solutions_do_not_see_each_other():
    prm = tiny().eval()  # without dropout: the losses below are compared
    torch.nn.init.normal_(classifier(prm).weight)
    first, second, other = label_solutions(TOKENIZER, solutions(3), joiner="\n")
    objective = StepObjective(packed=True)
    with packed_attention(prm), torch.no_grad():
        alone = objective.loss(prm, objective.collate([second]))[0]
        for neighbour in (first, other):
            batch = objective.collate([neighbour, second])
            mine = batch["solutions"] == 1
            keep = {k: v[mine] for k, v in batch.items() if k in ("rows", "columns", "solutions", "labels")}
            torch.testing.assert_close(objective.loss(prm, batch | keep)[0], alone, rtol=1e-5, atol=0)


def test_packing_is_a_setting_and_leaves_the_model_as_it_was(tmp_path):
    rows = solutions(200)
    prm = tiny()
    before = prm.config._attn_implementation
    log = train(prm, rows[:160], rows[160:], tmp_path / "packed", packing="on")
    other = train(tiny(), rows[:160], rows[160:], tmp_path / "padded", packing="off")
    assert log.rows[-1][1]["valid/loss"] == pytest.approx(other.rows[-1][1]["valid/loss"], abs=0.02)
    assert prm.config._attn_implementation == before != VARLEN
    with pytest.raises(UserError, match="packing: objective bradley_terry"):
        sides = [StepSolution("p", (s,), (float(s == "three"),)) for s in ("three", "four")] * 4
        train(tiny("bradley_terry"), sides, [], tmp_path / "c", objective="bradley_terry", packing="on")


def test_packing_leaves_models_alone_whose_layers_look_back_a_window(tmp_path):
    sizes = {**tiny_config().to_dict(), "sliding_window": 16, "use_sliding_window": True}
    sizes |= {"model_type": "qwen2", "max_window_layers": 1, "layer_types": None, "num_key_value_heads": 2}
    torch.manual_seed(0)
    prm = new_prm(Qwen2Config(**{k: v for k, v in sizes.items() if k != "architectures"}))
    assert sliding_window(prm) == 16 and sliding_window(tiny()) is None
    rows = solutions(8)
    with pytest.raises(UserError, match="look back 16 tokens at most, max_length is 40; set packing to off"):
        train(prm, rows, [], tmp_path / "a", packing="on", max_length=40)
    # auto would pack for flash attention, were it not for the window.
    prm.config._attn_implementation = "flash_attention_2"
    for length, packs in ((40, False), (16, True)):
        config = PRMConfig(data="", packing="auto", max_length=length)
        assert _is_packed(prm, config) is packs
