"""Shared by the tests of PRM objectives: a tiny model, outcomes, training in one call."""

import torch
from accelerate import Accelerator
from test_prm_train import FAST, TOKENIZER, Log, tiny_config

from data.schema import StepSolution
from prm.model import new_prm
from prm.train import PRMConfig, fit_prm


def tiny(objective: str = "cross_entropy"):
    torch.manual_seed(0)
    return new_prm(tiny_config(), objective=objective)


def with_outcomes(rows):
    """First-error labels, and an answer that is right when every step is."""
    out = []
    for s in rows:
        right = all(y == 1 for y in s.labels)
        out.append(StepSolution(s.problem, s.steps, s.labels, s.id, answer_correct=right))
    return out


def auc(labels, scores):
    pairs = [
        (y, s)
        for ys, ss in zip(labels, scores, strict=True)
        for y, s in zip(ys, ss, strict=True)
        if y is not None
    ]
    right, wrong = [s for y, s in pairs if y >= 0.5], [s for y, s in pairs if y < 0.5]
    if not right or not wrong:
        return 0.5
    return sum((a > b) + 0.5 * (a == b) for a in right for b in wrong) / (len(right) * len(wrong))


def ranking(labels, scores, threshold):
    """AUC, with ties broken for the surer model: keep_best would stay with the first perfect one."""
    spread = [abs(s - 0.5) for row in scores for s in row if s is not None]
    return {"step_auc": auc(labels, scores) + sum(spread) / len(spread) / 1000}


def train(prm, rows, held_out, tmp_path, log=None, **over):
    values = {"data": "", "output_dir": str(tmp_path), "supervise": "all", "fit": FAST} | over
    config = PRMConfig.from_dict(values)
    log = log or Log()
    run = {"accelerator": Accelerator(cpu=True), "log": log}
    fit_prm(prm, TOKENIZER, rows, held_out, config, step_metrics=ranking, **run)
    return log
