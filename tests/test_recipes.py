"""configs/recipes: each file read, reckoned and run with tiny models; nothing here says what they reach."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from format_cases import byte_tokenizer, checkpoint
from rl_world import tiny_policy

from data.errors import UserError
from data.settings import read_yaml
from prm.checkpoint import save_model
from prm.train import PRMConfig
from reasoning_rl.cli import VERBS, load, main
from reasoning_rl.commands_plan import plan_text
from reasoning_rl.config import PPOConfig
from reasoning_rl.options import parse
from reasoning_rl.plan import MODELS, RESERVE, activation_bytes, adapter_parameters, choose, config_name, plan
from reasoning_rl.plan_config import PlanConfig
from reasoning_rl.plan_run import Machine, batch_of, cost_of, kv_tokens_of, run_of, size_of
from reasoning_rl.telemetry import read_metrics

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
PPO = [path for path in RECIPES if path.stem.endswith("_ppo")]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
CONTEXT = 4096
"""Of Qwen2.5-Math, from its config.json; Qwen2.5-Coder's is longer."""


def read(path: Path) -> PPOConfig:
    return PPOConfig.from_preset(read_yaml(path), str(path))


def header(path: Path) -> str:
    lines = [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]
    return " ".join(lines).replace("\\ ", "")


def asked_tokens(config: PPOConfig, size: str) -> int:
    tokens = kv_tokens_of(config, MODELS[size])
    assert tokens is not None
    return tokens


def plan_of(path: Path) -> PlanConfig:
    words = re.search(r"stepwell plan ([-\w./ ]+?)(?= #| The | No |$)", header(path))[1].split()
    return PlanConfig.from_dict(parse(words, PlanConfig).values)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_launch_line_names_what_is_there(path) -> None:
    said = header(path)
    named = re.findall(r"\b(?:configs|scripts)/[\w./]+\w", said)
    assert str(path.relative_to(ROOT)) in named
    assert [name for name in named if not (ROOT / name).is_file()] == []
    accelerate = yaml.safe_load((ROOT / next(n for n in named if "accelerate" in n)).read_text())
    inner = accelerate.get("deepspeed_config", {}).get("deepspeed_config_file")
    assert inner is None or (ROOT / inner).is_file()
    assert path.relative_to(ROOT).as_posix() in PAGE
    for words in re.findall(r"stepwell serve ([-\w./ ]+?)(?= CUDA)", said):
        settings = load(VERBS["serve"].settings)
        served = settings.from_dict(parse(words.split(), settings).values)
        config = read(path)
        assert (
            served.model == config.policy
            and config.rollout.engine.url == f"http://{served.host}:{served.port}"
        )
        assert served.engine.max_model_len == CONTEXT


@pytest.mark.parametrize("path", PPO, ids=lambda path: path.stem)
def test_its_batches_divide_and_its_models_fit(path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    config, asked, said = read(path), plan_of(path), header(path)
    processes = int(found[1]) if (found := re.search(r"--num_processes (\d+)", said)) else 1
    assert asked.gpus == processes
    batch = batch_of(config, num_processes=processes)
    assert batch.rollouts == config.rollouts_per_iteration == batch.updates * config.update.minibatch_size
    assert batch.problems_a_process * processes == config.rollout.problems_per_iteration
    assert batch.responses_a_process * processes == config.update.minibatch_size
    engine = config.rollout.engine
    assert 200 + config.rollout.max_new_tokens <= (engine.max_model_len or CONTEXT) <= CONTEXT
    # The advice of `stepwell plan` is what the launch line takes, and fits.
    text = plan_text(asked)
    advised = re.search(r"take (configs/accelerate/\w+\.yaml) with --num_processes (\d+)", text)
    assert advised[1] in said and int(advised[2]) == processes
    sizes = [size_of(config.policy), size_of(config.prm) if config.prm else None]
    run = run_of(config, num_gpus=processes, prm=MODELS.get(sizes[1] or ""))
    chosen = choose(MODELS[sizes[0]], run, asked.gpu_gb * 1e9)
    assert chosen is not None and config_name(chosen) in advised[1]
    assert plan(MODELS[sizes[0]], chosen).total <= RESERVE * asked.gpu_gb * 1e9
    if engine.backend == "vllm":  # what it asks to find free when it starts is what it takes
        share = engine.gpu_memory_utilization * asked.gpu_gb * 1e9
        held = plan(MODELS[sizes[0]], replace(run, kv_tokens=asked_tokens(config, sizes[0])))
        assert held.engine <= share <= RESERVE * asked.gpu_gb * 1e9 - (held.actor + held.critic + held.prm)
    if chosen.engine == "zero3":  # adapters and moving models are refused where weights are cut up
        assert config.lora.rank == config.critic.lora.rank == 0 and config.offload == "none"
    # What the page shows is what the command prints.
    for line in text.splitlines():
        if "<" in line or line.lstrip().startswith(("an iteration", "estimate", "training")):
            assert line.strip() in PAGE, line


def test_the_reward_model_of_the_small_recipe_fits() -> None:
    path = ROOT / "configs" / "recipes" / "math_1.5b_prm.yaml"
    config = PRMConfig.from_yaml(path)
    model = MODELS[size_of(config.model)]
    assert config.max_length <= config.fit.micro_batch_tokens
    learned = adapter_parameters(model, config.lora.rank)
    states = 2 * model.num_parameters + 14 * learned
    kept = activation_bytes(model, config.fit.micro_batch_tokens, checkpointing=False)
    assert states + kept <= RESERVE * 24e9
    assert f"{(states + kept) / 1e9:.1f} GB" in PAGE
    assert read(path.with_name("math_1.5b_ppo.yaml")).prm == f"{config.output_dir}/model"


def test_the_pages_commands_are_commands() -> None:
    blocks = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).replace("\\\n", " ")
    found = [line.split("stepwell ", 1)[1].split() for line in blocks.splitlines() if "stepwell " in line]
    assert len(found) > 5
    for verb, *words in found:
        model = load(VERBS[verb].settings)
        model.from_dict(parse(words, model, positional=2).values)
    assert {path.relative_to(ROOT).as_posix() for path in RECIPES} <= set(
        re.findall(r"configs/[\w./]+yaml", PAGE)
    )


