"""Shared by the command-line tests: models in folders, small settings, what a failure must look like."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel
from rl_world import tiny_policy

from data.world_tokenizer import word_tokenizer
from prm.checkpoint import save_model
from prm.model import classifier, new_prm
from reasoning_rl.cli import main

ENVIRONMENT = {
    **os.environ,
    "STEPWELL_DEVICE": "cpu",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "200",
}


def save_models(folder: Path, tokenizer: Any = None, policy: Any = None) -> Path:
    """Write folder/policy and folder/prm; the PRM's head is random, so that scores differ."""
    tokenizer = tokenizer or word_tokenizer()
    policy = policy or tiny_policy(tokenizer)
    save_model(folder / "policy", policy, tokenizer)
    torch.manual_seed(1)
    prm = new_prm(policy)
    torch.nn.init.normal_(classifier(prm).weight)
    save_model(folder / "prm", prm, tokenizer)
    return folder


def ppo_settings(models: Path, output_dir: Path, **over: Any) -> dict[str, Any]:
    """A PPO run of seconds with every moving part of ppo_max on."""
    return {
        "policy": str(models / "policy"),
        "prm": str(models / "prm"),
        "output_dir": str(output_dir),
        "num_problems": 40,
        "iterations": 2,
        "validate_every": 4,
        "num_validation": 8,
        "save_every": 1,
        "rollout": {
            "problems_per_iteration": 8,
            "samples_per_problem": 2,
            "max_new_tokens": 24,
            "temperature": 1.0,
            "top_p": 1.0,
        },
        "critic": {"learning_rate": 1e-3, "pretrain_iterations": 1},
        "update": {"minibatch_size": 8, "learning_rate": 1e-3, "schedule": "linear"},
    } | over


def write_yaml(path: Path, values: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def failure(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    """Return what the command said; it must exit with 2 after one or two lines and no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main([str(arg) for arg in args])
    text = capsys.readouterr().err
    assert exit_info.value.code == 2, text
    check_message(text)
    return text


def check_message(text: str) -> None:
    assert "Traceback" not in text
    head, found, message = text.partition("stepwell: ")
    assert found, text
    # Before the message stands at most the live view's line that a stage has started.
    assert all(line.split(":")[-1].startswith(" started") for line in head.splitlines()), text
    assert 1 <= len(message.splitlines()) <= 2, text


def field_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all leaf fields."""
    names: list[str] = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        names += field_names(kind, f"{prefix}{name}.") if is_section else [prefix + name]
    return names
