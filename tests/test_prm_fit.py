import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import Qwen2Config, Qwen2ForCausalLM

from data.errors import UserError
from prm.fit import FitConfig, fit, iterate_batches, lr_factor, make_optimizer, num_updates, run_update
from prm.fit import _Loss as LossModule
from prm.sharding import prepare

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Sentence:
    input_ids: list[int]
    id: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)


class AllTokens:
    """Next-token loss on every token, optionally with an attention mask."""

    def __init__(self, masked: bool = False) -> None:
        self.masked = masked

    def collate(self, examples):
        width = max(map(len, examples))
        rows = [e.input_ids + [0] * (width - len(e)) for e in examples]
        real = [[True] * len(e) + [False] * (width - len(e)) for e in examples]
        return {"input_ids": torch.tensor(rows), "real": torch.tensor(real)}

    def count(self, batch):
        return float(batch["real"][:, 1:].sum())

    def loss(self, model, batch):
        mask = {"attention_mask": batch["real"]} if self.masked else {}
        logits = model(input_ids=batch["input_ids"], use_cache=False, **mask).logits[:, :-1]
        targets, real = batch["input_ids"][:, 1:], batch["real"][:, 1:]
        return torch.nn.functional.cross_entropy(logits[real], targets[real], reduction="sum"), {}


class Log:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict]] = []

    def __call__(self, iteration, metrics):
        machine = ("time/", "memory/")
        self.rows.append((iteration, {k: v for k, v in metrics.items() if not k.startswith(machine)}))

    def rewind(self, iteration):
        self.rows = [row for row in self.rows if row[0] <= iteration]


def tiny(dropout: float = 0.0) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        attention_dropout=dropout,
        # So that gradients are not vanishingly small.
        initializer_range=0.3,
    )
    return Qwen2ForCausalLM(config)


def sentences(n: int = 12) -> list[Sentence]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 20, (n,), generator=generator).tolist()
    return [
        Sentence(torch.randint(1, 30, (length,), generator=generator).tolist(), f"row {i}")
        for i, length in enumerate(lengths)
    ]


def train(
    model, tmp_path, *, examples=None, log=None, objective=None, resume=False, validate=None, **settings
):
    log = log or Log()
    fit(
        model,
        examples or sentences(),
        objective or AllTokens(),
        FitConfig(**{"batch_size": 4, "learning_rate": 1e-2, "micro_batch_tokens": 64, **settings}),
        accelerator=Accelerator(cpu=True),
        run_dir=tmp_path,
        log=log,
        validate=validate,
        resume=resume,
    )
    return log.rows


def gradients(
    model, micro_batches, *, objective=None, dtype=torch.float32
) -> tuple[list[torch.Tensor], dict]:
    """The gradient that one update applies: SGD with rate 1 moves the weights by exactly it."""
    objective = objective or AllTokens()
    model = model.to(dtype)
    before = [p.detach().clone() for p in model.parameters()]
    trained = prepare(
        LossModule(model, objective),
        torch.optim.SGD(model.parameters(), lr=1.0),
        owner=model,
        accelerator=Accelerator(cpu=True),
        max_grad_norm=1e9,
    )
    batch = [objective.collate(micro) if micro else None for micro in micro_batches]
    result = run_update(trained, batch, objective, filler=objective.collate(sentences(1)))
    return [a - b.detach() for a, b in zip(before, model.parameters(), strict=True)], result


def assert_gradients_close(actual, expected, rtol):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()), check_dtype=False)


def test_loss_and_gradient_do_not_depend_on_the_micro_batch_split_or_padding():
    rows = sentences(8)
    whole, once = gradients(tiny(), [rows])
    split, parts = gradients(tiny(), [rows[:1], rows[1:4], rows[4:]])
    assert abs(once["loss"] - parts["loss"]) < 1e-5 * once["loss"]
    assert_gradients_close(split, whole, 1e-5)
    # Padding to a far longer row that is not in the batch must not matter either.
    singles, _ = gradients(tiny(), [[row] for row in rows])
    assert_gradients_close(singles, whole, 1e-5)
    # What stands in for a micro-batch that only other processes have counts nothing.
    filled, sums = gradients(tiny(), [rows, []])
    assert_gradients_close(filled, whole, 1e-7)
    assert sums == once


def test_the_gradient_is_that_of_the_mean_over_all_tokens_in_float64():
    rows = sentences(5)
    model = tiny().double()
    total = sum(len(row) - 1 for row in rows)
    losses = []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        logprobs = model(ids).logits.log_softmax(-1)
        losses += [-logprobs[0, t - 1, row.input_ids[t]] for t in range(1, len(row))]
    (sum(losses) / total).backward()
    expected = [p.grad for p in model.parameters()]
    actual, result = gradients(tiny(), [rows[:2], rows[2:]], dtype=torch.float64)
    assert_gradients_close(actual, expected, 1e-9)
    assert result["count"] == total
    assert result["loss"] == pytest.approx(float(sum(losses).detach()), rel=1e-9)


