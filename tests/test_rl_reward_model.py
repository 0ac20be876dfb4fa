"""The pairwise reward model: its loss by definition, that it learns, what it saves, and scoring with it."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from cli_cases import failure, ppo_settings, write_yaml
from rl_world import tiny_policy
from transformers import AutoModelForSequenceClassification

from data.preference_readers import write_preferences
from data.schema import Preference, Problem
from data.world_tokenizer import word_tokenizer
from prm.checkpoint import save_model
from prm.fit import FitConfig
from prm.model import classifier
from reasoning_rl.cli import main
from reasoning_rl.compose_preference import pair_metrics
from reasoning_rl.experience import reward_responses
from reasoning_rl.preference_examples import encode_preferences
from reasoning_rl.reward_model import (
    ResponseRewardModel,
    RewardObjective,
    RMConfig,
    new_reward_model,
    train_reward,
)
from reasoning_rl.telemetry import RunLog, read_metrics

TOKENIZER = word_tokenizer()
PAIRS = [
    Preference(f"Ann has {a}. Bob has {b}.\n", f"Bob has {b}", f"Ann has {a} more", id=f"{a}-{b}")
    for a in range(20, 32)
    for b in range(2, 8)
]


def with_random_head(trainee):
    torch.manual_seed(1)
    torch.nn.init.normal_(classifier(trainee.model).weight)
    return trainee


def test_the_loss_is_bradley_terry_plus_its_terms_by_definition() -> None:
    backbone = tiny_policy(TOKENIZER)
    trainee = with_random_head(new_reward_model(backbone, TOKENIZER, with_lm_head=True)).double()
    examples = encode_preferences(TOKENIZER, PAIRS[:3])
    objective = RewardObjective(lm_coef=0.7, centre_coef=0.1)
    batch = objective.collate(examples)
    loss, stats = objective.loss(trainee, batch)
    assert objective.count(batch) == 3
    expected, lm = 0.0, 0.0
    backbone = backbone.double()
    for example in examples:
        rewards = []
        for ids in (example.chosen_ids, example.rejected_ids):
            hidden = trainee.model.base_model(torch.tensor([ids]))[0][0, -1]
            rewards.append(float((classifier(trainee.model).weight[0] @ hidden).detach()))
        chosen, rejected = rewards
        expected += math.log1p(math.exp(rejected - chosen)) + 0.1 * (chosen + rejected) ** 2
        logprobs = backbone(torch.tensor([example.chosen_ids])).logits[0].log_softmax(-1).detach()
        places = range(example.prompt_length, len(example.chosen_ids))
        lm -= sum(float(logprobs[t - 1, example.chosen_ids[t]]) for t in places) / len(places)
    assert float(loss.detach()) == pytest.approx(expected + 0.7 * lm, rel=1e-5)
    assert float(stats["lm_loss"]) == pytest.approx(lm, rel=1e-5)


def config(folder: Path, **over) -> RMConfig:
    fit = FitConfig(learning_rate=3e-3, batch_size=8, epochs=3, save_every=5, log_every=4)
    return RMConfig(output_dir=str(folder / "rm"), fit=fit, **over)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rm")
    save_model(folder / "sft", tiny_policy(TOKENIZER), TOKENIZER)
    write_preferences(folder / "pairs.jsonl", PAIRS)
    settings = config(
        folder, model=str(folder / "sft"), data=str(folder / "pairs.jsonl"), holdout=0.2, lm_coef=0.1
    )
    log = RunLog(folder / "rm")
    train_reward(settings, accelerator=Accelerator(cpu=True), log=log, pair_metrics=pair_metrics)
    return folder


def test_it_learns_what_is_preferred_on_prompts_it_never_saw(trained: Path) -> None:
    last = read_metrics(trained / "rm")[-1]
    assert last["valid/accuracy"] > 0.9
    assert 0.7 < last["valid/accuracy_low"] < last["valid/accuracy"] < last["valid/accuracy_high"] + 1e-9
    assert last["valid/margin"] > 0 and 0 <= last["valid/ece"] < 0.5


def test_stored_moments_make_training_rewards_standard(trained: Path) -> None:
    scorer = ResponseRewardModel.load(trained / "rm" / "model")
    texts = [(p.prompt, text) for p in PAIRS for text in (p.chosen, p.rejected)]
    rewards = torch.tensor(scorer.score_responses([p for p, _ in texts], [t for _, t in texts]))
    assert abs(rewards.mean()) < 0.1 and abs(rewards.std() - 1) < 0.1  # a fifth of them was held out
    scorer.model.config.reward_normalised = False
    raw = torch.tensor(scorer.score_responses([p for p, _ in texts], [t for _, t in texts]))
    mean, std = scorer.model.config.reward_mean, scorer.model.config.reward_std
    torch.testing.assert_close((raw - mean) / std, rewards, rtol=1e-4, atol=1e-5)


def test_the_folder_is_a_plain_sequence_classifier_that_says_the_same(trained: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(trained / "rm" / "model").eval()
    scorer = ResponseRewardModel.load(trained / "rm" / "model")
    scorer.model.config.reward_normalised = False
    rows = [
        TOKENIZER(p.prompt)["input_ids"] + TOKENIZER(p.chosen)["input_ids"] + [TOKENIZER.eos_token_id]
        for p in (PAIRS[0], PAIRS[40])
    ]
    rows[0] = rows[0] + [TOKENIZER.pad_token_id] * 3
    rows[1] = rows[1] + [TOKENIZER.pad_token_id] * (len(rows[0]) - len(rows[1]))
    with torch.no_grad():
        logits = plain(torch.tensor(rows)).logits.squeeze(-1)
    ours = scorer.score_responses([PAIRS[0].prompt, PAIRS[40].prompt], [PAIRS[0].chosen, PAIRS[40].chosen])
    torch.testing.assert_close(logits, torch.tensor(ours), rtol=1e-4, atol=1e-5)


def test_a_text_that_does_not_fit_has_no_reward_unless_prompts_are_cut(trained: Path) -> None:
    scorer = ResponseRewardModel.load(trained / "rm" / "model")
    scorer.model.config.reward_max_length = 20
    short, long = PAIRS[0].prompt, "Ann has 20. " * 10 + PAIRS[0].prompt
    assert scorer.score_responses([short, long], [PAIRS[0].chosen] * 2)[1] is None
    scorer.model.config.reward_cut_prompt = True
    cut = scorer.score_responses([long], [PAIRS[0].chosen])[0]
    assert cut is not None and scorer.score_responses([], []) == []


def test_a_run_that_was_stopped_ends_with_the_same_model(trained: Path, tmp_path: Path) -> None:
    def train(folder: Path, resume: bool = False, stop_at: int | None = None):
        def watch(update: int, _: object) -> None:
            if update == stop_at:
                raise KeyboardInterrupt

        settings = config(
            folder,
            model=str(trained / "sft"),
            data=str(trained / "pairs.jsonl"),
            lm_coef=0.5,
            keep_best="valid/accuracy",
        )
        log = RunLog(folder / "rm", watch=watch)
        cpu = Accelerator(cpu=True)
        return ResponseRewardModel.load(
            train_reward(settings, accelerator=cpu, log=log, pair_metrics=pair_metrics, resume=resume)
        )

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "torn", stop_at=8)
    torn = train(tmp_path / "torn", resume=True)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(torn.model.state_dict()[name], value, rtol=0, atol=0)
    assert torn.model.config.reward_mean == whole.model.config.reward_mean


def test_the_metrics_of_pairs_by_hand() -> None:
    found = pair_metrics([2.0, 1.0, 0.0, 5.0], [1.0, 3.0, 0.0, 0.0])
    assert (found["accuracy"], found["margin"]) == (0.5, 1.0)  # a tie is no hit
    margins = (1.0, -2.0, 0.0, 5.0)
    assert found["loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 4)
    # Each in a bin of its own: said 0.731, 0.881, 0.5, 0.993 and was right, wrong, wrong, right.
    said = [1 / (1 + math.exp(-abs(m))) for m in margins]
    assert found["ece"] == pytest.approx(((1 - said[0]) + said[1] + said[2] + (1 - said[3])) / 4)


def test_the_command_trains_and_names_mistakes(trained: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    args = ["rm", "--model", trained / "sft", "--data", trained / "pairs.jsonl", "--holdout", "0.2"]
    main([str(a) for a in [*args, "--output-dir", tmp_path / "rm", "--fit.batch-size", "32"]])
    said = capsys.readouterr().out
    assert "accuracy" in said and "trained reward model" in said
    text = failure(capsys, "rm", "--data", trained / "pairs.jsonl")
    assert "exactly one of model and model_config_file" in text
    text = failure(capsys, *args, "--keep-best", "valid/auc", "--output-dir", tmp_path / "other")
    assert "no metric 'valid/auc'" in text


def test_ppo_is_paid_by_a_reward_model_on_prompts_without_an_answer(
    trained: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    rm = str(trained / "rm" / "model")
    settings = ppo_settings(trained, tmp_path / "ppo", iterations=2, validate_every=2, save_every=0)
    del settings["prm"]
    settings |= {
        "policy": str(trained / "sft"),
        "reward_model": rm,
        "problems": str(trained / "pairs.jsonl"),
        "problems_format": "prompts",
        "reward": {"form": "none", "step_weight": 0.0},
        "critic": {"init": "reward_model", "learning_rate": 1e-3, "pretrain_iterations": 1},
    }
    settings["rollout"] = settings["rollout"] | {"template": "raw", "max_new_tokens": 12}
    main(["ppo", "--config", write_yaml(tmp_path / "ppo.yaml", settings)])
    rows = read_metrics(tmp_path / "ppo")
    assert {"valid/greedy_reward", "valid/sampled_reward"} <= rows[-1].keys()
    assert "valid/greedy" not in rows[-1]  # nothing there could be right or wrong
    assert "reward/response" in rows[-1] and "reward/outcome" not in rows[-1]
    assert rows[-1]["rollout/unjudged"] == 0


def test_rewards_of_a_rollout_stand_in_the_outcomes_place(trained: Path) -> None:
    scorer = ResponseRewardModel.load(trained / "rm" / "model")
    problems = [Problem(p.id, p.prompt, "") for p in PAIRS[:3]]
    rollout = SimpleNamespace(
        problems=problems,
        responses=[p.chosen for p in PAIRS[:3]],
        complete=torch.tensor([True, False, True]),
    )
    rewards, judged = reward_responses(scorer, lambda text: text, rollout)
    alone = scorer.score_responses([p.prompt for p in PAIRS[:3]], [p.chosen for p in PAIRS[:3]])
    assert rewards.tolist() == pytest.approx([alone[0], 0.0, alone[2]], rel=1e-5)
    assert judged.all()
    scorer.model.config.reward_max_length = 3  # nothing fits: the complete ones are not judged
    assert reward_responses(scorer, lambda text: text, rollout)[1].tolist() == [False, True, False]
