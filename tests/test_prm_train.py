import json
import math
import random

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig

from data.errors import UserError
from data.schema import StepSolution
from data.world_tokenizer import byte_bpe_tokenizer
from prm.checkpoint import save_model
from prm.examples import label_solutions
from prm.model import new_prm
from prm.objectives import StepObjective
from prm.scorer import LocalScorer
from prm.train import (
    PRMConfig,
    fit_prm,
    split_by_problem,
    train_prm,
    validate_prm,
)


def solutions(n: int, seed: int = 0) -> list[StepSolution]:
    """Steps "a plus b is c": right when c is 3 with a 1 and b 2, wrong for any other c."""
    rng = random.Random(seed)
    out = []
    for i in range(n):
        right = [rng.random() < 0.6 for _ in range(3)]
        steps = tuple(f"one plus two is {'three' if r else rng.choice(['four', 'six'])}" for r in right)
        out.append(StepSolution(f"sum {i % 25}?", steps, tuple(float(r) for r in right), id=f"row {i}"))
    return out


TOKENIZER = byte_bpe_tokenizer(
    [s.problem + "\n" + "\n".join(s.steps) + "\nfour six three" for s in solutions(9)], 330
)


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )


def tiny():
    torch.manual_seed(0)
    return new_prm(tiny_config())


class Log:
    def __init__(self) -> None:
        self.rows = []

    def __call__(self, iteration, metrics):
        self.rows.append((iteration, dict(metrics)))

    def rewind(self, iteration):
        self.rows = [row for row in self.rows if row[0] <= iteration]


def accuracy(labels, scores, threshold):
    pairs = [pair for rows in zip(labels, scores, strict=True) for pair in zip(*rows, strict=True)]
    hits = [(score >= threshold) == (label > 0.5) for label, score in pairs if None not in (label, score)]
    return {"accuracy": sum(hits) / len(hits)}


FAST = {
    "epochs": 6,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "micro_batch_tokens": 512,
    "validate_every": 5,
    "log_every": 5,
}


def test_labels_stand_at_the_last_token_of_their_steps():
    solution = StepSolution("sum?", ("one plus", "two", "is three"), (1.0, None, 0.5), id="x")
    (example,) = label_solutions(TOKENIZER, [solution], joiner="\n")
    ends = [TOKENIZER.decode(example.input_ids[: place + 1]) for place in example.places]
    assert ends == ["sum?\none plus", "sum?\none plus\ntwo\nis three"]
    assert example.labels == [1.0, 0.5]
    assert len(example) == example.places[-1] + 1


def test_supervision_stops_at_the_first_error_and_so_does_the_computation():
    solution = StepSolution("sum?", ("one", "two", "three"), (1.0, 0.0, 1.0))
    (example,) = label_solutions(TOKENIZER, [solution], joiner="\n", supervise="first_error")
    assert example.labels == [1.0, 0.0]
    assert TOKENIZER.decode(example.input_ids) == "sum?\none\ntwo"
    (whole,) = label_solutions(
        TOKENIZER, [solution], joiner="\n", supervise="first_error", cut_unread_tail=False
    )
    assert TOKENIZER.decode(whole.input_ids) == "sum?\none\ntwo\nthree\n"


def test_a_step_beyond_the_limit_is_named_or_counted(caplog):
    solution = StepSolution("sum?", ("one", "two", "three"), (1.0, 1.0, 1.0), id="steps.jsonl:7")
    (whole,) = label_solutions(TOKENIZER, [solution], joiner="\n")
    limit = whole.places[1] + 1
    with pytest.raises(UserError, match=rf"steps.jsonl:7: step 2 ends at token \d+, the limit is {limit}"):
        label_solutions(TOKENIZER, [solution], joiner="\n", limit=limit)
    (cut,) = label_solutions(TOKENIZER, [solution], joiner="\n", limit=limit, overlong="skip")
    assert cut.places == whole.places[:2]
    assert "1 labelled steps end beyond" in caplog.text
    exact = whole.places[2] + 1
    assert label_solutions(TOKENIZER, [solution], joiner="\n", limit=exact) == [whole]
    with pytest.raises(UserError, match="step 2"):
        label_solutions(TOKENIZER, [solution], joiner="\n", limit=exact - 1)
    with pytest.raises(UserError, match="none of the solutions has a labelled step"):
        label_solutions(TOKENIZER, [solution], joiner="\n", limit=1, overlong="skip")


