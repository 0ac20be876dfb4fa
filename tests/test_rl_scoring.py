"""`stepwell score` and `stepwell show` end to end, on tiny models in folders."""

import json
import re
import resource
from html.parser import HTMLParser

import pytest
from cli_cases import failure, save_models
from format_cases import checkpoint
from rich.console import Console

from data.errors import UserError
from data.solutions import read_solutions
from prm.formats import load_scorer
from prm.scorer import LocalScorer
from reasoning_rl import score_file, scoring
from reasoning_rl.cli import main
from reasoning_rl.step_map import ScoredSolution, colour, read_scored, terminal_map
from reasoning_rl.step_map_html import page

ROWS = [
    {
        "id": f"p{k}",
        "problem": f"What is {k} + 2?",
        "steps": [f"It is {k + j}." for j in range(1 + k % 3)],
        "labels": [1, 0, None][: 1 + k % 3],
    }
    for k in range(7)
]


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score(prm, source, output, *more) -> None:
    main(["score", "--prm", str(prm), "--input", str(source), "--output", str(output), *map(str, more)])


@pytest.fixture(autouse=True)
def cpu(monkeypatch) -> None:
    monkeypatch.setenv("STEPWELL_DEVICE", "cpu")


# --- score ----------------------------------------------------------------


def test_every_row_comes_back_with_its_scores_and_what_it_had(tmp_path, capsys) -> None:
    source, output = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out" / "scored.jsonl"
    score(checkpoint("math-shepherd"), source, output, "--format", "math-shepherd")
    rows = read(output)
    scorer = load_scorer(checkpoint("math-shepherd"), "math-shepherd")
    for row, given in zip(rows, ROWS, strict=True):
        assert {key: row[key] for key in given} == given
        expected = scorer.score([given["problem"]], [given["steps"]])[0]
        assert row["step_scores"] == pytest.approx(expected, abs=1e-5)
        assert row["score"] == min(row["step_scores"])
        assert row["scored_by"]["format"] == "math-shepherd" and row["scored_by"]["threshold"] == 0.5
    text = capsys.readouterr().out
    wrong = sum(score < 0.5 for row in rows for score in row["step_scores"])
    assert "math-shepherd (probabilities; solutions by min)" in text and f"13, {wrong} below 0.5" in text


def test_a_model_of_this_project_scores_without_naming_a_format(tmp_path) -> None:
    folder = save_models(tmp_path)
    output = tmp_path / "scored.jsonl"
    score(folder / "prm", write(tmp_path / "in.jsonl", ROWS), output, "--aggregation", "prod")
    expected = LocalScorer.load(folder / "prm").score(
        [r["problem"] for r in ROWS], [r["steps"] for r in ROWS]
    )
    for row, scores in zip(read(output), expected, strict=True):
        assert row["step_scores"] == pytest.approx(scores, abs=1e-6)
    assert read(output)[1]["score"] == pytest.approx(expected[1][0] * expected[1][1])


def test_responses_are_cut_as_the_format_has_its_steps(tmp_path) -> None:
    """Qwen's steps are paragraphs, TRL's are lines; --splitter wins over both."""
    source = write(
        tmp_path / "in.jsonl", [{"problem": "2 + 2?", "response": "One\ntwo\n\nthree", "verdict": "wrong"}]
    )
    for name, more, steps in [
        ("qwen-math-prm", [], ["One\ntwo", "three"]),
        ("trl", ["--format", "trl"], ["One", "two", "three"]),
        ("trl", ["--format", "trl", "--splitter", "blank_line"], ["One\ntwo", "three"]),
    ]:
        output = tmp_path / f"{len(more)}.jsonl"
        score(checkpoint(name), source, output, *more)
        (row,) = read(output)
        assert row["steps"] == steps and len(row["step_scores"]) == len(steps)
        assert row["answer_correct"] is False and "labels" not in row


def test_two_models_and_critics_score_through_the_same_command(tmp_path) -> None:
    source, output = write(tmp_path / "in.jsonl", ROWS[:2]), tmp_path / "ratio.jsonl"
    folder = checkpoint("implicit-prm")
    score(folder, source, output, "--format", "implicit-prm", "--reference", folder / "reference")
    expected = load_scorer(folder, "implicit-prm", reference=folder / "reference")
    assert read(output)[1]["step_scores"] == pytest.approx(
        expected.score([ROWS[1]["problem"]], [ROWS[1]["steps"]])[0], abs=1e-6
    )
    assert read(output)[0]["scored_by"]["is_probability"] is False
    small = tmp_path / "small.yaml"
    small.write_text("base: genprm\nmax_new_tokens: 4\n")
    score(checkpoint("math-psa"), source, tmp_path / "critic.jsonl", "--format", small)
    rows = read(tmp_path / "critic.jsonl")
    assert [len(row["step_scores"]) for row in rows] == [1, 2]
    assert all(0 <= each <= 1 for row in rows for each in row["step_scores"])
    assert rows[0]["scored_by"]["format"] == "small" and len(rows[0]["scored_by"]["format_digest"]) == 12


