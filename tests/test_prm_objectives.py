"""Every objective from labels to a saved model that LocalScorer reads."""

import json
import math

import pytest
import torch
from accelerate import Accelerator
from prm_cases import auc, tiny, train, with_outcomes
from test_prm_train import FAST, TOKENIZER, Log, solutions, tiny_config
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, LlamaForCausalLM

from data.errors import UserError
from data.schema import StepSolution
from prm.calibrate import fold_in
from prm.checkpoint import save_model
from prm.examples import encode_pairs, label_solutions, outcome_solutions
from prm.fit import FitConfig, fit
from prm.implicit import new_implicit
from prm.model import classifier, encode_solution, step_logits
from prm.objectives import OutcomeObjective, PairObjective
from prm.pairs import StepPair, find_pairs
from prm.readout import NUM_LABELS, linear_value, to_scores
from prm.scorer import LocalScorer
from prm.train import PRMConfig, train_prm
from reasoning_rl.models import critic_from_prm

# --- each objective learns, and its model loads ----------------------------------------------------------


@pytest.mark.parametrize("objective", sorted(NUM_LABELS))
def test_an_objective_learns_and_its_saved_model_scores_the_same(tmp_path, objective):
    rows = with_outcomes(solutions(200))
    # Siblings need a shared prefix: single steps of one problem text.
    if objective == "bradley_terry":
        rows = [StepSolution(f"sum {i % 25}?", s.steps[:1], s.labels[:1]) for i, s in enumerate(rows)]
    train_rows, held_out = rows[:160], rows[160:]
    prm = tiny(objective)
    log = train(prm, train_rows, held_out, tmp_path / "run", objective=objective)
    save_model(tmp_path / "model", prm, TOKENIZER)
    loaded = LocalScorer.load(tmp_path / "model")
    assert loaded.model.config.prm_objective == objective
    problems, steps = [s.problem for s in held_out], [s.steps for s in held_out]
    scores = loaded.score(problems, steps)
    assert all(0 <= score <= 1 for row in scores for score in row)
    assert scores == [
        pytest.approx(row, abs=1e-6) for row in LocalScorer(prm, TOKENIZER).score(problems, steps)
    ]
    assert auc([s.labels for s in held_out], scores) > 0.95
    assert log.rows[-1][1]["train/loss"] < log.rows[0][1]["train/loss"]
    # transformers alone opens the folder too, with the head it was trained with.
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "model")
    assert plain.config.num_labels == NUM_LABELS[objective]


