"""DPO: the loss by definition, what is masked, the cached reference, and that it learns and resumes."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from cli_cases import failure
from rl_world import taught_policy, tiny_policy

from data.preference_readers import write_preferences
from data.schema import Preference
from data.world_tokenizer import byte_bpe_tokenizer, word_tokenizer
from prm.checkpoint import save_model
from prm.fit import FitConfig
from prm.model import load_backbone
from reasoning_rl.cli import main
from reasoning_rl.dpo import (
    DPOConfig,
    PreferenceObjective,
    PreferenceSettings,
    fit_preferences,
    train_dpo,
)
from reasoning_rl.preference_examples import encode_preferences, split_by_prompt
from reasoning_rl.preference_loss import preference_loss
from reasoning_rl.reference_logprobs import cache_reference, reference_logprobs
from reasoning_rl.telemetry import RunLog, read_metrics

PROMPT = "Ann has 12. Bob has 5 fewer than Ann. How many does Bob have?\n"
RIGHT, WRONG = "Bob has 12 - 5 = 7\n#### 7", "Bob has 12 + 5 = 17\n#### 17"
TOKENIZER = word_tokenizer()


def problem(a: int, b: int) -> Preference:
    """A pair in which subtracting is preferred to adding."""
    prompt = f"Ann has {a}. Bob has {b} fewer than Ann. How many does Bob have?\n"
    sides = (f"Bob has {a} {op} {b} = {n}\n#### {n}" for op, n in (("-", a - b), ("+", a + b)))
    return Preference(prompt, *sides, id=f"{a}-{b}")


PAIRS = [problem(a, b) for a in range(20, 36) for b in range(2, 8)]


def by_definition(model, reference, pair: Preference) -> list[float]:
    """log pi - log pi_ref of chosen and rejected, token by token in float64."""
    prompt = TOKENIZER(pair.prompt)["input_ids"]
    ratios = []
    for text in (pair.chosen, pair.rejected):
        response = [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]
        ids = torch.tensor([prompt + response])
        total = 0.0
        for sign, scorer in ((1, model), (-1, reference)):
            logprobs = scorer(ids).logits[0].log_softmax(-1).detach()
            for t in range(len(prompt), len(prompt) + len(response)):
                total += sign * float(logprobs[t - 1, ids[0, t]])
        ratios.append(total)
    return ratios


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PreferenceSettings(beta=0.3), lambda c, r, n: -math.log(1 / (1 + math.exp(-0.3 * (c - r))))),
        (
            PreferenceSettings(beta=0.3, label_smoothing=0.2),
            lambda c, r, n: (
                -0.8 * math.log(1 / (1 + math.exp(-0.3 * (c - r))))
                - 0.2 * math.log(1 / (1 + math.exp(0.3 * (c - r))))
            ),
        ),
        (PreferenceSettings(loss="ipo", beta=0.5), lambda c, r, n: (c - r - 1.0) ** 2),
        (
            PreferenceSettings(loss="ipo", beta=0.5, average_logprobs=True),
            lambda c, r, n: (c / n - r / n - 1.0) ** 2,
        ),
    ],
)
def test_the_loss_is_the_papers_by_definition(settings: PreferenceSettings, expected) -> None:
    model, reference = (tiny_policy(TOKENIZER, seed).double() for seed in (0, 1))
    pairs = [Preference(PROMPT, RIGHT, WRONG), PAIRS[0]]
    examples = cache_reference(reference, encode_preferences(TOKENIZER, pairs))
    objective = PreferenceObjective(settings)
    batch = objective.collate(examples)
    loss, stats = objective.loss(model, batch)
    ratios = [by_definition(model, reference, pair) for pair in pairs]
    lengths = batch["target_mask"].sum(1)
    assert len(set(lengths.tolist())) == 1
    length = int(lengths[0])
    assert float(loss.detach()) == pytest.approx(sum(expected(c, r, length) for c, r in ratios), rel=1e-4)
    assert objective.count(batch) == 2
    if settings.loss == "sigmoid":
        margins = [settings.beta * (c - r) for c, r in ratios]
        assert float(stats["margin"]) == pytest.approx(sum(margins), rel=1e-4)
        assert int(stats["accuracy"]) == sum(m > 0 for m in margins)


def test_a_policy_that_is_its_reference_loses_log_2_a_pair() -> None:
    model = tiny_policy(TOKENIZER)
    examples = cache_reference(model, encode_preferences(TOKENIZER, PAIRS[:3]))
    objective = PreferenceObjective(PreferenceSettings())
    loss, stats = objective.loss(model, objective.collate(examples))
    assert float(loss.detach()) == pytest.approx(3 * math.log(2), abs=1e-4)
    assert float(stats["margin"]) == pytest.approx(0, abs=1e-4)


def test_ipo_stops_at_its_margin_where_dpo_goes_on() -> None:
    far = torch.tensor([40.0], requires_grad=True)
    zero = torch.zeros(1)
    (slope,) = torch.autograd.grad(preference_loss(far, zero, kind="ipo", beta=0.1).sum(), far)
    assert slope > 0  # 40 exceeds 1 / (2 x 0.1) = 5: back
    (slope,) = torch.autograd.grad(preference_loss(far, zero, kind="sigmoid", beta=0.1).sum(), far)
    assert slope < 0  # still further apart


def test_the_sft_term_is_the_chosen_responses_loss_a_token() -> None:
    model = tiny_policy(TOKENIZER)
    examples = cache_reference(model, encode_preferences(TOKENIZER, PAIRS[:2]))
    plain, weighted = (PreferenceObjective(PreferenceSettings(sft_coef=c)) for c in (0.0, 2.0))
    batch = plain.collate(examples)
    difference = (weighted.loss(model, batch)[0] - plain.loss(model, batch)[0]).detach()
    expected = sum(-e.reference[0] / (len(e.chosen_ids) - e.prompt_length) for e in examples)
    assert float(difference) == pytest.approx(2 * expected, rel=1e-4)


def test_only_what_follows_the_shared_prefix_is_learned() -> None:
    """A step-level pair: the first line is context, and a step in the middle has no end token."""
    pair = Preference(
        PROMPT,
        "Cal has 7 * 2 = 14\n",
        "Cal has 7 + 2 = 9\n",
        prefix="Bob has 12 - 5 = 7\n",
        chosen_ends=False,
        rejected_ends=False,
    )
    (example,) = encode_preferences(TOKENIZER, [pair])
    batch = PreferenceObjective(PreferenceSettings()).collate([example])
    learned = [TOKENIZER.decode(row[mask]) for row, mask in zip(*_masked(batch), strict=True)]
    assert learned == ["Cal has 7 * 2 = 14\n", "Cal has 7 + 2 = 9\n"]
    assert TOKENIZER.decode(example.chosen_ids) == PROMPT + pair.prefix + pair.chosen
    (whole,) = encode_preferences(TOKENIZER, [replace(pair, chosen_ends=True)])
    assert whole.chosen_ids == [*example.chosen_ids, TOKENIZER.eos_token_id]


def _masked(batch):
    return batch["input_ids"], batch["target_mask"]


def test_a_token_that_spans_the_prefixs_end_is_learned() -> None:
    tokenizer = byte_bpe_tokenizer(["ab ab ab ab", "abc abc abc"], 280)
    pair = Preference("q: ", "bc", "bd", prefix="a")
    (example,) = encode_preferences(tokenizer, [pair])
    prompt = tokenizer("q: ")["input_ids"]
    assert example.prompt_length == len(prompt)  # "ab" is one token here: no part of it is context alone
    assert tokenizer.decode(example.rejected_ids[:-1]) == "q: abd"


def test_padding_and_batch_order_change_nothing() -> None:
    model = tiny_policy(TOKENIZER)
    long = Preference(PROMPT * 2, RIGHT, WRONG)
    alone = reference_logprobs(model, encode_preferences(TOKENIZER, [PAIRS[0]]))
    beside = reference_logprobs(model, encode_preferences(TOKENIZER, [long, PAIRS[0]]))
    small = reference_logprobs(model, encode_preferences(TOKENIZER, [long, PAIRS[0]]), max_tokens=1)
    torch.testing.assert_close(torch.tensor(beside[1]), torch.tensor(alone[0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(small), torch.tensor(beside), rtol=1e-4, atol=1e-4)


def test_a_long_prompt_loses_its_oldest_tokens_and_nothing_else() -> None:
    pair = Preference(PROMPT * 5, RIGHT, WRONG)
    (whole,) = encode_preferences(TOKENIZER, [pair])
    (cut,) = encode_preferences(TOKENIZER, [pair], 40, cut_prompt=True)
    assert len(cut) == 40
    assert cut.chosen_ids == whole.chosen_ids[-40:] and cut.rejected_ids == whole.rejected_ids[-40:]


def test_the_reference_is_asked_once_for_the_same_weights_and_pairs(tmp_path: Path, monkeypatch) -> None:
    import reasoning_rl.reference_logprobs as module

    asked = []
    ask = module.reference_logprobs
    monkeypatch.setattr(
        module, "reference_logprobs", lambda *a, **k: (asked.append(len(a[1])), ask(*a, **k))[1]
    )
    examples = encode_preferences(TOKENIZER, PAIRS[:4])
    path = tmp_path / "reference.safetensors"
    model = tiny_policy(TOKENIZER)
    first = cache_reference(model, examples, path=path)
    assert cache_reference(model, examples, path=path) == first and asked == [4]
    cache_reference(model, examples[:3], path=path)  # other pairs
    cache_reference(tiny_policy(TOKENIZER, seed=1), examples[:3], path=path)  # other weights
    path.write_bytes(path.read_bytes()[:40])  # torn
    cache_reference(model, examples[:3], path=path)
    assert asked == [4, 3, 3, 3]


def settings(folder: Path, **over) -> DPOConfig:
    fit = FitConfig(batch_size=16, learning_rate=1e-3, epochs=2, save_every=3)
    values = {"model": "", "data": "", "output_dir": str(folder), "fit": fit, **over}
    return DPOConfig(**values)


def test_cached_and_live_references_train_the_same_policy(tmp_path: Path) -> None:
    weights = []
    for how in ("cached", "live"):
        tokenizer, model = taught_policy()
        config = settings(tmp_path / how, reference_logprobs=how)
        fit_preferences(
            model,
            tokenizer,
            PAIRS[:16],
            PAIRS[16:24],
            config,
            accelerator=Accelerator(cpu=True),
            log=RunLog(tmp_path / how),
        )
        weights.append(model.state_dict())
        last = read_metrics(tmp_path / how)[-1]
        assert {"valid/accuracy", "valid/margin", "valid/loss", "valid/chosen_reward"} <= last.keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["cached", "live"])
def test_adapters_learn_to_prefer_against_the_policy_without_them(tmp_path: Path, how: str) -> None:
    pytest.importorskip("peft", reason="LoRA needs the extra 'lora'")
    fit = FitConfig(batch_size=16, learning_rate=1e-2, epochs=2, save_every=3, log_every=1)
    rows = {}
    for name, stop_at in (("whole", None), ("torn", 5)):
        for _ in range(1 + (stop_at is not None)):
            tokenizer, model = taught_policy()
            config = settings(tmp_path / name, lora={"rank": 8}, reference_logprobs=how, fit=fit)
            log = RunLog(tmp_path / name, watch=lambda i, _, at=stop_at: _stop(i, at))
            options = {"accelerator": Accelerator(cpu=True), "log": log, "resume": name == "torn"}
            with pytest.raises(KeyboardInterrupt) if stop_at else nullcontext():
                fit_preferences(model, tokenizer, PAIRS[:64], PAIRS[64:], config, **options)
            stop_at = None
        rows[name] = read_metrics(tmp_path / name)
    assert rows["torn"] == rows["whole"]
    assert rows["whole"][0]["train/loss"] == pytest.approx(math.log(2), abs=1e-3)  # at first both are one
    assert rows["whole"][-1]["valid/accuracy"] > 0.9
    assert not [key for key in model.state_dict() if "lora" in key]
    examples = encode_preferences(tokenizer, PAIRS[64:])
    before, after = (reference_logprobs(m, examples) for m in (taught_policy()[1], model))
    gains = [(c - r) - (c0 - r0) for (c0, r0), (c, r) in zip(before, after, strict=True)]
    margin = PreferenceSettings().beta * sum(gains) / len(gains)
    assert margin == pytest.approx(rows["whole"][-1]["valid/margin"], rel=1e-3)


def test_a_policy_learns_to_prefer(tmp_path: Path) -> None:
    """Pairs that differ in the operation turn it, also on prompts that were held out."""
    tokenizer, model = taught_policy()
    write_preferences(tmp_path / "pairs.jsonl", PAIRS)
    save_model(tmp_path / "sft", model, tokenizer)
    config = settings(tmp_path / "run", model=str(tmp_path / "sft"), data=str(tmp_path / "pairs.jsonl"))
    log = RunLog(tmp_path / "run")
    folder = train_dpo(config, accelerator=Accelerator(cpu=True), log=log)
    last = read_metrics(tmp_path / "run")[-1]
    assert last["valid/accuracy"] > 0.9 and last["valid/margin"] > 0.2
    trained = load_backbone(folder)
    examples = encode_preferences(tokenizer, PAIRS)
    before, after = (reference_logprobs(m, examples) for m in (model, trained))
    gains = [(c - r) - (c0 - r0) for (c0, r0), (c, r) in zip(before, after, strict=True)]
    assert sum(g > 0 for g in gains) > 0.9 * len(PAIRS)


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path) -> None:
    tokenizer, model = taught_policy()
    save_model(tmp_path / "sft", model, tokenizer)
    write_preferences(tmp_path / "pairs.jsonl", PAIRS)

    def train(folder: Path, stop_at: int | None = None, resume: bool = False):
        config = settings(folder, model=str(tmp_path / "sft"), data=str(tmp_path / "pairs.jsonl"))
        log = RunLog(folder, watch=lambda i, _: _stop(i, stop_at))
        return load_backbone(train_dpo(config, accelerator=Accelerator(cpu=True), log=log, resume=resume))

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "torn", stop_at=5)
    torn = train(tmp_path / "torn", resume=True)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(torn.state_dict()[name], value, rtol=0, atol=0)
    assert read_metrics(tmp_path / "torn") == read_metrics(tmp_path / "whole")


def _stop(iteration: int, stop_at: int | None) -> None:
    if iteration == stop_at:
        raise KeyboardInterrupt


def test_pairs_of_a_prompt_stay_on_one_side() -> None:
    pairs = [replace(pair, id=str(k)) for pair in PAIRS[:20] for k in range(2)]
    train, held_out = split_by_prompt(pairs, 0.25, seed=0)
    assert len(held_out) == 10 and not {p.prompt for p in train} & {p.prompt for p in held_out}


def test_the_command_trains_and_names_mistakes(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    save_model(tmp_path / "sft", tiny_policy(TOKENIZER), TOKENIZER)
    write_preferences(tmp_path / "pairs.jsonl", PAIRS[:20])
    args = ["dpo", "--model", str(tmp_path / "sft"), "--data", str(tmp_path / "pairs.jsonl")]
    args += ["--output-dir", str(tmp_path / "run"), "--fit.batch-size", "8"]
    main(args)
    assert (tmp_path / "run" / "model" / "config.json").exists()
    assert "holds the checkpoints of an earlier run" in failure(capsys, *args)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x", "chosen": "y"}\n')
    text = failure(capsys, "dpo", "--model", tmp_path / "sft", "--data", tmp_path / "bad.jsonl")
    assert "bad.jsonl:1" in text and "rejected" in text