def test_a_stopped_run_goes_on_to_the_same_file(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(score_file, "CHUNK", 2)
    prm, source = checkpoint("trl"), write(tmp_path / "in.jsonl", ROWS)
    score(prm, source, tmp_path / "whole.jsonl", "--format", "trl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for cut in (0, 10, whole.index(b"\n") + 1, len(whole) * 2 // 3, len(whole) - 1):
        output = tmp_path / f"cut{cut}.jsonl"
        output.write_bytes(whole[:cut])
        score(prm, source, output, "--format", "trl")
        assert output.read_bytes() == whole
    assert "7, 6 of them before" in capsys.readouterr().out
    # All there: not even the model is loaded.
    monkeypatch.setattr(scoring, "load", None)
    score(prm, source, tmp_path / "whole.jsonl", "--format", "trl")
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


def test_an_output_of_something_else_is_not_continued(tmp_path, capsys) -> None:
    prm, source, output = checkpoint("trl"), write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    common = ("score", "--prm", prm, "--format", "trl", "--output", output)
    score(prm, source, output, "--format", "trl", "--limit", 3)
    kept = output.read_bytes()
    other = write(tmp_path / "other.jsonl", [*ROWS[:2], ROWS[5]])
    assert f"{output}:3: holds another solution" in failure(capsys, *common, "--input", other)
    text = failure(capsys, *common, "--input", source, "--threshold", 0.7, "--aggregation", "max")
    assert f"{output}:1: was scored with another aggregation, threshold; give another --output" in text
    assert output.read_bytes() == kept
    output.write_text("a diary\n")
    assert f"{output}:1: is no file of scores" in failure(capsys, *common, "--input", source)
    assert output.read_text() == "a diary\n"


@pytest.mark.parametrize("tail", ["notes without an end", '{"id": "p0", "text"', '{"id": "p1", "problem": "'])
def test_a_last_line_of_something_else_is_not_cut_off(tail, tmp_path, capsys) -> None:
    prm, source, output = checkpoint("trl"), write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    common = ("score", "--prm", prm, "--format", "trl", "--input", source, "--output", output)
    output.write_text(tail)
    assert f"{output}:1: is no file of scores" in failure(capsys, *common)
    assert output.read_text() == tail
    output.unlink()
    score(prm, source, output, "--format", "trl")
    with output.open("a") as file:
        file.write(tail)
    kept = output.read_bytes()
    assert f"{output}:8: is no file of scores" in failure(capsys, *common)  # all rows stand before it
    assert output.read_bytes() == kept


def test_the_input_is_never_written_to(tmp_path, capsys) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    source = folder / "in.jsonl"
    write(source, ROWS)
    (tmp_path / "link.jsonl").symlink_to(source)
    kept = source.read_bytes()[:-1]  # the last row without its line break: what would be cut off
    source.write_bytes(kept)
    common = ("score", "--prm", checkpoint("trl"), "--format", "trl")
    for given, output in [
        (source, source),
        (source, tmp_path / "link.jsonl"),
        (folder, source),
        (folder, folder / "out.jsonl"),
    ]:
        text = failure(capsys, *common, "--input", given, "--output", output)
        assert f"{output}: is read as input as well" in text
    assert source.read_bytes() == kept and list(folder.iterdir()) == [source]


def test_a_full_disk_is_named_and_the_run_goes_on_later(tmp_path, monkeypatch, capsys) -> None:
    """No file may grow beyond 1 KiB from here on: the system refuses, as a full disk does."""
    monkeypatch.setattr(score_file, "CHUNK", 2)
    prm, source, output = checkpoint("trl"), write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        text = failure(
            capsys, "score", "--prm", prm, "--format", "trl", "--input", source, "--output", output
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{output}: cannot write (File too large)" in text and "what is recorded is kept" in text
    score(prm, source, output, "--format", "trl")
    assert [row["id"] for row in read(output)] == [row["id"] for row in ROWS]


def test_responses_are_cut_as_our_own_model_joins_its_steps(tmp_path, capsys) -> None:
    folder = save_models(tmp_path)
    source = write(tmp_path / "in.jsonl", [{"problem": "2 + 2?", "response": "One\ntwo\n\nthree"}])
    steps = {"\n": ["One", "two", "three"], "\n\n": ["One\ntwo", "three"]}
    config = folder / "prm" / "config.json"
    for joiner in ("\n", "\n\n", " ;; "):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"step_joiner": joiner}))
        output = tmp_path / f"{len(joiner)}.jsonl"
        if joiner in steps:
            score(folder / "prm", source, output)
            assert read(output)[0]["steps"] == steps[joiner]
            continue
        common = ("score", "--prm", folder / "prm", "--output", output)
        assert "give --splitter, or rows with 'steps'" in failure(capsys, *common, "--input", source)
        score(folder / "prm", source, output, "--splitter", "newline")
        score(folder / "prm", write(tmp_path / "s.jsonl", ROWS), tmp_path / "rows.jsonl")
        assert read(tmp_path / "rows.jsonl")[0]["steps"] == ROWS[0]["steps"]


