import pytest
import torch
from transformers import LlamaConfig

from data.errors import UserError
from data.world_tokenizer import byte_bpe_tokenizer
from prm.checkpoint import save_model
from prm.model import encode_solution, new_prm
from prm.scorer import LocalScorer

TOKENIZER = byte_bpe_tokenizer(["Add 2 and 3.\nIt is 5.\nSo 5.\nThe answer is 4.\n"] * 3, 300)
PROBLEMS = ["Add 2 and 3.", "Half of 8?", "", "Add 2 and 3."]
SOLUTIONS = [["It is 5.", "So 5."], ["The answer is 4."], [], ["It is 6.", "", "So 6.", "The answer is 6."]]


@pytest.fixture
def prm():
    torch.manual_seed(0)
    model = new_prm(
        LlamaConfig(
            vocab_size=300,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    )
    torch.nn.init.normal_(model.score.weight)
    return model


def test_scores_are_the_class_one_probabilities_at_the_step_ends(prm):
    scores = LocalScorer(prm, TOKENIZER).score(PROBLEMS, SOLUTIONS)
    prm.eval().requires_grad_(False)
    for problem, steps, row in zip(PROBLEMS, SOLUTIONS, scores, strict=True):
        encoded = encode_solution(TOKENIZER, problem, steps, joiner="\n")
        full = prm(torch.tensor([encoded.input_ids])).logits.softmax(-1)[0, :, 1]
        assert row == pytest.approx([float(full[end]) for end in encoded.step_ends], abs=1e-5)
    assert scores[2] == []
    assert len({round(score, 4) for row in scores for score in row}) > 3


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_batches_score_as_singles_in_the_order_given(prm, budget):
    batched = LocalScorer(prm, TOKENIZER, max_batch_tokens=budget).score(PROBLEMS, SOLUTIONS)
    scorer = LocalScorer(prm, TOKENIZER)
    for problem, steps, row in zip(PROBLEMS, SOLUTIONS, batched, strict=True):
        assert row == pytest.approx(scorer.score([problem], [steps])[0], abs=1e-5)


def test_forwards_stay_within_the_token_budget(prm):
    shapes = []
    prm.model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    LocalScorer(prm, TOKENIZER, max_batch_tokens=60).score(PROBLEMS * 5, SOLUTIONS * 5)
    assert all(rows * width <= 60 for rows, width in shapes)
    assert max(rows for rows, _ in shapes) > 1
    assert sum(rows for rows, _ in shapes) == 15  # nothing is run for the empty solutions


def test_later_steps_do_not_change_earlier_scores(prm):
    scorer = LocalScorer(prm, TOKENIZER)
    steps = SOLUTIONS[3]
    whole = scorer.score([PROBLEMS[3]], [steps])[0]
    for k in range(1, len(steps) + 1):
        assert scorer.score([PROBLEMS[3]], [steps[:k]])[0] == pytest.approx(whole[:k], abs=1e-5)


def test_steps_beyond_the_context_score_none_and_the_others_the_same(prm):
    steps = [f"It is {k}." for k in range(40)]
    row = LocalScorer(prm, TOKENIZER).score(["Add 2"], [steps])[0]
    fitting = next(k for k, score in enumerate(row) if score is None)
    assert 0 < fitting < 40
    assert all(score is None for score in row[fitting:])
    assert row[:fitting] == pytest.approx(
        LocalScorer(prm, TOKENIZER).score(["Add 2"], [steps[:fitting]])[0], abs=1e-5
    )
    assert LocalScorer(prm, TOKENIZER, max_length=2).score(["Add 2 and 3."], [["a", "b"]]) == [[None, None]]


def test_grad_mode_and_training_mode_are_left_as_they_were(prm):
    scorer = LocalScorer(prm, TOKENIZER)
    prm.train()
    scorer.score(PROBLEMS, SOLUTIONS)
    assert torch.is_grad_enabled() and prm.training
    assert not any(p.is_inference() for p in prm.parameters())
    with torch.no_grad():
        scorer.score(PROBLEMS, SOLUTIONS)
        assert not torch.is_grad_enabled()


def test_the_joiner_comes_from_the_model_and_changes_the_scores(prm):
    prm.config.step_joiner = " "
    assert LocalScorer(prm, TOKENIZER).joiner == " "
    spaces = LocalScorer(prm, TOKENIZER).score(PROBLEMS[:1], SOLUTIONS[:1])[0]
    lines = LocalScorer(prm, TOKENIZER, joiner="\n").score(PROBLEMS[:1], SOLUTIONS[:1])[0]
    assert spaces != pytest.approx(lines)


def test_a_saved_scorer_scores_the_same(prm, tmp_path):
    save_model(tmp_path / "prm", prm, TOKENIZER)
    loaded = LocalScorer.load(tmp_path / "prm").score(PROBLEMS, SOLUTIONS)
    for row, expected in zip(loaded, LocalScorer(prm, TOKENIZER).score(PROBLEMS, SOLUTIONS), strict=True):
        assert row == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError):
        LocalScorer.load(tmp_path / "absent")
