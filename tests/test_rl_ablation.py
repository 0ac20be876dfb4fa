"""benchmarks/ppo_ablation.py: rows that differ in one thing, at equal answers; falls and deaths count."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import ppo_ablation

    return ppo_ablation


def arguments(folder, rows, seeds=(0, 1)) -> dict:
    return {
        "rows": rows,
        "seeds": list(seeds),
        "answers": 2560,
        "stress": 4.0,
        "problems": 160,
        "models": "models/seed{seed}",
        "output_dir": str(folder),
    }


def flat(values, prefix="") -> dict:
    out = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def test_every_row_uses_up_the_same_answers_and_validates_as_often(ablation, tmp_path) -> None:
    args = arguments(tmp_path, list(ablation.ROWS))
    for name in ablation.ROWS:
        config = ablation.settings(name, 0, args)
        assert config.iterations * config.rollouts_per_iteration == 2560, name
        assert config.iterations / config.validate_every == 5, name
        assert config.rollouts_per_iteration // config.update.minibatch_size == 4, name
        assert (config.update.learning_rate, config.update.schedule) == (2e-3, "constant")
        assert (config.reward.form, config.rollout.max_new_tokens) == ("delta", 64)


def test_a_row_lacks_what_its_name_says_and_nothing_else(ablation, tmp_path) -> None:
    args = arguments(tmp_path, [])
    own = {"output_dir", "preset"}
    rows = {name: flat(ablation.settings(name, 0, args).model_dump()) for name in ablation.ROWS}
    full = rows["PPO-max"]
    for name, change in ablation.WITHOUT.items():
        row = rows[f"- {name}"]
        assert {k for k in row if row[k] != full[k]} - own == set(flat(change)), name
    ladder = ["baseline PPO", "+ advantage norm", "+ large batch", "+ reference EMA"]
    steps = [
        {k for k in b if rows[a][k] != b[k]} - own
        for a, b in ((a, rows[b]) for a, b in zip(ladder, ladder[1:], strict=False))
    ]
    size = {"rollout.problems_per_iteration", "update.minibatch_size"}
    counters = {"iterations", "validate_every", "save_every"}
    assert steps == [{"update.advantage_norm"}, size | counters, {"reference_ema"}]


def test_falls_collapses_and_deaths_by_hand(ablation, tmp_path) -> None:
    curves = {"PPO-max": ([0.3, 0.7, 0.8], [0.3, 0.6, 0.9]), "- KL": ([0.3, 0.9, 0.2], [0.3, 0.8, 0.7])}
    args = arguments(tmp_path, list(curves))
    for name, seeds in curves.items():
        for seed, values in enumerate(seeds):
            folder = ablation.folder_of(name, seed, args)
            folder.mkdir()
            rows = [{"iteration": k, "valid/greedy": v, "valid/sampled": v} for k, v in enumerate(values)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (ablation.folder_of("- KL", 1, args) / "died.txt").write_text("not finite")
    summary = ablation.summarise(args)
    good, bad = summary["rows"]["PPO-max"], summary["rows"]["- KL"]
    assert (good["collapsed"], good["died"], good["worst_drop"]) == (0, 0, 0)
    assert (bad["collapsed"], bad["died"], bad["worst_drop"]) == (1.0, 1, pytest.approx(0.7))
    assert good["sampled"]["seeds"] == [0.8, 0.9] and summary["start"]["greedy"]["mean"] == 0.3
    text = ablation.table(summary)
    assert "| - KL | 0.450 [-2.727, 3.627] | 0.450 [-2.727, 3.627] | 100% | 0.700 |" in text
    json.dumps(summary)
