"""Decoder layers through torch.compile: the same training, one graph, and a sampler that stays as it is."""

from functools import partialmethod

import pytest
import torch
from rl_runs import learner_for, run, settings
from rl_world import world
from torch import nn
from torch._dynamo.utils import counters

from data.errors import UserError
from prm import compiled


def test_compiled_layers_train_the_same_policy(tmp_path, monkeypatch) -> None:
    # The same graphs without the C++ kernels, which take most of a minute to build.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    tokenizer, problems = world(40)
    trained, rows = {}, {}
    for on in (False, True):
        counters.clear()
        update = {"minibatch_size": 8, "learning_rate": 1e-3, "micro_batch_tokens": 400, "compile_layers": on}
        config = settings(tmp_path / str(on), update=update, iterations=1)
        learner = learner_for(config, tokenizer)
        rows[on] = run(config, learner, tokenizer, problems)
        trained[on] = learner.policy
    # Frozen, without gradients, with them, of one row and of several; not one a shape or a layer.
    assert 1 <= counters["stats"]["unique_graphs"] <= 6
    assert not counters["graph_break"]
    assert rows[True][-1]["rollout/tokens"] == rows[False][-1]["rollout/tokens"]
    for name in ("policy/loss", "critic/loss", "policy/entropy"):
        assert rows[True][-1][name] == pytest.approx(rows[False][-1][name], rel=1e-3, abs=1e-5), name
    for (name, a), b in zip(trained[False].named_parameters(), trained[True].named_parameters(), strict=True):
        assert b[0] == name
        torch.testing.assert_close(a, b[1], rtol=1e-3, atol=1e-4, msg=name)


def test_what_cannot_be_compiled_is_said_before_a_run(monkeypatch) -> None:
    with pytest.raises(UserError, match="has no decoder layers"):
        compiled.compile_layers(nn.Linear(2, 2))
    tokenizer, _ = world(2)
    learner = learner_for(settings("unused"), tokenizer)
    # torch takes $CXX, else the one compiler of the system: any other does not count.
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name if name in ("c++", "clang++") else None)
    monkeypatch.setattr(compiled.sys, "platform", "linux")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"C\+\+ compiler on a CPU and 'g\+\+' is not on PATH"):
        compiled.compile_layers(learner.policy)
    monkeypatch.setenv("CXX", "nowhere/c++")
    with pytest.raises(UserError, match=r"'nowhere/c\+\+' is not on PATH"):
        compiled.compile_layers(learner.policy)