def test_mistakes_take_a_line_or_two(tmp_path, capsys) -> None:
    source, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    prm = checkpoint("math-shepherd")

    def fails(*more, prm=prm, source=source, output=out) -> str:
        return failure(capsys, "score", "--prm", prm, "--input", source, "--output", output, *more)

    assert "cannot tell its PRM format" in fails()
    assert "did you mean 'math-shepherd'" in fails("--format", "math-sheperd")
    assert "aggregation prod multiplies probabilities; format 'pure'" in fails(
        "--format", "pure", "--aggregation", "prod"
    )
    assert "give --output a name in .jsonl" in fails("--format", "pure", output=tmp_path / "out.json")
    assert "no such file" in fails("--format", "trl", source=tmp_path / "absent.jsonl")
    assert "no such config file" in fails("--format", tmp_path / "absent.yaml")
    assert "no such file or folder" in fails("--format", "trl", prm=tmp_path / "absent")
    bad = write(tmp_path / "bad.jsonl", [{"problem": "x", "text": "y"}])
    assert f"{bad}:1: expected 'steps' (a list) or 'response' (a text); found problem, text" in fails(
        "--format", "trl", source=bad
    )
    bad = write(tmp_path / "bad.jsonl", [{"problem": "x", "steps": ["a"]}, {"problem": "x", "steps": "a"}])
    assert f"{bad}:2: field 'steps' must be a list" in fails("--format", "trl", source=bad)
    assert "--prm" in failure(capsys, "score", "--pmr", "x")
    assert not out.exists()


def test_the_formats_are_listed(capsys) -> None:
    main(["score", "--list"])
    text = capsys.readouterr().out
    assert re.search(r"^  math-shepherd +peiyi9979/math-shepherd-mistral-7b-prm", text, re.M)


def test_solutions_are_read_from_any_step_format(tmp_path) -> None:
    trl = write(tmp_path / "trl.jsonl", [{"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}])
    (solution,) = read_solutions(trl)
    assert (solution.steps, solution.labels) == (("a", "b"), (1.0, 0.0))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match="no rows"):
        read_solutions(empty)


# --- show -----------------------------------------------------------------

SCORED = {
    "id": "x1",
    "problem": "A <b>long</b> problem " * 8,
    "steps": ["First [bold]step[/bold] " * 9, "Second & <i>last</i>", "beyond"],
    "labels": [1, 0, None],
    "first_error": 1,
    "answer_correct": False,
    "step_scores": [0.91, 0.1234, None],
    "score": None,
    "scored_by": {"prm": "m", "aggregation": "min", "threshold": 0.5},
}


def shown(solution: ScoredSolution, width: int = 80, **options) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), **options)  # noqa: SIM115
    console.print(terminal_map(solution))
    return console.export_text(styles=bool(options))


def test_the_terminal_map_says_all_without_colour_in_80_columns(tmp_path) -> None:
    (solution,) = read_scored(write(tmp_path / "s.jsonl", [SCORED]))
    text = shown(solution)
    assert max(map(len, text.splitlines())) <= 80
    assert "x1 · score none (min) · first below 0.5: step 2 · labelled first error: step 2" in text
    assert "answer wrong" in text
    assert re.search(r"^ +1 +0\.910 +✓ right +First \[bold\]step\[/bold\]", text, re.M)
    assert re.search(r"^ +2 +0\.123 +✗ wrong +Second & <i>last</i>", text, re.M)
    assert re.search(r"^ +3 +none +\? +beyond", text, re.M)