def test_right_padding_without_a_mask_equals_masked_attention():
    rows = sentences(6)
    plain, _ = gradients(tiny(), [rows])
    masked, _ = gradients(tiny(), [rows], objective=AllTokens(masked=True))
    assert_gradients_close(plain, masked, 1e-5)


def test_autograd_switched_off_elsewhere_does_not_stop_training(tmp_path):
    model = tiny()
    before = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        train(model, tmp_path, max_updates=1)
    assert not torch.equal(before, model.lm_head.weight)


def test_training_overfits(tmp_path):
    rows = train(tiny(), tmp_path, examples=sentences(4), epochs=40, max_updates=40)
    assert rows[-1][1]["train/loss"] < 0.1 * rows[0][1]["train/loss"]


def test_learning_rate_by_hand():
    # 10 updates, warm-up 2: a third, two thirds, then 8 updates that fall by eighths from the peak.
    config = FitConfig(warmup_ratio=0.2, schedule="linear")
    expected = [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert [lr_factor(u, 10, config) for u in range(1, 11)] == pytest.approx(expected)
    floor = FitConfig(warmup_ratio=0, schedule="cosine", final_lr_ratio=0.5)
    # Half way through the cosine: 0.5 + 0.5 * 1/2.
    assert lr_factor(3, 4, floor) == pytest.approx(0.75)
    assert lr_factor(1, 1, FitConfig(warmup_ratio=0.9, schedule="constant")) > 0


def test_every_epoch_shows_each_example_once_and_batches_run_on():
    config = FitConfig(epochs=3, batch_size=4)
    batches = list(iterate_batches(config, 10))
    assert [len(b) for b in batches] == [4] * 7 + [2]
    assert len(batches) == num_updates(config, 10) == 8
    stream = [row for batch in batches for row in batch]
    epochs = [stream[i : i + 10] for i in range(0, 30, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert list(iterate_batches(FitConfig(epochs=3, batch_size=4, seed=1), 10)) != batches


def test_only_matrices_are_decayed():
    model = tiny()
    groups = make_optimizer(model, FitConfig(weight_decay=0.1)).param_groups
    assert {p.ndim for p in groups[0]["params"]} == {2} and groups[0]["weight_decay"] == 0.1
    assert {p.ndim for p in groups[1]["params"]} == {1} and groups[1]["weight_decay"] == 0.0


class Poisoned(AllTokens):
    """Gives NaN in the updates named."""

    def __init__(self, updates: set[int]) -> None:
        super().__init__()
        self.updates = updates
        self.update = 0

    def loss(self, model, batch):
        self.update += 1
        loss, stats = super().loss(model, batch)
        return (loss * float("nan") if self.update in self.updates else loss), stats


def test_an_update_without_finite_loss_is_skipped_and_counted(tmp_path):
    model = tiny()
    weights = []

    def watch(trained):
        weights.append(trained.lm_head.weight.detach().clone())
        return {"valid/updates": float(len(weights))}

    rows = train(
        model,
        tmp_path,
        objective=Poisoned({2}),
        micro_batch_tokens=10_000 // 10,
        max_updates=3,
        validate=watch,
        validate_every=1,
    )
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert [metrics["train/skipped_updates"] for _, metrics in rows] == [0, 1, 1]
    assert "train/loss" not in rows[1][1]


def test_five_bad_updates_in_a_row_end_the_run(tmp_path):
    with pytest.raises(UserError, match="update 6: .* not finite 5 times in a row"):
        train(tiny(), tmp_path, objective=Poisoned(set(range(2, 99))), micro_batch_tokens=1000, epochs=9)


def test_validation_does_not_change_what_is_learned(tmp_path):
    def noisy(model):
        assert not model.training
        torch.rand(5)
        return {"valid/x": 1.0}

    plain, watched = tiny(dropout=0.3), tiny(dropout=0.3)
    train(plain, tmp_path / "a", epochs=2)
    train(watched, tmp_path / "b", epochs=2, validate=noisy, validate_every=1)
    torch.testing.assert_close(watched.lm_head.weight, plain.lm_head.weight, rtol=0, atol=0)


def test_log_every_averages_over_the_window(tmp_path):
    each = train(tiny(), tmp_path / "a", epochs=1, max_updates=2, learning_rate=1e-9)
    both = train(tiny(), tmp_path / "b", epochs=1, max_updates=2, learning_rate=1e-9, log_every=2)
    assert [iteration for iteration, _ in both] == [2]
    losses = [metrics["train/loss"] for _, metrics in each]
    assert min(losses) < both[0][1]["train/loss"] < max(losses)
    norms = [metrics["train/grad_norm"] for _, metrics in each]
    assert both[0][1]["train/grad_norm"] == pytest.approx(sum(norms) / 2)


KILLED_RUN = """
import os, signal, sys
sys.path.insert(0, "tests")
from test_prm_fit import Log, tiny, train
class Killer(Log):
    def __call__(self, iteration, metrics):
        if iteration == 6:
            os.kill(os.getpid(), signal.SIGKILL)
train(tiny(dropout=0.2), sys.argv[1], epochs=3, save_every=2, log_every=3, log=Killer())
"""


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    expected_model = tiny(dropout=0.2)
    expected = train(expected_model, tmp_path / "whole", epochs=3, save_every=2, log_every=3)
    assert [iteration for iteration, _ in expected] == [3, 6, 9]
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, str(tmp_path / "killed")], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    model = tiny(dropout=0.2)
    with torch.no_grad():  # whatever the fresh model holds must not matter
        model.lm_head.weight.zero_()
    resumed = train(model, tmp_path / "killed", epochs=3, save_every=2, log_every=3, resume=True)
    # Checkpoint 4 stands inside the log window of updates 4 to 6.
    assert resumed == expected[1:]
    torch.testing.assert_close(model.state_dict(), expected_model.state_dict(), rtol=0, atol=0)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    model = tiny()
    train(model, tmp_path, save_every=2)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert train(model, tmp_path, save_every=2, resume=True) == []
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)


def test_user_errors_say_what_to_change(tmp_path, caplog):
    with pytest.raises(UserError, match=r"row \d+ has \d+ tokens, the limit is 10 "):
        train(tiny(), tmp_path, micro_batch_tokens=10)
    long = [Sentence([1] * 65, "the long one")]
    with pytest.raises(UserError, match="the long one has 65 tokens, the limit is 64"):
        train(tiny(), tmp_path, examples=long, micro_batch_tokens=1000)
    assert len(train(tiny(), tmp_path, examples=[*sentences(4), *long], overlong="skip")) == 1
    assert "1 of 5 examples exceed 64 tokens and are left out" in caplog.text
    with pytest.raises(UserError, match="no examples"):
        train(tiny(), tmp_path, examples=long, overlong="skip")
    train(tiny(), tmp_path / "run", save_every=1, max_updates=1)
    with pytest.raises(UserError, match="resume it or choose another output_dir"):
        train(tiny(), tmp_path / "run")
    with pytest.raises(UserError, match=r"cannot resume: fit.seed is 5 now and was 0"):
        train(tiny(), tmp_path / "run", resume=True, seed=5)
    with pytest.raises(UserError, match="cannot resume: data is"):
        train(tiny(), tmp_path / "run", resume=True, examples=sentences(9))


def test_settings_out_of_range_are_refused_by_name():
    with pytest.raises(UserError, match="warmup_ratio"):
        FitConfig.from_dict({"warmup_ratio": 1.5})
    with pytest.raises(UserError, match="unknown key 'learing_rate'; did you mean 'learning_rate'"):
        FitConfig.from_dict({"learing_rate": 1e-3})


TWO_PROCESSES = """
import json, sys
sys.path.insert(0, "tests")
import torch
from accelerate import Accelerator
from prm.fit import FitConfig, fit
from test_prm_fit import AllTokens, Log, sentences, tiny
accelerator = Accelerator(cpu=True)
model, log = tiny(), Log()
fit(model, sentences(13), AllTokens(), FitConfig(epochs=2, batch_size=6, learning_rate=1e-2,
    micro_batch_tokens=40, save_every=2), accelerator=accelerator, run_dir=sys.argv[1], log=log)
if accelerator.is_main_process:
    print(json.dumps({"world": accelerator.num_processes, "rows": log.rows}), flush=True)
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_learn_the_same_as_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    out = subprocess.run(
        [*torchrun, str(script), str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
    )
    assert out.returncode == 0, out.stderr
    result = json.loads(next(line for line in out.stdout.splitlines() if line.startswith("{")))
    assert result["world"] == 2
    alone = train(
        tiny(), tmp_path / "one", examples=sentences(13), epochs=2, batch_size=6, micro_batch_tokens=40
    )
    # 26 examples in batches of 6: the last has 2, still one for each process.
    assert len(result["rows"]) == len(alone) == 5
    for (_, two), (_, one) in zip(result["rows"], alone, strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5)
        assert two["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=1e-4)
