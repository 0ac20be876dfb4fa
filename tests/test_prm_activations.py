"""Gradient checkpointing in the supervised loop: the same weights, and layers that run twice."""

import copy

import pytest
import torch
from accelerate import Accelerator
from rl_world import tiny_policy, world
from torch import nn

from data.errors import UserError
from data.schema import Preference, StepSolution
from prm.activations import checkpoint_layers
from prm.examples import label_solutions
from prm.fit import FitConfig, fit
from prm.model import new_prm
from prm.objectives import make_objective
from reasoning_rl.dpo import PreferenceObjective, PreferenceSettings
from reasoning_rl.preference_examples import encode_preferences
from reasoning_rl.reference_logprobs import cache_reference
from reasoning_rl.sft import NextToken, encode_pairs
from reasoning_rl.telemetry import RunLog


def sft(tokenizer, problems):
    pairs = [(f"{p.text}\n", p.solution) for p in problems]
    return tiny_policy(tokenizer), encode_pairs(tokenizer, pairs), NextToken()


def dpo(tokenizer, problems):
    model = tiny_policy(tokenizer)
    pairs = [Preference(f"{p.text}\n", p.solution, "no idea") for p in problems]
    examples = cache_reference(model, encode_preferences(tokenizer, pairs, 200))
    return model, examples, PreferenceObjective(PreferenceSettings())


def prm(tokenizer, problems):
    rows = [
        StepSolution(p.text, tuple(p.solution.splitlines()), tuple(1.0 for _ in p.solution.splitlines()))
        for p in problems
    ]
    examples = label_solutions(tokenizer, rows, joiner="\n", limit=200)
    return new_prm(tiny_policy(tokenizer)), examples, make_objective("cross_entropy")


@pytest.mark.parametrize("task", [sft, dpo, prm])
def test_training_gives_the_same_weights_with_layers_run_twice(tmp_path, task) -> None:
    tokenizer, problems = world(12)
    start, examples, objective = task(tokenizer, problems)
    trained, calls = {}, {}
    for on in (False, True):
        model = trained[on] = copy.deepcopy(start)
        count = calls[on] = []
        model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *_, count=count: count.append(1))
        config = FitConfig(batch_size=4, learning_rate=1e-3, gradient_checkpointing=on)
        log, folder = RunLog(tmp_path / str(on)), tmp_path / str(on)
        fit(model, examples, objective, config, accelerator=Accelerator(cpu=True), run_dir=folder, log=log)
    assert len(calls[True]) == 2 * len(calls[False]) > 0
    for (name, a), b in zip(trained[False].named_parameters(), trained[True].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(trained[True].model.norm.weight, start.model.norm.weight)


def test_an_architecture_without_it_is_refused() -> None:
    with pytest.raises(UserError, match="Linear: .*set gradient_checkpointing to false"):
        checkpoint_layers(nn.Linear(2, 2))
