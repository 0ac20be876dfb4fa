"""Problems from several benchmarks: shares, graders, and what must not be trained on."""

import json
import warnings

import pytest
from cli_cases import save_models

from data.errors import UserError
from data.grading import grade_all
from data.programs import make_programs
from data.schema import Problem
from reasoning_rl.cli import main
from reasoning_rl.compose_problems import make_run_grader, read_pool, sources_of
from reasoning_rl.config import PPOConfig
from reasoning_rl.telemetry import read_metrics


@pytest.fixture
def files(tmp_path):
    """30 problems of GSM8K's form, 20 of MATH's; the last of MATH's train file stands in MATH-500 as well."""
    gsm8k = [
        {"question": f"How many are {n} and 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(30)
    ]
    math = [{"problem": f"Find ${n}+x$ for $x=1$.", "solution": rf"$\boxed{{{n + 1}}}$"} for n in range(20)]
    reported = [{"problem": "find $0 + x$  for $x = 1$", "solution": "", "answer": "1", "unique_id": "a"}]
    for name, rows in {"gsm8k": gsm8k, "math": math, "math500": reported}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def config(files, **over):
    values = {
        "policy": "x",
        "problems": [f"gsm8k={files}/gsm8k.jsonl", f"math={files}/math.jsonl"],
        "num_validation": 5,
        "reward": {"form": "none"},
    }
    return PPOConfig.from_preset(values | over)


def test_each_source_has_its_share_and_nothing_excluded_is_trained_on(files) -> None:
    settings = config(files, exclude=[f"math500={files}/math500.jsonl"])
    sources = sources_of(settings)
    assert sources == [("gsm8k", f"{files}/gsm8k.jsonl"), ("math", f"{files}/math.jsonl")]
    with pytest.warns(UserWarning, match="44 to train on; left out: 1 math500"):
        train, held_out = read_pool(settings, sources)
    counts = [
        [p.source for p in pool].count(name) for pool in (train, held_out) for name in ("gsm8k", "math")
    ]
    told = []
    read_pool(settings, sources, say=told.append)  # a process that is not the main one may keep silent
    assert len(told) == 1
    # 5 held out: 2 of the first, 3 of the second; problem 0 of MATH is MATH-500's, spelled otherwise.
    assert counts == [28, 16, 2, 3]
    assert not {p.text for p in train} & {p.text for p in held_out}


def test_a_problem_in_two_sources_is_trained_on_once(files) -> None:
    twice = config(files, problems=[f"math={files}/math.jsonl"] * 2, num_validation=0)
    with pytest.warns(UserWarning, match="20 to train on; left out: 20 there twice"):
        assert len(read_pool(twice, sources_of(twice))[0]) == 20
    backwards = "".join(reversed((files / "math.jsonl").read_text().splitlines(keepends=True)))
    (files / "back.jsonl").write_text(backwards)
    sources = [f"math={files}/{name}.jsonl" for name in ("math", "back")]
    overlapping = config(files, problems=sources, num_validation=6)
    with pytest.warns(UserWarning, match="14 to train on; left out: 6 held out, 14 there twice"):
        train, held_out = read_pool(overlapping, sources_of(overlapping))
    assert not {p.text for p in train} & {p.text for p in held_out}


def test_one_source_is_read_as_ever(files) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = config(files, problems=f"{files}/gsm8k.jsonl", problems_format="gsm8k")
        train, held_out = read_pool(one, sources_of(one))
    assert (len(train), len(held_out)) == (25, 5)


def test_of_one_source_no_problem_that_is_held_out_is_trained_on(files) -> None:
    lines = (files / "gsm8k.jsonl").read_text().splitlines(keepends=True)
    again = lines[-1].replace("How many are", "how  many are")
    (files / "gsm8k.jsonl").write_text("".join([again, lines[0], *lines]))
    one = config(files, problems=f"{files}/gsm8k.jsonl", problems_format="gsm8k")
    with pytest.warns(UserWarning, match="26 to train on; left out: 1 held out$"):
        train, held_out = read_pool(one, sources_of(one))
    assert (len(train), len(held_out)) == (26, 5)


def test_every_answer_is_judged_by_its_benchmark(files) -> None:
    settings = config(files)
    grader = make_run_grader(settings, [*sources_of(settings), ("programs", None)])
    (program,) = make_programs(1, 0)
    problems = [Problem("a", "", "5", "gsm8k"), program, Problem("b", "", r"\frac{1}{2}", "math")]
    # "#### 5" is GSM8K's way to answer; a fraction that is written otherwise is MATH's.
    verdicts = grade_all(grader, problems, ["#### 5", program.solution, r"It is $\boxed{0.5}$."])
    assert [verdict.status for verdict in verdicts] == ["correct"] * 3
    assert (
        grader(problems[2], "#### 5").status == "wrong" and grader(problems[0], "#### 5").status == "correct"
    )


def test_mistakes_are_told(files) -> None:
    with pytest.raises(UserError, match="name several as FORMAT=FILE"):
        sources_of(config(files, problems_format="gsm8k"))
    with pytest.raises(UserError, match="set problems_format"):
        sources_of(config(files, problems=["gsm8k", f"{files}/math.jsonl"]))
    with pytest.raises(UserError, match="'gsm9k' is unknown; did you mean 'gsm8k'"):
        sources_of(config(files, problems=["gsm9k", "math"]))


def test_training_on_what_is_reported_warns(monkeypatch, files) -> None:
    settings = config(files, problems="math500", num_validation=0)
    monkeypatch.setattr(
        "reasoning_rl.compose_problems.read_benchmark", lambda *args, **options: [Problem("a", "x", "1")]
    )
    with pytest.warns(UserWarning, match="math500 has no split for training"):
        read_pool(settings, sources_of(settings))


def test_the_command_trains_on_both(files, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    models = save_models(tmp_path / "models")
    main(
        [
            *("ppo", "--policy", str(models / "policy"), "--preset", "rloo", "--reward.form", "none"),
            *("--problems", f"[gsm8k={files}/gsm8k.jsonl, math={files}/math.jsonl]", "--num-validation", "4"),
            *("--rollout.problems-per-iteration", "4", "--rollout.max-new-tokens", "6", "--iterations", "1"),
            *("--update.minibatch-size", "16", "--output-dir", str(tmp_path / "run")),
        ]
    )
    assert "reward/outcome" in read_metrics(str(tmp_path / "run"))[-1]
    stored = PPOConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert [entry.partition("=")[0] for entry in stored.problems] == ["gsm8k", "math"]
