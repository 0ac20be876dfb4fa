"""A user's own code, found by name: the page about it, run as it stands, and what mistakes are told."""

import json
import math
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_cases import failure, save_models, write_yaml
from format_cases import checkpoint

from data import plugins
from data.arithmetic import make_problems
from data.errors import UserError
from data.own import OwnGrader, OwnReward, OwnScorer, own_spans
from data.preference_readers import read_prompts
from data.schema import Problem, Verdict
from data.sources import read_rows
from data.step_readers import read_steps
from data.steps import joiner_of, step_texts
from reasoning_rl import api
from reasoning_rl.cli import main
from reasoning_rl.config import PPOConfig
from reasoning_rl.reward_model import load_response_scorer
from reasoning_rl.telemetry import read_metrics

PAGE = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
PROBLEMS = [
    Problem(id=f"p{n}", text=f"Say {n}.", answer=str(n), meta={"ground_truth": str(n)}) for n in (1, 2)
]
SMALL = {
    "iterations": 1,
    "validate_every": 0,
    "num_validation": 2,
    "critic": {"pretrain_iterations": 0},
    "rollout": {"problems_per_iteration": 4, "samples_per_problem": 2, "max_new_tokens": 8},
    "update": {"minibatch_size": 8},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working folder of a user, with the page's module in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")
    for name in ("mymodule", "wrong"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "mymodule.py").write_text("\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S)))
    return tmp_path


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def commands() -> list[str]:
    """The page's commands, one a line."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if line.strip()]


@pytest.mark.parametrize("command", commands())
def test_the_pages_commands_run(command, folder, models, capsys) -> None:
    write_rows(folder / "rows.jsonl", [{"prompt": f"Say {n}.", "ground_truth": str(n)} for n in range(1, 13)])
    write_rows(folder / "odd.jsonl", [{"task": "1 + 1?", "good_steps": ["It is 2."], "bad_steps": ["So 3."]}])
    write_rows(folder / "solutions.jsonl", [{"problem": "1 + 1?", "steps": ["It is 2.", "So 2."]}])
    # Right, and wrong to the benchmark's own grader: no line "#### N".
    write_rows(
        folder / "samples.jsonl",
        [{"id": p.id, "response": f"So {p.answer}"} for p in make_problems(3, 0, split="test")],
    )
    words = command.replace("gsm8k", "arithmetic").split()[1:]
    words = [{"POLICY": str(models / "policy"), "PRM": str(checkpoint("trl"))}.get(w, w) for w in words]
    if words[0] == "ppo":
        words += ["--config", write_yaml(folder / "small.yaml", SMALL)]
    main(words)
    said = capsys.readouterr().out
    out = folder / words[words.index("--output" if words[0] == "score" else "--output-dir") + 1]
    if words[0] == "ppo":
        metrics = read_metrics(str(out))
        assert (out / "model").is_dir() and ("--reward-model" in words) == ("reward/response" in metrics[-1])
        assert ("reward/step_score" in metrics[-1]) == ("--prm" in words)
    elif words[0] == "eval":
        assert re.search(r"pass@1 +100\.0%", said), said
    elif words[0] == "score":
        (row,) = [json.loads(line) for line in out.read_text().splitlines()]
        assert row["scored_by"]["format"] == ("own" if "mymodule:score" in words else "mymodule:FORMAT")
        assert len(row["step_scores"]) == 2
    else:
        assert (out / "model" / "config.json").is_file()


def test_a_reward_gets_what_it_names_as_trl_gives_it() -> None:
    seen = {}

    def reward(completions, ground_truth, level=None, **kwargs):
        seen.update(kwargs, completions=completions, ground_truth=ground_truth)
        return [1, None]

    chat = [
        Problem(p.id, p.text, p.answer, meta={**p.meta, "messages": [{"role": "user"}]}) for p in PROBLEMS
    ]
    ask = OwnReward("here", reward).score_problems
    assert ask(PROBLEMS, ["a", "b"], ["1", "3"]) == [1.0, None]
    assert seen["completions"] == ["1", "3"] and seen["ground_truth"] == ["1", "2"]
    assert seen["prompts"] == ["a", "b"] and seen["answers"] == seen["answer"] == ["1", "2"]
    # A data set whose prompts are messages: the completions are, too.
    ask(chat, ["a", "b"], ["1", "3"])
    assert seen["completions"][1] == [{"role": "assistant", "content": "3"}]
    assert seen["prompts"][0] == [{"role": "user"}]


def test_a_grader_may_say_true_false_nothing_or_a_verdict() -> None:
    found = iter([True, 0, None, Verdict("wrong", credit=0.3)])
    grade = OwnGrader("here", lambda response, answer: next(found))
    verdicts = [grade(PROBLEMS[0], "x") for _ in range(4)]
    assert [v.status for v in verdicts] == ["correct", "wrong", "unjudged", "wrong"]
    assert verdicts[-1].credit == 0.3
    with pytest.raises(UserError, match=r"returned 0\.5 for problem 'p1'"):
        OwnGrader("here", lambda response: 0.5)(PROBLEMS[0], "x")


def test_splitters_rows_and_formats_by_name(folder) -> None:
    assert step_texts("a; b c ;", "mymodule:split") == ["a", "b c"]
    assert joiner_of("mymodule:split") == "; " and joiner_of("newline") == "\n"
    assert [row.where for row in read_rows("mymodule:rows")] == ["mymodule:rows:row 1"]
    assert read_steps("mymodule:rows")[0].labels == (1.0, 0.0)
    write_rows(folder / "odd.jsonl", [{"task": "t", "good_steps": [], "bad_steps": ["x"]}])
    assert read_steps("odd.jsonl", "mymodule:read_row")[0].steps == ("x",)


def test_an_installed_package_offers_plain_names(monkeypatch) -> None:
    entry = EntryPoint("semicolon", "mymodule:split", "stepwell.splitters")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == entry.group else [])
    sys.path.append(str(Path.cwd()))
    ours = EntryPoint("ours", "mymodule:reward", "stepwell.rewards")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [e for e in (entry, ours) if e.group == group])
    assert load_response_scorer("ours").score_responses(["q"], ["abc"]) == [pytest.approx(1 - 0.003)]
    config = PPOConfig.from_preset({"policy": "x", "prm": "y", "rollout": {"splitter": "semicolon"}})
    assert step_texts("a; b", config.rollout.splitter) == ["a", "b"]


def test_functions_of_one_name_are_told_apart() -> None:
    first, second = lambda response: True, lambda response: False
    names = [plugins.name_of(one) for one in (first, second, first)]
    assert names[0] == names[2] != names[1]
    assert [plugins.load_plugin(name, "grader") for name in names[:2]] == [first, second]


def test_a_file_named_like_a_library_does_not_take_its_place(folder, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (folder / "colorsys.py").write_text("rgb_to_hsv = 1")
    assert plugins.load_plugin("colorsys:rgb_to_hsv", "reward") != 1


WRONG = {
    "reader": [
        ("", "nowhere:f", "no module 'nowhere' in the working folder"),
        ("import nothing_like_it", "wrong:f", "importing wrong raised ModuleNotFoundError"),
        ("def f(:", "wrong:f", "importing wrong raised SyntaxError"),
        ("def rowz(): pass", "wrong:rows", "has no 'rows'; did you mean 'rowz'?"),
        ("rows = 3", "wrong:rows", "is int, and no function or class"),
        ("def rows(path): pass", "wrong:rows", "asks for 'path', which there is not"),
        ("def rows(): return 'text'", "wrong:rows", "returned str for its rows; return a list"),
        ("def rows(): return 1 / 0", "wrong:rows", "raised ZeroDivisionError: division by zero (wrong.py:1)"),
        ("def rows(): return [1]", "wrong:rows", "wrong:rows:row 1: expected an object"),
    ],
}


@pytest.mark.parametrize(("code", "name", "told"), WRONG["reader"])
def test_a_plugin_that_cannot_be_used_is_told(code, name, told, folder, capsys) -> None:
    (folder / "wrong.py").write_text(code)
    assert told in failure(capsys, "data", "inspect", name)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return [1.0]", "returned 1 values for 2 responses; expected 2"),
        ("return [1.0, float('nan')]", "returned nan for problem 'p2'; return a finite number"),
        ("return ['1', '2']", "returned '1' for problem 'p1'"),
        # Called with all, then one by one: the problem that it fails on is named.
        ("assert '3' not in responses, 'three'; return [0.0] * len(responses)", "three .* on problem 'p2'"),
        ("return None", "returned NoneType"),
    ],
)
def test_a_reward_that_fails_names_the_problem(body, told, folder) -> None:
    (folder / "wrong.py").write_text(f"def reward(responses):\n    {body}\n")
    with pytest.raises(UserError, match=told) as caught:
        OwnReward("wrong:reward").score_problems(PROBLEMS, ["a", "b"], ["1", "3"])
    assert "reward 'wrong:reward'" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_signatures_and_values_of_the_other_kinds() -> None:
    with pytest.raises(UserError, match="name its parameters as what they are: responses, completions"):
        OwnReward("here", lambda texts: [])
    with pytest.raises(UserError, match="asks for 'verdicts', which there is not"):
        OwnReward("here", lambda responses, verdicts: []).score_problems(PROBLEMS, ["a", "b"], ["1", "3"])
    with pytest.raises(UserError, match="name its parameters as what they are: response"):
        OwnGrader("here", lambda text: True)
    with pytest.raises(UserError, match=r"returned 2 for the problem 'q'; scores lie in \[0, 1\]"):
        OwnScorer("here", lambda steps: [2.0]).score(["q"], [["s"]])
    with pytest.raises(UserError, match="returned 0 values for the problem 'q'; expected 1"):
        OwnScorer("here", lambda steps: []).score(["q"], [["s"]])
    name = plugins.name_of(lambda text: ["b", "a"])
    with pytest.raises(UserError, match="returned 'a' for the text 'a b'; return steps of the text in their"):
        own_spans(name, "a b")


class Halves:
    """A step scorer as a class; what it says of all steps but the last is its attribute."""

    first = 0.5

    def score(self, texts, solutions):
        return [[self.first] * (len(steps) - 1) + [None] for steps in solutions]


def test_a_step_scorer_may_be_a_class_or_an_object_and_its_scores_are_checked() -> None:
    asked = ["q", "r"], [["a", "b"], ["c"]]
    for given in (Halves, Halves()):
        assert api.load_prm(given).score(*asked) == [[0.5, None], [None]]
    wrong = {
        5.0: r"returned 5 for the problem 'q'; scores lie in \[0, 1\]",
        math.nan: "returned nan for the problem 'q'",
        "1": "returned '1' for the problem 'q'",
    }
    for value, told in wrong.items():
        scorer = Halves()
        scorer.first = value
        with pytest.raises(UserError, match=f"scorer '.*:Halves.*' {told}"):
            api.load_prm(scorer).score(*asked)
    for found, told in (([[0.5]], "1 values for 2 sol"), ([[0.5], [0.5]], "1 values for the problem 'q'")):
        scorer = Halves()
        scorer.score = lambda problems, solutions, found=found: found
        with pytest.raises(UserError, match=f"returned {told}"):
            OwnScorer("here", scorer).score(*asked)
    with pytest.raises(UserError, match="raised KeyError: 'x' .* on 1 solutions"):
        OwnScorer("here", SimpleNamespace(score=lambda problems, solutions: {}["x"])).score(["q"], [["a"]])


def test_a_run_whose_reward_raises_ends_in_two_lines(folder, models, capsys) -> None:
    (folder / "wrong.py").write_text("def reward(responses):\n    return [len(r) / 0 for r in responses]\n")
    words = ["ppo", "--policy", models / "policy", "--reward.form", "none", "--reward-model", "wrong:reward"]
    told = failure(
        capsys, *words, "--config", write_yaml(folder / "small.yaml", SMALL), "--output-dir", "runs/x"
    )
    assert (
        "reward 'wrong:reward' raised ZeroDivisionError" in told and "(wrong.py:2) on problem 'arith" in told
    )


def test_dialogues_keep_their_columns_for_a_reward(folder) -> None:
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    (problem,) = read_prompts([{"prompt": turns, "tag": "x"}])
    seen = {}
    OwnReward(
        "here", lambda completions, tag, prompts: seen.update(tag=tag, prompts=prompts) or [0]
    ).score_problems([problem], [problem.text], ["d"])
    assert seen == {"tag": ["x"], "prompts": [turns]}


def test_unknown_names_are_refused_before_anything_runs(models, capsys) -> None:
    ppo = ["ppo", "--policy", models / "policy", "--reward.form", "none"]
    assert "splitter 'newlin' is unknown; did you mean 'newline'" in failure(
        capsys, *ppo, "--rollout.splitter", "newlin"
    )
    assert "no module 'nowhere'" in failure(capsys, *ppo, "--problems", "nowhere:problems")
    assert "(your own: module:name)" in failure(capsys, *ppo, "--problems", "gsm9k")
    engine = ["--prm", "mymodule:score", "--prm-backend", "vllm", "--reward.form", "delta"]
    assert "is a function, which no engine runs" in failure(capsys, *ppo[:3], *engine)
    critic = ["--critic.init", "reward_model", "--reward-model", "mymodule:reward"]
    assert "needs a model, and mymodule:reward is a function" in failure(capsys, *ppo, *critic)