def test_a_neutral_step_is_a_class_of_its_own_or_whatever_else_is_chosen(tmp_path):
    rows = [
        json.dumps({"problem": f"p {i}", "steps": ["three", "four"], "labels": [0.5, 0]}) for i in range(8)
    ]
    (tmp_path / "steps.jsonl").write_text("\n".join(rows))
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    tiny_config().save_pretrained(tmp_path / "config")
    values = {
        "data": str(tmp_path / "steps.jsonl"),
        "model_config_file": str(tmp_path / "config" / "config.json"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "output_dir": str(tmp_path / "run"),
        "objective": "three_class",
        "neutral": "class",
        "fit": {**FAST, "epochs": 60, "learning_rate": 1e-2},
    }
    run = {"accelerator": Accelerator(cpu=True), "log": Log()}
    folder = train_prm(PRMConfig.from_dict(values), **run)
    scorer = LocalScorer.load(folder)
    # Neutral counts as no mistake in the score, and has a class of its own in the head.
    neutral, wrong = scorer.score(["p 1"], [["three", "four"]])[0]
    assert neutral > 0.7 > 0.4 > wrong
    encoded = encode_solution(TOKENIZER, "p 1", ["three"], joiner="\n")
    ids = torch.tensor([encoded.input_ids])
    logits = step_logits(scorer.model, ids, ids > -1, torch.tensor([0]), torch.tensor(encoded.step_ends))
    assert int(logits.argmax()) == 1
    with pytest.raises(UserError, match="neutral: class needs objective: three_class"):
        train_prm(PRMConfig.from_dict({**values, "objective": "bce"}), **run)


def test_readouts_by_hand():
    assert to_scores(torch.tensor([[math.log(3)]])).tolist() == pytest.approx([3 / 4])
    assert to_scores(torch.tensor([[0.0, math.log(3)]])).tolist() == pytest.approx([3 / 4])
    assert to_scores(torch.tensor([[0.0, math.log(2), math.log(5)]])).tolist() == pytest.approx([7 / 8])


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_the_linear_value_is_the_scores_slope(num_labels):
    torch.manual_seed(0)
    head = torch.nn.Linear(4, num_labels).double()
    direction = torch.randn(1, 4, dtype=torch.float64)
    with torch.no_grad():
        head.bias.zero_()
        weight, bias = linear_value(head)
        step = 1e-5
        slope = (to_scores(head(step * direction)) - to_scores(head(-step * direction))) / (2 * step)
    torch.testing.assert_close((weight @ direction.T)[0], slope, rtol=1e-6, atol=0)
    assert bias.shape == (1,)


def test_a_one_logit_prm_calibrates_and_starts_a_critic():
    prm = tiny("bce")
    torch.nn.init.normal_(classifier(prm).weight)
    before = LocalScorer(prm, TOKENIZER).score(["sum 1?"], [["one plus two is four"]])[0][0]
    fold_in(prm, 0.5, 1.0)
    after = LocalScorer(prm, TOKENIZER).score(["sum 1?"], [["one plus two is four"]])[0][0]
    odds = 0.5 * math.log(before / (1 - before)) + 1.0
    assert after == pytest.approx(1 / (1 + math.exp(-odds)), rel=1e-4)
    critic = critic_from_prm(prm)
    torch.testing.assert_close(classifier(critic).weight, classifier(prm).weight / 4)
    with pytest.raises(UserError, match="objective three_class has no log-odds"):
        fold_in(tiny("three_class"), 1.0, 0.0)


def test_hard_above_cuts_soft_labels(tmp_path):
    rows = [StepSolution("sum?", ("three",), (y,)) for y in (0.0, 0.1, 0.6, 1.0)]
    log = train(tiny(), rows, [], tmp_path, hard_above=0.0, fit={**FAST, "epochs": 1, "batch_size": 4})
    assert log.rows[0][1]["train/mean_label"] == pytest.approx(3 / 4)
    with pytest.raises(UserError, match="label 0.1 is none of the three classes"):
        train(tiny("three_class"), rows, [], tmp_path / "b", objective="three_class")
    with pytest.raises(UserError, match="made for objective cross_entropy, the settings say bce"):
        train(tiny(), rows, [], tmp_path / "c", objective="bce")


# --- pairs -----------------------------------------------------------------------------------------------


def test_pairs_are_siblings_of_one_right_prefix():
    rows = [
        StepSolution("p", ("a", "b", "x"), (1.0, 1.0, 0.0), answer_correct=False),
        StepSolution("p", ("a", "c", "d"), (1.0, 0.0, 0.0), answer_correct=False),
        StepSolution("p", ("a", "b", "y"), (1.0, 1.0, 1.0), answer_correct=True),
        StepSolution("q", ("a", "c"), (1.0, 1.0), answer_correct=True),
        StepSolution("r", ("z", "e"), (None, 0.0)),
    ]
    pairs = {(p.problem, p.prefix, p.chosen, p.rejected) for p in find_pairs(rows, "steps")}
    assert pairs == {("p", ("a",), ("b",), ("c",)), ("p", ("a", "b"), ("y",), ("x",))}
    whole = {(p.chosen, p.rejected) for p in find_pairs(rows, "solutions")}
    assert whole == {(("a", "b", "y"), ("a", "b", "x")), (("a", "b", "y"), ("a", "c", "d"))}
    with pytest.raises(UserError, match="no pair of steps among 1"):
        find_pairs(rows[:1], "steps")


def test_siblings_share_the_labels_of_their_prefix_and_a_low_value_is_no_mistake():
    rows = [
        StepSolution("p", ("a", "b", "x"), (None, 0.2, 0.0), label_kind="mc_soft"),
        # As a tree writes them: each prefix is labelled in the first row that has it.
        StepSolution("p", ("a", "b", "y"), (None, None, 1.0), label_kind="mc_soft"),
        StepSolution("p", ("a", "c"), (None, 0.0), label_kind="mc_soft"),
    ]
    pairs = {(p.prefix, p.chosen, p.rejected) for p in find_pairs(rows, "steps")}
    assert pairs == {(("a", "b"), ("y",), ("x",)), (("a",), ("b",), ("c",))}


def test_a_pair_is_read_at_its_last_steps():
    prm = tiny("bradley_terry")
    torch.nn.init.normal_(classifier(prm).weight)
    (pair,) = encode_pairs(TOKENIZER, [StepPair("sum?", ("one",), ("two",), ("three four",))], joiner="\n")
    objective = PairObjective()
    batch = objective.collate([pair])
    assert objective.count(batch) == 1
    loss, _ = objective.loss(prm.eval(), batch)
    chosen, rejected = (
        LocalScorer(prm, TOKENIZER).score(["sum?"], [["one", last]])[0][1] for last in ("two", "three four")
    )
    odds = [math.log(s / (1 - s)) for s in (chosen, rejected)]
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(odds[1] - odds[0])), rel=1e-4)


# --- implicit --------------------------------------------------------------------------------------------


