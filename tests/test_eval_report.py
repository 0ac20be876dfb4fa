"""Reports: numbers by hand, what the page holds, which samples come first, what is said about bad folders."""

import json
import re
from html.parser import HTMLParser

import pytest
from cli_cases import failure, save_models

from data.arithmetic import make_problems
from data.errors import UserError
from data.pages import table
from data.schema import Problem
from eval.metrics import wilson_interval
from eval.report.page import write_report
from eval.report.read import Evaluation, read_runs
from eval.report.tables import accuracy, breakdown, comparisons, groups_grid, last_values, overview
from eval.report.worst import worst_samples
from reasoning_rl.cli import main

PROBLEMS = make_problems(12, 5)


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_evaluation(folder, right, settings=None, problems=PROBLEMS):
    """One sample a problem: correct where `right` says so."""
    write_lines(
        folder / "samples.jsonl",
        [
            {
                "id": p.id,
                "sample": 0,
                "response": p.solution if ok else "Ann has 1 <b>\n<script>alert(1)</script>\n#### 0",
                "verdict": "correct" if ok else "wrong",
                "reason": "",
                "num_tokens": 7,
                "finish_reason": "stop",
            }
            for p, ok in zip(problems, right, strict=True)
        ],
    )
    (folder / "settings.json").write_text(json.dumps(settings or {"difficulty": "standard"}))


def write_run(folder, right):
    write_lines(
        folder / "ppo" / "metrics.jsonl",
        [
            {"iteration": k, "reward/total": 0.1, "valid/greedy": k / 4, "reward/outcome": 0.5}
            for k in range(4)
        ],
    )
    write_evaluation(folder / "eval", right)
    return folder


def rows_of(*verdicts):
    return {f"p{k}": [{"verdict": v} for v in group] for k, group in enumerate(verdicts)}


# --- numbers ----------------------------------------------------------------------------------------------


def test_an_accuracy_is_a_mean_over_problems_and_unjudged_samples_count_nowhere() -> None:
    bar = accuracy("x", rows_of(["correct", "wrong"], ["correct", "unjudged"], ["unjudged"]))
    assert (bar.value, bar.num_problems) == (0.75, 2)  # (0.5 + 1) / 2
    assert bar.low <= 0.75 <= bar.high
    bar = accuracy("x", rows_of(["correct"], ["wrong"], ["wrong"], ["wrong"]))
    assert (bar.low, bar.high) == wilson_interval(1, 4)
    assert bar.shown == "25.0 [4.6, 69.9]"
    assert accuracy("x", rows_of(["unjudged"])) is None


def test_levels_add_up_to_the_whole(tmp_path) -> None:
    right = [k % 3 == 0 for k in range(12)]
    (run,) = read_runs([write_run(tmp_path / "a", right)])
    bars = breakdown(run.evaluations["eval"], "level")
    assert [bar.label for bar in bars] == ["2", "3", "4"]
    for bar in bars:
        mine = [ok for p, ok in zip(PROBLEMS, right, strict=True) if str(p.level) == bar.label]
        assert (bar.num_problems, bar.value) == (len(mine), sum(mine) / len(mine))
    assert breakdown(run.evaluations["eval"], "subject") == []  # the world has none
    assert overview([run])[1] == ["eval", "a", "33.3 [13.8, 60.9]", "12", "12", "0.0%", "0.0%", "84"]


def test_subjects_are_broken_down_like_levels() -> None:
    problems = {
        f"p{k}": Problem(id=f"p{k}", text="", answer="", subject=subject, level=1)
        for k, subject in enumerate(["Algebra", "Algebra", "Geometry", ""])
    }
    rows = rows_of(["correct"], ["wrong"], ["wrong"], ["correct"])
    evaluation = Evaluation("e", {}, rows, problems, False)
    bars = [(bar.label, bar.value, bar.num_problems) for bar in breakdown(evaluation, "subject")]
    assert bars == [("Algebra", 0.5, 2), ("Geometry", 0, 1)]
    assert breakdown(evaluation, "level") == []  # one level alone says no more than the whole


def test_two_runs_are_compared_problem_by_problem(tmp_path) -> None:
    first = write_run(tmp_path / "a", [True] * 6 + [False] * 6)
    other = write_run(tmp_path / "b", [False] * 2 + [True] * 4 + [True] * 5 + [False])
    runs = read_runs([first, other])
    (_, line) = comparisons(runs)
    assert line[:4] == ["eval", "b", "a", "12"] and line[5:] == ["5", "2"]
    assert line[4].startswith("+25.0 [")  # (5 - 2) / 12
    grid = groups_grid(runs, "eval", "level")
    assert grid[0] == ["level", "problems", "a", "b"] and len(grid) == 4
    write_evaluation(tmp_path / "b" / "eval", [True] * 12, problems=make_problems(12, 6))
    assert comparisons(read_runs([first, other]))[1][3:5] == ["0", "other problems"]