def test_the_estimate_by_hand() -> None:
    # P = 1e9, 2 iterations of 10 rollouts of 200 + 300 tokens: 1e4 tokens. Forwards: old, reference, values
    # and a PRM of the same size, 2 P each; updates of actor and critic 6 P each: 20 P a token.
    model = MODELS["1.5b"].__class__(1e9, 2, 10, 1, 4, 100)
    config = PPOConfig.from_preset(
        {
            "policy": "x",
            "prm": "y",
            "iterations": 2,
            "rollout": {"problems_per_iteration": 10, "max_new_tokens": 300, "max_batch": 5},
            "update": {"minibatch_size": 10},
        }
    )
    machine = Machine(2, tflops=100, gb_a_second=1000, utilisation=0.5, sampling_gpus=1, sampling_apart=True)
    cost = cost_of(config, model, prm=model, machine=machine)
    assert cost.tokens == 1e4
    assert cost.petaflops == pytest.approx(1e4 * 20e9 / 1e15)
    assert cost.training_hours == pytest.approx(1e4 * 20e9 / (2 * 50e12) / 3600)
    # 2 waves of 5 rows: 2 x 2 x 300 decoding steps, each reads 2e9 bytes of weights and 5 x 350 tokens of 32.
    assert cost.sampling_hours == pytest.approx(1200 * (2e9 + 5 * 350 * 32) / 1e12 / 3600)
    assert cost.gpu_hours == pytest.approx(3 * (cost.training_hours + cost.sampling_hours))


def test_a_plan_of_a_run_tells_what_it_lacks(tmp_path) -> None:
    (tmp_path / "run.yaml").write_text("policy: mine\nreward: {form: none}\n")
    with pytest.raises(UserError, match="no size in the name mine; give --model-size"):
        plan_text(PlanConfig(run=str(tmp_path / "run.yaml"), gpus=1))
    # What is given on the command line wins over the file.
    text = plan_text(PlanConfig(run=str(tmp_path / "run.yaml"), gpus=1, model_size="1.5b", lora_rank=8))
    assert "ddp <" in text and "4 updates of 32" in text


def test_batches_that_do_not_divide_are_told() -> None:
    config = read(ROOT / "configs" / "recipes" / "math_7b_ppo.yaml")
    with pytest.raises(UserError, match="96 must be divisible by 7"):
        batch_of(config, num_processes=7)
    short = config.model_copy(
        update={"update": config.update.model_copy(update={"micro_batch_tokens": 2000})}
    )
    with pytest.raises(UserError, match="hold no response of 2248 tokens"):
        batch_of(short, num_processes=6)
    assert size_of("Qwen/Qwen2.5-Math-7B-Instruct") == "7b" and size_of("runs/x_1.5b/model") == "1.5b"
    assert size_of("mistral-large") is None


