"""examples/ as they stand, on the built-in world with tiny models; and what else may come from memory."""

import copy
import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from cli_cases import save_models
from datasets import Dataset, DatasetDict
from format_cases import byte_tokenizer, checkpoint
from peft import LoraConfig, get_peft_model
from rl_world import OracleScorer, taught_policy, tiny_policy
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from data.arithmetic import make_problems
from data.errors import UserError
from data.preference_readers import read_preferences
from data.step_readers import read_steps
from data.task_readers import read_problems, read_sft
from prm.formats import load_scorer
from prm.model import load_backbone
from prm.model import load_prm as load_prm_model
from reasoning_rl import api
from reasoning_rl.config import PPOConfig
from reasoning_rl.reward_model import FORMAT, load_response_scorer
from reasoning_rl.telemetry import read_metrics

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
SMALL = {
    "iterations": 1,
    "num_validation": 2,
    "num_problems": 12,
    "rollout": {"problems_per_iteration": 4, "samples_per_problem": 2, "max_new_tokens": 12},
    "critic": {"pretrain_iterations": 0},
    "update": {"minibatch_size": 8},
}
ONE = {"fit": {"max_updates": 1}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    tokenizer, policy = taught_policy()
    return save_models(tmp_path_factory.mktemp("models"), tokenizer, policy)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLES[0].parent)])


def example(name: str):
    return import_module(name)


def test_every_example_is_tested_here() -> None:
    said = Path(__file__).read_text(encoding="utf-8")
    assert len(EXAMPLES) == 6 and all(f'example("{path.stem}")' in said for path in EXAMPLES)
    # Five lines of use: what a reader copies is short.
    assert all(len(path.read_text().splitlines()) < 50 for path in EXAMPLES)