def test_last_values_are_the_last_that_were_measured(tmp_path) -> None:
    (run,) = read_runs([write_run(tmp_path / "a", [True] * 12)])
    assert last_values([run], {"ppo": ["valid/greedy", "absent"], "sft": ["train/loss"]}) == [
        ["last value of", "a"],
        ["PPO valid/greedy", "0.75"],
    ]


# --- reading ----------------------------------------------------------------------------------------------


def test_problems_that_changed_since_are_not_used(tmp_path) -> None:
    """Levels of other problems would be wrong without anybody seeing it."""
    settings = {"benchmark": "arithmetic", "limit": 12, "seed": 5, "run": {"problems": "another digest"}}
    write_evaluation(tmp_path / "eval", [True] * 12, settings)
    (run,) = read_runs([tmp_path])
    assert run.evaluations["eval"].problems is None
    del settings["run"]
    (tmp_path / "eval" / "settings.json").write_text(json.dumps(settings))
    (run,) = read_runs([tmp_path])
    assert run.evaluations["eval"].problems == {p.id: p for p in PROBLEMS}


def test_runs_are_named_by_what_tells_them_apart(tmp_path) -> None:
    folders = [write_run(tmp_path / name / "run", [True] * 12) for name in "ab"]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]
    assert [run.name for run in read_runs(folders[:1])] == ["run"]
    with pytest.raises(UserError, match="given twice"):
        read_runs([folders[0], folders[0]])


def test_a_folder_without_anything_to_report_says_what_it_needs(tmp_path, capsys) -> None:
    assert "no metrics.jsonl, samples.jsonl or search.jsonl" in failure(capsys, "report", tmp_path)
    assert "no such folder" in failure(capsys, "report", tmp_path / "absent")
    assert "which run?" in failure(capsys, "report")
    write_evaluation(tmp_path / "eval", [True] * 12)
    (tmp_path / "eval" / "settings.json").write_text("{")
    assert "settings.json: unreadable" in failure(capsys, "report", tmp_path)
    write_lines(tmp_path / "eval" / "samples.jsonl", [{"id": "x"}])
    (tmp_path / "eval" / "settings.json").write_text("{}")
    assert "samples.jsonl:1: needs id, response and verdict" in failure(capsys, "report", tmp_path)


# --- the worst samples ------------------------------------------------------------------------------------


class Fixed:
    """Scores a step by its own text."""

    def score(self, problems, solutions):
        return [[float(step) for step in steps] for steps in solutions]


def test_the_worst_are_those_whose_score_and_verdict_disagree_most() -> None:
    made = [
        ("0.9\n0.8", "correct"),
        ("0.9\n0.7", "wrong"),  # liked throughout, and wrong
        ("0.9\n0.1", "wrong"),
        ("0.05\n0.9", "correct"),  # one step disliked, and right
        ("0.99", "unjudged"),
        ("", "wrong"),  # no step to show
    ]
    rows = {p.id: [{"response": t, "verdict": v}] for p, (t, v) in zip(PROBLEMS, made, strict=False)}
    evaluation = Evaluation("e", {}, rows, {p.id: p for p in PROBLEMS}, False)
    worst = worst_samples(evaluation, count=3, scorer=Fixed())
    # Distances: 1 - 0.05 = 0.95, 0.7, then 1 - 0.8 = 0.2 before 0.1.
    assert [(one.id[-1], one.score, one.is_correct) for one in worst] == [
        ("3", 0.05, True),
        ("1", 0.7, False),
        ("0", 0.8, True),
    ]
    assert worst[0].problem == PROBLEMS[3].text and worst[0].scores == [0.05, 0.9]
    plain = worst_samples(evaluation, count=2, scorer=None)
    assert [(one.id[-1], one.scores) for one in plain] == [("1", [None, None]), ("2", [None, None])]


def test_a_searchs_own_scores_are_shown_without_a_model() -> None:
    row = {"response": "a\nb", "verdict": "wrong"}
    row["candidates"] = [{"text": "c", "step_scores": [0.1]}, {"text": "a\nb", "step_scores": [0.9, 0.8]}]
    evaluation = Evaluation("s", {}, {"p": [row]}, None, True)
    (one,) = worst_samples(evaluation, count=5, scorer=None)
    assert (one.steps, one.scores, one.score) == (["a", "b"], [0.9, 0.8], 0.8)


# --- the page ---------------------------------------------------------------------------------------------