def test_the_terminal_map_colours_by_score(tmp_path) -> None:
    (solution,) = read_scored(write(tmp_path / "s.jsonl", [SCORED]))
    text = shown(solution, force_terminal=True, color_system="truecolor")
    for score in (0.91, 0.1234):
        red, green, blue = colour(score)
        assert f"48;2;{red};{green};{blue}" in text
    assert colour(0.0)[0] > colour(0.0)[2] and colour(1.0)[0] < colour(1.0)[2]  # orange, blue
    assert colour(0.5)[0] == colour(0.5)[2]


def test_raw_scores_are_shaded_about_their_threshold(tmp_path) -> None:
    by = {"threshold": 0.0, "is_probability": False}
    row = SCORED | {"step_scores": [-7.0, 0.0, 3.0], "scored_by": by}
    (solution,) = read_scored(write(tmp_path / "s.jsonl", [row]))
    low, middle, high = solution.shades
    assert 0 <= low < 0.1 and middle == 0.5 and 0.6 < high <= 1
    assert solution.verdicts == [False, True, True]


class Checker(HTMLParser):
    """Collects the text and attributes of a page, and that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.text, self.attributes = [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def test_the_page_is_self_contained_and_escapes_what_it_shows(tmp_path, capsys) -> None:
    source, html = write(tmp_path / "s.jsonl", [SCORED, SCORED | {"id": "<x2>"}]), tmp_path / "map.html"
    main(["show", source, "--html", str(html)])
    assert f"2 solutions: {html}" in capsys.readouterr().out.replace("\n", "")
    text = html.read_text(encoding="utf-8")
    found = Checker(text)
    for piece in ("0.910", "0.123", "none", "✓", "✗", "right", "wrong", "Second & <i>last</i>", "<x2>"):
        assert piece in found.text
    assert "<i>" not in text and "<b>" not in text and "<script" not in text
    assert not re.search(r"https?:|src=|@import|url\(", text)
    anchors = {value for name, value in found.attributes if name == "id"}
    links = {value[1:] for name, value in found.attributes if name == "href"}
    assert links <= anchors and "s1.2" in links
    assert page([], "none").startswith("<!doctype html>")


def test_show_chooses_and_names_what_it_cannot(tmp_path, capsys) -> None:
    rows = [SCORED | {"id": f"r{k}"} for k in range(12)]
    source = write(tmp_path / "s.jsonl", rows)
    main(["show", source])
    text = capsys.readouterr().out
    assert "r9 ·" in text and "r10 ·" not in text and "10 of 12 solutions; --limit shows more" in text
    main(["show", source, "--id", "r11", "--threshold", "0.05"])
    text = capsys.readouterr().out
    assert "r11 ·" in text and "r1 ·" not in text and "first below 0.05: none" in text
    assert "no solution has the id 'r12'" in failure(capsys, "show", source, "--id", "r12")
    assert "which file?" in failure(capsys, "show")
    other = write(tmp_path / "other.jsonl", [{"problem": "x", "steps": ["a"]}])
    assert f"{other}:1: needs 'steps' and as many 'step_scores'" in failure(capsys, "show", other)
    assert "no such file" in failure(capsys, "show", tmp_path / "absent.jsonl")
    empty = write(tmp_path / "empty.jsonl", [])
    assert f"{empty}: holds no scored solutions" in failure(capsys, "show", empty)
    for limit in (0, -1):
        assert "limit: Input should be greater than 0" in failure(capsys, "show", source, "--limit", limit)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("step_scores", [0.5, "high", None], "step_scores.1"),
        ("step_scores", [0.5, float("nan"), None], "step_scores.1"),
        ("step_scores", [0.5, True, None], "step_scores.1"),
        ("labels", ["right", None, None], "labels.0"),
        ("labels", 1, "labels"),
        ("score", "0.5", "score"),
        ("first_error", "one", "first_error"),
        ("scored_by", "me", "scored_by"),
        ("scored_by", {"threshold": "low"}, "scored_by.threshold"),
        ("scored_by", {"threshold_mode": "relative"}, "scored_by.threshold_mode"),
    ],
)
def test_a_field_of_another_type_is_named_with_its_line(field, value, named, tmp_path, capsys) -> None:
    source = write(tmp_path / "s.jsonl", [SCORED, SCORED | {field: value}])
    assert f"{source}:2: {named}: Input should be" in failure(capsys, "show", source)