def test_the_readmes_lines_run(models, tmp_path) -> None:
    readme = (EXAMPLES[0].parent.parent / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from reasoning_rl\.api .*?)```", readme, re.S)
    for stage, name in (("prm", "prm"), ("sft", "policy")):
        (tmp_path / "outputs/quickstart" / stage).mkdir(parents=True)
        (tmp_path / "outputs/quickstart" / stage / "model").symlink_to(models / name)
    exec(code.replace("iterations=2", "**SMALL"), {"SMALL": SMALL, "__name__": "readme"})
    assert "reward/response" in read_metrics(str(tmp_path / "runs/own"))[-1]


def test_score_a_solution(models) -> None:
    scores = example("score_solution").main(str(models / "prm"))
    example_of = example("score_solution")
    assert scores == load_scorer(str(models / "prm")).score([example_of.PROBLEM], [example_of.STEPS])[0]
    assert len(scores) == 3 and all(0 <= score <= 1 for score in scores)


def test_train_a_prm(models, tmp_path) -> None:
    folder = example("train_prm").main(str(models / "policy"), str(tmp_path / "prm"), **ONE)
    assert load_prm_model(folder).config.prm_format == "stepwell"
    # What was in memory is kept as rows that the command line reads as well.
    assert read_steps(tmp_path / "prm" / "inputs" / "data.jsonl")[1].labels == (0.0, 0.0)


def test_ppo_on_ones_own_reward(models, tmp_path) -> None:
    folder = example("ppo_own_reward").main(str(models / "policy"), output_dir=str(tmp_path / "ppo"), **SMALL)
    assert "reward/response" in read_metrics(str(tmp_path / "ppo"))[-1] and (folder / "config.json").is_file()
    config = PPOConfig.from_yaml(tmp_path / "ppo" / "config.yaml")
    assert config.reward_model == "ppo_own_reward:short_and_right" and config.reward.form == "none"


def test_grade_answers() -> None:
    assert [v.status for v in example("grade_answers").main()] == ["correct", "correct", "wrong", "wrong"]


def test_run_a_benchmark(models, tmp_path) -> None:
    settings = {"limit": 3, "max_new_tokens": 12}
    result, own = example("run_benchmark").main(
        "arithmetic", str(models / "policy"), str(tmp_path), **settings
    )
    assert result.num_problems == 3 and own.accuracy.value == 0.5


def test_plugins_of_ones_own(models, tmp_path) -> None:
    result = example("own_plugins").main(str(models / "policy"), str(tmp_path / "own"), **SMALL)
    assert result.num_problems == 40
    metrics = read_metrics(str(tmp_path / "own"))[-1]
    assert "reward/step_score" in metrics
    # The splitter, too: shorter lines are no steps.
    assert example("own_plugins").split("1\nabc\n") == ["abc"]


# --- what transformers and TRL hand over -------------------------------------------------------------------


def test_models_in_memory_train_and_are_evaluated(tmp_path) -> None:
    tokenizer, policy = taught_policy()
    before = {name: p.clone() for name, p in policy.named_parameters()}
    problems = make_problems(12, 0)
    rows = [{"prompt": [{"role": "user", "content": p.text}], "truth": int(p.answer)} for p in problems]
    told = []

    def trl_reward(completions, truth, **kwargs):
        told.extend(truth)
        return [
            float(message[0]["content"].endswith(f"#### {t}"))
            for message, t in zip(completions, truth, strict=True)
        ]

    own = {"prm": OracleScorer(problems), "reward": trl_reward, "tokenizer": tokenizer, **SMALL}
    api.train_ppo(policy, Dataset.from_list(rows), output_dir=tmp_path / "ppo", **own)
    assert {"reward/step_score", "reward/response"} <= read_metrics(str(tmp_path / "ppo"))[-1].keys()
    assert set(told) <= {int(p.answer) for p in problems}
    # The user's model is left as it was, and config.yaml names where it is kept.
    assert all(bool((p == before[name]).all()) for name, p in policy.named_parameters())
    config = PPOConfig.from_yaml(tmp_path / "ppo" / "config.yaml")
    assert Path(config.policy) == tmp_path / "ppo" / "inputs" / "policy"
    assert len(read_problems("rows", config.problems)) == 12
    options = {"model": policy, "tokenizer": tokenizer, "output_dir": tmp_path / "e", "max_new_tokens": 4}
    assert api.run_benchmark(rows[:2], **options).num_problems == 2
    # Other weights are another evaluation, not the old one continued.
    with pytest.raises(UserError, match="holds a run with model"):
        api.run_benchmark(rows[:2], **options | {"model": tiny_policy(tokenizer)})


def test_a_token_classifier_in_memory_scores_as_from_its_folder() -> None:
    folder = checkpoint("trl")
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = api.score_solution(model, "2 + 3?", ["It is 5.", "So 5."], tokenizer=tokenizer, format="trl")
    assert scores == load_scorer(folder, "trl").score(["2 + 3?"], [["It is 5.", "So 5."]])[0]
    with pytest.raises(UserError, match="cannot tell its PRM format"):
        api.load_prm(model, tokenizer=tokenizer)
    with pytest.raises(UserError, match="in memory has none known; save it and give its folder"):
        api.load_prm(model, tokenizer=tokenizer, format="qwen-math-prm")


def test_trl_data_sets_are_read_as_they_are(tmp_path) -> None:
    user, good, bad = (
        {"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "A"), ("assistant", "B"))
    )
    steps = Dataset.from_dict({"prompt": ["Q"], "completions": [["a", "b"]], "labels": [[True, False]]})
    assert read_steps(steps)[0].labels == (1.0, 0.0)
    assert read_sft(Dataset.from_list([{"prompt": "Q", "completion": "A"}])) == [("Q", "A")]
    assert read_sft(Dataset.from_list([{"prompt": [user], "completion": [good]}])) == [("Q", "A")]
    assert read_sft(DatasetDict(train=Dataset.from_list([{"messages": [user, good]}]))) == [("Q", "A")]
    for row in (
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
    ):
        (pair,) = read_preferences(Dataset.from_list([row]))
        assert (pair.chosen.strip(), pair.rejected.strip()) == ("A", "B")
    asked = Dataset.from_list([{"prompt": [user], "ground_truth": "7", "tag": "x"}])
    asked.save_to_disk(tmp_path / "saved")
    for source in (asked, str(tmp_path / "saved"), asked.to_list()):
        (problem,) = read_problems("rows", source)
        assert (problem.text, problem.answer, problem.meta["tag"]) == ("Q", "7", "x")
    with pytest.raises(UserError, match="Dataset in memory:row 1: no field 'problem'"):
        read_problems("rows", Dataset.from_list([{"x": 1}]))
    with pytest.raises(UserError, match="no split 'train'; it has test"):
        read_steps(DatasetDict(test=steps))


def test_the_other_trainers_take_data_sets_and_models(tmp_path) -> None:
    tokenizer = byte_tokenizer()
    model = tiny_policy(tokenizer)
    pairs = Dataset.from_list([{"prompt": f"Q{n}", "chosen": " A", "rejected": " B"} for n in range(3)])
    rows = [{"prompt": f"Q{n}", "completion": " A"} for n in range(3)]
    own = {"model": model, "tokenizer": tokenizer, **ONE}
    for train, data in ((api.train_sft, rows), (api.train_dpo, pairs), (api.train_reward, pairs)):
        settings = {} if train is api.train_sft else {"holdout": 0}
        folder = train(data, output_dir=tmp_path / train.__name__, **own, **settings)
        assert (folder / "config.json").is_file()
        assert (
            json.loads((folder.parent / "inputs" / "data.jsonl").read_text().splitlines()[0])["prompt"]
            == "Q0"
        )


def test_a_peft_model_is_taken_with_its_adapters(tmp_path) -> None:
    tokenizer = byte_tokenizer()
    base = tiny_policy(tokenizer)
    plain = {name: p.clone() for name, p in base.named_parameters()}
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    merged = copy.deepcopy(adapted).merge_and_unload()
    rows, options = [{"prompt": "Q", "completion": " A"}], {"tokenizer": tokenizer, **ONE}
    api.train_sft(rows, model=adapted, output_dir=tmp_path / "sft", **options)
    stored = load_backbone(tmp_path / "sft" / "inputs" / "model")
    assert_close(dict(stored.named_parameters()), dict(merged.named_parameters()), rtol=1e-6, atol=1e-6)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not bool((stored.get_parameter(name) == plain[name]).all())


def test_what_is_handed_over_becomes_settings_that_the_command_reads(models, tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("reasoning_rl.compose.train_ppo", lambda config, **rest: seen.append(config))

    def asked(policy, problems="arithmetic", **options):
        api.train_ppo(policy, problems, output_dir=tmp_path / f"run{len(seen)}", **options)
        return seen[-1]

    tokenizer = byte_tokenizer()
    rows = tmp_path / "g.jsonl"
    config = asked(models / "policy", rows, problems_format="gsm8k", reward=Path("runs/rm"))
    assert (config.problems, config.problems_format, config.reward_model) == (str(rows), "gsm8k", "runs/rm")
    assert asked(models / "policy", ["gsm8k", rows]).problems == ("gsm8k", str(rows))
    # A function has no weights that a critic could start from, by its name as well.
    assert asked(models / "policy", prm="mymodule:score").critic.init == "policy"
    assert asked(models / "policy", prm=models / "prm").critic.init == "prm"
    shape = tiny_policy(tokenizer).config
    shape.num_labels, shape.reward_format = 1, FORMAT
    judge = AutoModelForSequenceClassification.from_config(shape)
    config = asked(models / "policy", reward=judge, reward_tokenizer=tokenizer)
    assert len(load_response_scorer(config.reward_model).score_responses(["Q"], ["A"])) == 1
    # The tokenizer of a model in memory may be a folder.
    config = asked(tiny_policy(tokenizer), tokenizer=str(models / "policy"))
    found, own = (AutoTokenizer.from_pretrained(path) for path in (config.policy, models / "policy"))
    assert found.get_vocab() == own.get_vocab()


def test_mistakes_in_python_are_told(models, tmp_path) -> None:
    with pytest.raises(UserError, match="2 responses and 1 answers"):
        api.grade_answers(["1", "2"], ["1"])
    tokenizer = byte_tokenizer()
    with pytest.raises(UserError, match="backend: a model in memory runs here, on hf, and not on vllm"):
        api.run_benchmark("arithmetic", model=tiny_policy(tokenizer), tokenizer=tokenizer, backend="vllm")
    with pytest.raises(UserError, match="in memory needs its tokenizer"):
        api.train_prm([{"x": 1}], model=tiny_policy(byte_tokenizer()), output_dir=tmp_path / "a")
    with pytest.raises(UserError, match="unknown key 'iteratons'; did you mean 'iterations'"):
        api.train_ppo(models / "policy", output_dir=tmp_path / "b", iteratons=3)
    with pytest.raises(UserError, match="holds what no JSON row can"):
        api.train_sft([{"prompt": object()}], model=models / "policy", output_dir=tmp_path / "c")
    with pytest.raises(UserError, match="programs are judged by tests"):
        api.grade_answer("def f(): pass", "", benchmark="humaneval")
