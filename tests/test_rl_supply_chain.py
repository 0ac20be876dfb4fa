"""What comes from outside is data: no code of a model's authors, no pickles, no markup of a model's text."""

import json
import re
from pathlib import Path

import pytest
import torch
from cli_cases import save_models
from rl_world import tiny_policy, world

from data.errors import UserError
from prm.checkpoint import save_model
from prm.model import load_backbone, load_tokenizer
from reasoning_rl.step_map import read_scored
from reasoning_rl.step_map_html import page

ROOT = Path(__file__).parent.parent
SCRIPT = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def test_a_model_with_code_of_its_own_is_refused_by_name(tmp_path, monkeypatch) -> None:
    tokenizer, _ = world(1)
    save_model(tmp_path, tiny_policy(tokenizer), tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="trust_remote_code.*STEPWELL_TRUST_REMOTE_CODE=1"):
        load_backbone(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused_unless_asked_for_and_never_run(tmp_path, monkeypatch) -> None:
    models = save_models(tmp_path)
    folder = models / "policy"
    state = load_backbone(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors weights.*STEPWELL_ALLOW_PICKLE=1"):
        load_backbone(folder)
    monkeypatch.setenv("STEPWELL_ALLOW_PICKLE", "1")
    assert torch.equal(load_backbone(folder).lm_head.weight, state["lm_head.weight"])
    assert load_tokenizer(folder)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({**state, "evil": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError):
        load_backbone(folder)
    assert not (tmp_path / "ran").exists()


def test_a_step_map_shows_markup_as_text(tmp_path) -> None:
    row = {"problem": SCRIPT, "steps": [SCRIPT], "step_scores": [0.5], "id": SCRIPT, "labels": [1.0]}
    (tmp_path / "scored.jsonl").write_text(json.dumps(row) + "\n")
    shown = page(read_scored(tmp_path / "scored.jsonl"), SCRIPT)
    assert "<script" not in shown and "<img" not in shown
    assert shown.count("&lt;script&gt;") >= 4  # title, heading, problem, step


def test_nothing_in_the_packages_reads_a_pickle_that_may_run_code() -> None:
    for package in ("data", "eval", "prm", "reasoning_rl"):
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            for call in re.finditer(r"torch\.load\([^)]*\)", text):
                assert "weights_only=True" in call.group(), file
            assert not re.search(r"^import pickle|pickle\.loads?\(|trust_remote_code=True", text, re.M), file