class Checker(HTMLParser):
    """Collects ids and checks that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.ids, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        while (last := self.open.pop()) != tag:
            assert last in ("html", "body"), (last, tag)


def test_the_command_writes_one_page_that_needs_nothing_else(tmp_path, capsys) -> None:
    models = save_models(tmp_path / "models")
    folders = [write_run(tmp_path / n, [k % m == 0 for k in range(12)]) for n, m in (("a", 2), ("b", 3))]
    out = tmp_path / "out"
    words = ["report", *folders, "--prm", models / "prm", "--output-dir", out, "--worst", "12"]
    main([str(word) for word in words])
    assert "report.html" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    names = {path.stem for path in out.glob("*.png")}
    assert names == {"accuracy", "level_eval", "ppo_accuracy", "ppo_reward"}
    assert page.count("data:image/png;base64,") == len(names)
    assert not re.search(r"https?:|<script|<link|src=\"(?!data:)", page)
    assert "Ann has 1 &lt;b&gt;" in page and "Ann has 1 <b>" not in page
    assert "&lt;script&gt;alert(1)" in page  # a model's markup is shown, not run
    checker = Checker()
    checker.feed(page)
    assert len(set(checker.ids)) == len(checker.ids) > 8
    assert checker.tags.count("details") == 2 and checker.tags.count("section") == 24
    for heading in ("Evaluations", "Side by side", "accuracy by level", "Training", "The worst samples"):
        assert heading in page
    main([str(word) for word in ["report", folders[0] / "ppo", "--output-dir", out]])
    assert {path.stem for path in out.glob("*.png")} == {"ppo_accuracy", "ppo_reward"}  # none of the other's
    assert "The worst samples" not in (out / "report.html").read_text()


def test_a_page_survives_text_that_no_file_can_hold(tmp_path) -> None:
    write_run(tmp_path / "a", [False] * 12)
    shown = write_report(tmp_path / "out", read_runs([tmp_path / "a"]), show=lambda samples: "\ud800")
    assert "?" in shown.read_text(encoding="utf-8")


def test_the_page_says_what_kept_programs_in(tmp_path) -> None:
    write_evaluation(tmp_path / "a" / "humaneval", [True] * 12, {"isolation": "landlock"})
    page = write_report(tmp_path / "out", read_runs([tmp_path / "a"]), show=lambda samples: "")
    assert "Programs of humaneval ran at isolation level landlock" in page.read_text()


def test_cells_are_escaped() -> None:
    assert "<td>&lt;i&gt;</td>" in table("t", [["a"], ["<i>"]])


@pytest.mark.parametrize(
    "settings", ["[]", '{"run": [1]}', "[" * 100_000, "{", '{"seed": ' + "9" * 5000 + "}", None]
)
def test_settings_that_are_no_settings_are_named_with_the_remedy(tmp_path, settings):
    write_evaluation(tmp_path / "eval", [True] * 12)
    path = tmp_path / "eval" / "settings.json"
    path.unlink() if settings is None else path.write_text(settings)
    with pytest.raises(UserError) as error:
        read_runs([tmp_path])
    assert f"{path}: " in str(error.value) and "or evaluate again" in str(error.value)


def test_settings_of_other_benchmarks_only_hide_the_problems(tmp_path):
    write_evaluation(tmp_path / "eval", [True] * 12, {"benchmark": ["arithmetic"], "source": 5})
    assert read_runs([tmp_path])[0].evaluations["eval"].problems is None


def test_a_row_without_texts_is_named(tmp_path):
    write_evaluation(tmp_path / "eval", [True] * 12)
    path = tmp_path / "eval" / "samples.jsonl"
    path.write_text('{"id": "a", "response": "b", "verdict": ["x"]}\n')
    with pytest.raises(UserError, match=r"samples\.jsonl:1: needs id, response and verdict as texts"):
        read_runs([tmp_path])


def test_a_report_into_a_file_is_refused(tmp_path, capsys):
    folder = write_run(tmp_path / "run", [True] * 12)
    (tmp_path / "file").write_text("kept")
    said = failure(capsys, "report", folder, "--output-dir", tmp_path / "file")
    assert f"{tmp_path / 'file'}: is no folder to write to (File exists); give another one" in said
    assert (tmp_path / "file").read_text() == "kept"


def test_one_problem_partly_right_is_drawn_without_an_interval(tmp_path):
    for name, rights in (("a", [True, False]), ("b", [True, True])):
        write_evaluation(tmp_path / name / "eval", rights, problems=[PROBLEMS[0]] * 2)
    runs = read_runs([tmp_path / "a", tmp_path / "b"])
    bar = accuracy("all", runs[0].evaluations["eval"].rows)
    assert bar is not None and bar.shown == "50.0"
    assert comparisons(runs)[1][4] == "+50.0"
    assert write_report(tmp_path / "report", runs, show=lambda samples: "").exists()