def test_an_implicit_prm_learns_steps_from_outcomes_alone(tmp_path):
    rows = with_outcomes(solutions(300))
    torch.manual_seed(0)
    prm = new_implicit(LlamaForCausalLM(tiny_config()), beta=0.5)
    log = train(
        prm,
        rows[:240],
        rows[240:],
        tmp_path / "run",
        objective="implicit",
        beta=0.5,
        fit={**FAST, "epochs": 12},
    )
    assert log.rows[-1][1]["valid/loss"] < 0.3
    save_model(tmp_path / "model", prm, TOKENIZER)
    scorer = LocalScorer.load(tmp_path / "model")
    scores = scorer.score([s.problem for s in rows[240:]], [s.steps for s in rows[240:]])
    # Prefix labels were never shown: right while no wrong step stands before.
    prefix = [[float(all(s.labels[: k + 1])) for k in range(3)] for s in rows[240:]]
    assert auc(prefix, scores) > 0.85
    # The policy in the folder is a plain language model.
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_a_log_ratio_sums_the_response_only():
    torch.manual_seed(0)
    prm = new_implicit(LlamaForCausalLM(tiny_config()))
    with torch.no_grad():
        for parameter in prm.policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    solution = with_outcomes(solutions(1))[0]
    (example,) = label_solutions(TOKENIZER, outcome_solutions([solution]), joiner="\n")
    prompt = len(TOKENIZER(solution.problem + "\n")["input_ids"])
    assert example.prompt_length == prompt
    objective = OutcomeObjective(beta=0.5)
    batch = objective.collate([example])
    ids = example.input_ids

    def logprob(model, t):  # from a forward over the tokens before alone
        logits = model(torch.tensor([ids[:t]])).logits[0, -1].detach().double()
        return float(logits[ids[t]] - torch.logsumexp(logits, 0))

    expected = sum(logprob(prm.policy, t) - logprob(prm.reference, t) for t in range(prompt, len(ids)))
    ratios = prm.log_ratios(batch["input_ids"], batch["attention_mask"], batch["prompt_lengths"])
    assert float(ratios[0, -1].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(ratios[0, prompt - 1].detach()) == 0.0
    loss, _ = objective.loss(prm, batch)
    label = float(solution.answer_correct)
    p = 1 / (1 + math.exp(-0.5 * expected))
    assert float(loss.detach()) == pytest.approx(-math.log(p if label else 1 - p), rel=1e-4)


def test_an_implicit_prm_needs_outcomes_and_has_no_head(tmp_path):
    prm = new_implicit(LlamaForCausalLM(tiny_config()))
    with pytest.raises(UserError, match="answer_correct"):
        train(prm, solutions(10), [], tmp_path, objective="implicit")
    with pytest.raises(UserError, match="no head"):
        train(prm, with_outcomes(solutions(20)), [], tmp_path, objective="implicit", head_updates=1)
    with pytest.raises(UserError, match="critic.init: policy"):
        critic_from_prm(prm)


def test_a_prm_trained_further_keeps_what_it_was_made_with(tmp_path):
    prm = new_implicit(LlamaForCausalLM(tiny_config()), beta=0.5)
    save_model(tmp_path / "model", prm, TOKENIZER)
    rows = [{"problem": f"p {i}", "steps": ["one"], "labels": [1], "answer_correct": True} for i in range(8)]
    (tmp_path / "steps.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {"data": str(tmp_path / "steps.jsonl"), "model": str(tmp_path / "model"), "holdout": 0}
    values |= {"objective": "implicit", "output_dir": str(tmp_path / "run"), "fit": {**FAST, "epochs": 1}}
    run = {"accelerator": Accelerator(cpu=True), "log": Log()}
    for name, other in (("beta", 0.05), ("joiner", "\n\n"), ("extra_layers", 1)):
        with pytest.raises(UserError, match=f"{name} .* is a PRM already, .*; leave {name} out"):
            train_prm(PRMConfig.from_dict({**values, name: other}), **run)
    betas = []
    with pytest.MonkeyPatch.context() as patch:
        note = lambda *_, beta, **__: betas.append(beta) or OutcomeObjective(beta)  # noqa: E731
        patch.setattr("prm.train.make_objective", note)
        train_prm(PRMConfig.from_dict(values), **run)
    assert betas == [0.5]


def test_fit_reports_what_pairs_count(tmp_path):
    pairs = [StepPair("p", (), ("three",), ("four",))] * 3 + [StepPair("p", (), ("one three",), ("six",))]
    log = Log()
    fit(
        tiny("bradley_terry"),
        encode_pairs(TOKENIZER, pairs, joiner="\n"),
        PairObjective(),
        FitConfig(epochs=1, batch_size=4, micro_batch_tokens=64),
        accelerator=Accelerator(cpu=True),
        run_dir=tmp_path,
        log=log,
    )
    assert log.rows[0][1]["train/loss"] == pytest.approx(math.log(2), rel=1e-5)
