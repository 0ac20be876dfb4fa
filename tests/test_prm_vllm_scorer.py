"""The vLLM scorer against the local one on the same folders. Tests marked vllm start the real engine."""

import importlib.util
import json
import os
import sys

import pytest
import torch
from format_cases import (
    ARCHITECTURES,
    PROBLEM,
    STEPS,
    WILD,
    checkpoint,
    config_of,
    save_wrapped,
    tokenizer_for,
)
from transformers import LlamaConfig, Qwen2Config

from data.errors import UserError
from prm.checkpoint import save_model
from prm.formats import load_scorer
from prm.formats.registry import FORMATS
from prm.model import new_prm
from prm.vllm_scorer import VllmScorer
from reasoning_rl.cli import main

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs the vllm extra")
PROBLEMS = [PROBLEM, PROBLEM, "", PROBLEM, PROBLEM]
SOLUTIONS = [STEPS, WILD, ["It is 6.", ""], [], ["So 5." * 40, "The answer is 4." * 60, "It is 5."]]
"""The last one is longer than the context of the models here."""


def own_prm(folder, config_kind, objective, extra_layers=0):
    tokenizer = tokenizer_for("trl")
    config = config_of(config_kind, tokenizer)
    # vLLM's attention on a CPU has no kernel for heads narrower than 32.
    config.hidden_size, config.head_dim = 64, 32
    torch.manual_seed(0)
    prm = new_prm(config, objective=objective, extra_layers=extra_layers)
    torch.nn.init.normal_(prm.score.weight)
    torch.nn.init.normal_(prm.score.bias)
    save_model(folder, prm, tokenizer)
    return folder


def published(folder, name):
    layout, kind, config_kind = ARCHITECTURES[name]
    tokenizer = tokenizer_for(name)
    config = config_of(config_kind, tokenizer, num_labels=2)
    config.num_attention_heads = 1
    torch.manual_seed(0)
    tokenizer.save_pretrained(folder)
    if layout == "classifier":
        model = kind(config)
        torch.nn.init.normal_(model.score.weight)
        model.save_pretrained(folder)
    else:
        save_wrapped(folder, layout, config)
    return folder


def largest_difference(left, right):
    """Over all steps; the two must have scored the same ones."""
    assert [[s is None for s in row] for row in left] == [[s is None for s in row] for row in right]
    pairs = [
        (a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
        if a is not None
    ]
    return max(abs(a - b) for a, b in pairs)


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("config_kind", "objective", "extra_layers"),
    [(Qwen2Config, "cross_entropy", 1), (LlamaConfig, "three_class", 0), (Qwen2Config, "bce", 0)],
)
def test_our_own_models_score_as_locally(tmp_path, config_kind, objective, extra_layers):
    folder = own_prm(tmp_path, config_kind, objective, extra_layers)
    local = load_scorer(folder).score(PROBLEMS, SOLUTIONS)
    environment = dict(os.environ)
    with VllmScorer.load(folder, in_process=True) as scorer:
        scores = scorer.score(PROBLEMS, SOLUTIONS)
        turned = scorer.score(PROBLEMS[::-1], SOLUTIONS[::-1])
        assert largest_difference(turned[::-1], scores) < 1e-5, "whatever the batch, the same scores"
        assert scorer.score([], []) == [] and scorer.score(["x"], [[]]) == [[]]
    assert largest_difference(scores, local) < 1e-4
    assert scores[-1][0] is not None and scores[-1][-1] is None, "the long one is cut, not shifted"
    assert len({round(s, 3) for row in scores for s in row if s is not None}) > 3
    assert dict(os.environ) == environment
    with pytest.raises(UserError, match="was closed"):
        scorer.score(PROBLEMS, SOLUTIONS)


@needs_vllm
@pytest.mark.vllm
@pytest.mark.parametrize("name", ["qwen-math-prm", "trl"])
def test_published_class_heads_score_as_locally(tmp_path, name):
    folder = published(tmp_path, name)
    local = load_scorer(folder, name, max_length=200).score(PROBLEMS, SOLUTIONS)
    with VllmScorer.load(folder, FORMATS[name], max_length=200, in_process=True) as scorer:
        scores = scorer.score(PROBLEMS, SOLUTIONS)
    assert largest_difference(scores, local) < 1e-4
    assert None in scores[-1]


@needs_vllm
@pytest.mark.vllm
def test_score_command_by_the_engine_writes_what_torch_writes(tmp_path, monkeypatch, capsys):
    """In the engine's own process, as users run it."""
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    folder = own_prm(tmp_path / "prm", Qwen2Config, "cross_entropy")
    source = tmp_path / "in.jsonl"
    rows = [{"id": f"p{k}", "problem": PROBLEM, "steps": STEPS[: 1 + k % 3]} for k in range(5)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scored = {}
    for backend in ("local", "vllm"):
        output = tmp_path / f"{backend}.jsonl"
        arguments = ["score", "--prm", folder, "--input", source, "--output", output]
        main([*map(str, arguments), "--prm-backend", backend])
        scored[backend] = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    steps = {backend: [row["step_scores"] for row in rows] for backend, rows in scored.items()}
    assert largest_difference(steps["vllm"], steps["local"]) < 1e-4
    assert scored["vllm"][0]["scored_by"]["prm_backend"] == "vllm"
    # Scores of the two are not mixed in one file.
    with pytest.raises(SystemExit):
        main([*map(str, arguments[:5]), "--output", str(tmp_path / "local.jsonl"), "--prm-backend", "vllm"])
    assert "stepwell:" in capsys.readouterr().err


@needs_vllm
@pytest.mark.vllm
def test_an_engine_that_cannot_serve_the_model_says_so(tmp_path):
    folder = checkpoint("trl")  # heads 16 wide: no kernel on a CPU
    with pytest.raises(UserError, match="vLLM cannot start .*head_dim=16.* lower max_length"):
        VllmScorer.load(folder, FORMATS["trl"], in_process=True)


@pytest.mark.parametrize("name", ["math-shepherd", "skywork", "implicit-prm"])
def test_heads_that_the_engine_does_not_serve_are_refused_before_it_starts(name):
    with pytest.raises(UserError, match="vLLM serves classifier and two_layer; .*prm_backend local"):
        VllmScorer.load(checkpoint(name), FORMATS[name])


def test_without_vllm_the_extra_is_named(tmp_path, monkeypatch):
    folder = own_prm(tmp_path, Qwen2Config, "cross_entropy")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'stepwell\[vllm\]'"):
        VllmScorer.load(folder)
