"""The record of a search: what it holds, resuming, what is said about a broken one."""

import json
import random

import pytest

from data.errors import UserError
from data.schema import Problem, Sample, Verdict
from eval.search.rules import Models, Rules
from eval.search.run import read_recorded, search

EOS = 0
PROBLEMS = [Problem(id=f"p{k}", text=str(k), answer=str(2 * k)) for k in range(5)]


class Guesser:
    """Draws "step", then an answer near the right one, from the call's seed alone."""

    def __init__(self) -> None:
        self.numbers: set[str] = set()

    def generate(self, prompts, sampling):
        rng = random.Random(sampling.seed)
        out = []
        for prompt in prompts:
            number, _, written = prompt.partition(":")
            self.numbers.add(number)
            group = []
            for _ in range(sampling.n):
                if written or not sampling.stop:
                    text, ids = f"#### {2 * int(number) + rng.randrange(2)}", (1, EOS)
                else:
                    text, ids = rng.choice(("go", "on")), (1, 2)
                group.append(Sample((1,), ids, (0.0, 0.0), text, "stop"))
            out.append(group)
        return out


class ByLength:
    def score(self, problems, solutions):
        return [
            [1 / (1 + len(s) + int(p)) for s in steps] for p, steps in zip(problems, solutions, strict=True)
        ]


def grade(problem, response):
    return Verdict("correct" if response.rstrip().endswith(f"#### {problem.answer}") else "wrong")


def run(folder, generator=None, *, grader=grade, **over):
    return search(
        PROBLEMS,
        rules=Rules("beam", 4, width=2, max_new_tokens=20, **over),
        models=Models(
            generator or Guesser(), lambda t: t + ":", lambda s: s.token_ids[-1] == EOS, ByLength()
        ),
        grader=grader,
        extract=lambda text: text.rpartition("#### ")[2] or None,
        out_dir=folder,
        batch_size=2,
    )


def test_the_record_holds_every_candidate_and_its_numbers_add_up(tmp_path) -> None:
    result = run(tmp_path)
    rows = read_recorded(tmp_path / "search.jsonl")
    assert list(rows) == [p.id for p in PROBLEMS]
    assert result.accuracy.value == sum(r["verdict"] == "correct" for r in rows.values()) / 5
    assert result.tokens == sum(r["tokens"] for r in rows.values()) / 5 == 16
    first = rows["p0"]["candidates"][0]
    assert set(first) == {"text", "state", "tokens", "step_scores", "score", "answer"}
    assert len(first["step_scores"]) == 2 and first["score"] == first["step_scores"][-1]
    assert json.loads((tmp_path / "result.json").read_text())["settings"]["run"]["rules"]["method"] == "beam"


def test_an_interrupted_search_goes_on_to_the_same_record(tmp_path) -> None:
    run(tmp_path / "whole")
    graded = 0

    def killed(problem, response):
        nonlocal graded
        graded += 1
        if graded > 3:
            raise KeyboardInterrupt
        return grade(problem, response)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "torn", grader=killed)
    path = tmp_path / "torn" / "search.jsonl"
    assert len(path.read_text().splitlines()) == 2
    whole = (tmp_path / "whole" / "search.jsonl").read_text()
    with path.open("a") as file:
        # The crash tore a batch in two: its first problem is on record, the second in part.
        file.write(whole.splitlines(keepends=True)[2] + '{"id": "p3", "resp')
    generator = Guesser()
    run(tmp_path / "torn", generator)
    assert generator.numbers == {"2", "3", "4"}  # the first batch is kept
    assert path.read_text() == whole
    again = Guesser()
    run(tmp_path / "torn", again)
    assert again.numbers == set()


def test_a_folder_of_another_search_is_refused(tmp_path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match="run.rules.temperature = 1.0, now 0.7"):
        run(tmp_path, temperature=0.7)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(UserError, match="no settings.json"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [*rows, rows[0]], "stands twice"),
        (lambda rows: [rows[0] | {"id": "x"}], "is not of this run"),
        (lambda rows: [{k: v for k, v in rows[0].items() if k != "tokens"}], "no field 'tokens'"),
    ],
)
def test_a_broken_record_names_its_line(tmp_path, change, said) -> None:
    run(tmp_path)
    path = tmp_path / "search.jsonl"
    rows = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=said):
        run(tmp_path)