def test_a_batch_collates_every_label_to_its_row():
    examples = label_solutions(TOKENIZER, solutions(3), joiner="\n")
    objective = StepObjective()
    batch = objective.collate(examples)
    assert objective.count(batch) == 9
    assert batch["rows"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    prm = tiny()
    torch.nn.init.normal_(prm.score.weight)
    prm.eval()
    loss, stats = objective.loss(prm, batch)
    # By hand from the plain masked forward.
    logprobs = prm(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    expected = 0.0
    for row, example in enumerate(examples):
        for place, label in zip(example.places, example.labels, strict=True):
            expected -= float(logprobs[row, place, int(label)].detach())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(stats["mean_label"]) == sum(sum(e.labels) for e in examples)


def test_validation_by_hand():
    class Fixed:
        def score(self, problems, steps):
            return [[0.8, 0.4, 0.9], [None, 0.5, 0.5]]

    held_out = [
        StepSolution("p", ("a", "b", "c"), (1.0, 0.0, 1.0)),
        StepSolution("q", ("a", "b", "c"), (1.0, None, 1.0)),
    ]
    metrics = validate_prm(Fixed(), held_out, "first_error", 0.5, accuracy)
    # Supervised and scored: 0.8 as right, 0.4 as wrong, 0.5 as right; the last step of p follows an error.
    assert metrics["valid/loss"] == pytest.approx(-(math.log(0.8) + math.log(0.6) + math.log(0.5)) / 3)
    assert metrics["valid/accuracy"] == 1.0
    assert metrics["valid/unscored_steps"] == 1


def test_problems_never_stand_on_both_sides_of_the_split():
    train, held_out = split_by_problem(solutions(100), 0.2, seed=0)
    assert len(train) + len(held_out) == 100
    assert len({s.problem for s in held_out}) == 5
    assert not {s.problem for s in train} & {s.problem for s in held_out}
    assert split_by_problem(solutions(100), 0.2, seed=0) == (train, held_out)
    assert {s.problem for s in split_by_problem(solutions(100), 0.2, seed=1)[1]} != {
        s.problem for s in held_out
    }
    # Further rows of known problems move none of them.
    assert {s.problem for s in split_by_problem(solutions(150), 0.2, seed=0)[1]} == {
        s.problem for s in held_out
    }


def test_a_prm_learns_which_steps_are_wrong(tmp_path):
    train, held_out = split_by_problem(solutions(200), 0.2, seed=0)
    log, prm = Log(), tiny()
    config = PRMConfig(data="", output_dir=str(tmp_path), supervise="all", fit=FAST)
    fit_prm(
        prm,
        TOKENIZER,
        train,
        held_out,
        config,
        accelerator=Accelerator(cpu=True),
        log=log,
        step_metrics=accuracy,
    )
    last = log.rows[-1][1]
    assert last["valid/accuracy"] > 0.95
    assert last["valid/loss"] < 0.3 < log.rows[0][1]["train/loss"]
    assert last["train/accuracy"] > 0.95


def test_keep_best_restores_the_best_validation(tmp_path):
    train, held_out = split_by_problem(solutions(60), 0.2, seed=0)
    values = iter([0.1, 0.9, 0.3, 0.2, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5])
    seen = []

    def scripted(labels, scores, threshold):
        seen.append([score for row in scores for score in row])
        return {"auc": next(values)}

    prm = tiny()
    config = PRMConfig(
        data="",
        output_dir=str(tmp_path),
        supervise="all",
        keep_best="valid/auc",
        fit={**FAST, "epochs": 2, "validate_every": 1},
    )
    run = {"accelerator": Accelerator(cpu=True), "log": Log(), "step_metrics": scripted}
    fit_prm(prm, TOKENIZER, train, held_out, config, **run)
    now = LocalScorer(prm, TOKENIZER).score([s.problem for s in held_out], [s.steps for s in held_out])
    assert [score for row in now for score in row] == pytest.approx(seen[1], abs=1e-6)
    assert seen[1] != pytest.approx(seen[-1], abs=1e-4)
    with pytest.raises(UserError, match="keep_best: no metric 'valid/f1'; known: valid/auc, valid/loss"):
        values = iter([0.5] * 20)
        other = config.model_copy(update={"keep_best": "valid/f1", "output_dir": str(tmp_path / "other")})
        fit_prm(tiny(), TOKENIZER, train, held_out, other, **run)


def write_run(tmp_path, rows) -> dict:
    lines = [json.dumps({"problem": s.problem, "steps": s.steps, "labels": s.labels}) for s in rows]
    (tmp_path / "steps.jsonl").write_text("\n".join(lines))
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    tiny_config().save_pretrained(tmp_path / "config")
    return {
        "data": str(tmp_path / "steps.jsonl"),
        "model_config_file": str(tmp_path / "config" / "config.json"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "output_dir": str(tmp_path / "run"),
        "holdout": 0.2,
    }


def test_a_run_from_files_resumes_and_trains_further_from_its_own_model(tmp_path):
    values = write_run(tmp_path, solutions(60))
    short = {**FAST, "epochs": 1, "save_every": 1, "log_every": 1}
    run = {"accelerator": Accelerator(cpu=True), "step_metrics": accuracy}
    config = PRMConfig.from_dict({**values, "fit": short})
    log = Log()
    folder = train_prm(config, log=log, **run)
    scorer = LocalScorer.load(folder)
    assert all(0 < score < 1 for score in scorer.score(["sum 3?"], [["one plus two is three"]])[0])
    assert len(log.rows) == 3 and "valid/accuracy" in log.rows[-1][1]
    again = Log()
    assert train_prm(config, log=again, resume=True, **run) == folder
    assert again.rows == []
    further = PRMConfig.from_dict(
        {
            **values,
            "model": str(folder),
            "model_config_file": None,
            "tokenizer": None,
            "output_dir": str(tmp_path / "b"),
            "fit": {**short, "learning_rate": 1e-8, "warmup_ratio": 0},
        }
    )
    log = Log()
    train_prm(further, log=log, **run)
    # It starts from the trained head, not from a zero one: ln 2 would be 0.693.
    assert abs(log.rows[0][1]["train/loss"] - math.log(2)) > 1e-3


def test_mistakes_are_told_before_anything_is_trained(tmp_path):
    values = write_run(tmp_path, solutions(30))
    run = {"accelerator": Accelerator(cpu=True), "log": Log()}
    with pytest.raises(UserError, match="exactly one of model and model_config_file"):
        train_prm(PRMConfig.from_dict({**values, "model_config_file": None}), **run)
    with pytest.raises(UserError, match="set tokenizer"):
        train_prm(PRMConfig.from_dict({**values, "tokenizer": None}), **run)
    with pytest.raises(UserError, match="limit is 5"):
        train_prm(PRMConfig.from_dict({**values, "max_length": 5}), **run)
    with pytest.raises(UserError, match="absent"):
        train_prm(PRMConfig.from_dict({**values, "model_config_file": "absent/config.json"}), **run)
    with pytest.raises(UserError, match="holdout"):
        PRMConfig.from_dict({**values, "holdout": 1.0})


def test_a_saved_prm_of_another_project_is_not_continued_by_accident(tmp_path):
    prm = tiny()
    prm.config.prm_format = None
    save_model(tmp_path / "other", prm, TOKENIZER)
    fresh = new_prm(tmp_path / "other")
    assert float(fresh.score.weight.detach().abs().sum()) == 0.0