# --- the same files with tiny random models: every path but vLLM, ZeRO and the sizes


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A policy with a chat template, and a few rows of every data set that the recipes name."""
    folder = tmp_path_factory.mktemp("recipes")
    tokenizer = byte_tokenizer()
    save_model(folder / "policy", tiny_policy(tokenizer), tokenizer)
    write(folder / "gsm8k.jsonl", [{"question": f"{n} and 1?", "answer": f"#### {n + 1}"} for n in range(8)])
    write(
        folder / "math.jsonl",
        [{"problem": f"Find ${n}+1$.", "solution": rf"\boxed{{{n + 1}}}"} for n in range(8)],
    )
    write(folder / "math500.jsonl", [{"problem": "Find $0 + 1$.", "solution": "", "answer": "1"}])
    add = {
        "code": "def add(a):\n    return a + 1",
        "test_list": ["assert add(1) == 2"],
        "test_setup_code": "",
    }
    write(folder / "mbpp.jsonl", [{"task_id": 601 + n, "text": f"Add one, {n}.", **add} for n in range(8)])
    io = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})
    apps = [{"problem_id": n, "question": f"Print 2, {n}.", "input_output": io} for n in range(8)]
    write(folder / "apps.jsonl", apps)
    human = {"entry_point": "f", "prompt": "def f():\n", "canonical_solution": "    return 1\n"}
    human |= {"test": "def check(candidate):\n    assert candidate() == 1\n", "task_id": "HumanEval/0"}
    write(folder / "humaneval.jsonl", [human])
    tagged = "2 and 2? Step 1: It is 4. {}\nStep 2: So 4. {}"
    labels = {"input": tagged.format("ки", "ки"), "label": tagged.format("+", "-"), "task": "GSM8K"}
    write(
        folder / "shepherd.jsonl",
        [{k: v.replace("2 and", f"{n} and") for k, v in labels.items()} for n in range(6)],
    )
    return folder


@pytest.fixture(scope="module")
def own_prm(tiny) -> Path:
    """What the recipe of the reward model leaves behind, run on six rows."""
    main(
        [
            *("prm", "--config", str(ROOT / "configs" / "recipes" / "math_1.5b_prm.yaml")),
            *("--model", str(tiny / "policy"), "--data", str(tiny / "shepherd.jsonl"), "--max-length", "200"),
            *(
                "--holdout",
                "0.2",
                "--lora.rank",
                "4",
                "--fit.batch-size",
                "4",
                "--output-dir",
                str(tiny / "prm"),
            ),
        ]
    )
    return tiny / "prm" / "model"


@pytest.mark.parametrize("path", PPO, ids=lambda path: path.stem)
def test_it_runs_with_tiny_models(path, tiny, own_prm, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    config = read(path)
    prm = {"qwen": ["--prm", checkpoint("qwen-math-prm"), "--prm-format", "qwen-math-prm"]}
    prm |= {"peiy": ["--prm", checkpoint("math-shepherd"), "--prm-format", "math-shepherd"]}
    prm |= {"runs": ["--prm", own_prm]}
    ranks = ["--lora.rank", "4", "--critic.lora.rank", "4"] if config.lora.rank else []
    main(
        [
            str(word)
            for word in (
                *("ppo", "--config", path, "--policy", tiny / "policy", "--output-dir", tmp_path / "run"),
                *("--problems", str([f"{name}={tiny}/{name}.jsonl" for name in config.problems])),
                *("--exclude", str([f"{name}={tiny}/{name}.jsonl" for name in config.exclude])),
                *(prm[config.prm[:4].lower()] if config.prm else ()),
                *ranks,
                *("--iterations", "1", "--num-validation", "2", "--critic.pretrain-iterations", "0"),
                *("--rollout.problems-per-iteration", "4", "--rollout.samples-per-problem", "2"),
                *("--rollout.max-new-tokens", "8", "--rollout.engine.backend", "hf"),
                *("--rollout.engine.url", "none", "--update.minibatch-size", "4"),
            )
        ]
    )
    last = read_metrics(str(tmp_path / "run"))[-1]
    assert ("reward/step_score" in last) == (config.prm is not None)
    assert "policy/kl_per_response" in last and "valid/greedy" in last
    assert (tmp_path / "run" / "model").is_dir() and (tmp_path / "run" / "adapter").is_dir() == bool(ranks)
    name = "humaneval" if "humaneval" in config.exclude else "math500"
    main(
        [
            *(
                "eval",
                name,
                "--model",
                str(tmp_path / "run" / "model"),
                "--source",
                str(tiny / f"{name}.jsonl"),
            ),
            *("--max-new-tokens", "4", "--output-dir", str(tmp_path / "eval")),
        ]
    )
    assert (tmp_path / "eval" / name / "result.json").is_file()
