"""Evaluation runs: numbers by hand, resuming, and what is said about bad input."""

import json
import math
import os
import random
from dataclasses import replace

import pytest

from data.errors import UserError
from data.files import append_jsonl
from data.schema import Problem, Sample, Verdict
from data.schema import Sampling as S
from eval.answers import extract_answer
from eval.benchmarks import make_grader
from eval.metrics import wilson_interval
from eval.run import evaluate

PROBLEMS = [Problem(id=f"p{k}", text=f"{k} + {k}?", answer=str(2 * k)) for k in range(7)]


class Guesser:
    """A text generator that draws answers near the right one from the sampling's seed, and keeps prompts."""

    def __init__(self):
        self.prompts = []

    def generate(self, prompts, sampling):
        rng = random.Random(sampling.seed)
        self.prompts += prompts
        return [[self._draw(prompt, rng) for _ in range(sampling.n)] for prompt in prompts]

    def _draw(self, prompt, rng):
        guess = 2 * int(prompt.split()[0]) + rng.choice((0, 0, 1))
        text = rng.choice((f"#### {guess}", f"so\n#### {guess}", "hm"))
        ids = tuple(range(len(text)))
        return Sample((), ids, (0.0,) * len(ids), text, "length" if text == "hm" else "stop")


class CountingGrader:
    """The arithmetic grader; stops with an error after `limit` gradings, like a killed run."""

    def __init__(self, limit=None):
        self.seen = []
        self.limit = limit

    def __call__(self, problem, response):
        if self.limit is not None and len(self.seen) >= self.limit:
            raise KeyboardInterrupt
        self.seen.append((problem.id, response))
        return make_grader("arithmetic")(problem, response)


def in_hash(response):
    return extract_answer(response, ("hash",))


def run(folder, grader=None, generator=None, **changes):
    """Evaluate PROBLEMS by a guesser, unless samples are given."""
    arguments = {
        "problems": PROBLEMS,
        "out_dir": folder,
        "grader": grader or CountingGrader(),
        "extract": in_hash,
        "generator": None if "samples" in changes else generator or Guesser(),
        "sampling": S(n=3, seed=5),
        "batch_size": 3,
        "settings": {"benchmark": "sums", "model": {"name": "guesser"}},
    } | changes
    return evaluate(arguments.pop("problems"), **arguments)


def numbers(folder):
    result = json.loads((folder / "result.json").read_text())
    assert set(result.pop("timing")) == {"generation_seconds", "grading_seconds", "tokens_per_second"}
    return result


def lines(folder):
    return (folder / "samples.jsonl").read_text().splitlines()


def untimed(folder):
    rows = [json.loads(line) for line in lines(folder)]
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


# --- numbers ---------------------------------------------------------------------------------------------


def test_numbers_by_hand(tmp_path):
    samples = {
        "p1": ["#### 2", "#### 2", "#### 3"],  # 2 of 3, majority right
        "p2": ["#### 5", "#### 5", "#### 4"],  # 1 of 3, majority wrong
        "p3": ["none", "#### 6", "?"],  # 1 of 3, majority right: no answer does not vote
    }
    seen = []
    result = run(tmp_path, samples=samples, on_progress=lambda *a: seen.append(a))
    found = result.to_dict()
    assert found["accuracy"]["value"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    # pass@2 = 1 - C(n-c, 2) / C(3, 2): 1, 2/3, 2/3; a hit in all three samples everywhere.
    assert found["pass_at"]["2"]["value"] == pytest.approx(7 / 9)
    assert found["pass_at"]["3"]["value"] == 1.0
    assert (found["pass_at"]["3"]["low"], found["pass_at"]["3"]["high"]) == wilson_interval(3, 3)
    assert found["maj_at"]["3"]["value"] == pytest.approx(2 / 3)
    assert found["maj_at"]["1"]["value"] == pytest.approx(1 / 3)
    assert found["no_answer_rate"] == pytest.approx(2 / 9)
    assert found["truncated_rate"] is None  # nobody knows how samples made elsewhere ended
    assert (found["num_problems"], found["num_missing"], found["num_samples"]) == (3, 4, 9)
    assert found["tokens"] == 0 and found["timing"]["tokens_per_second"] is None
    assert found == json.loads((tmp_path / "result.json").read_text())
    assert [call[:2] for call in seen] == [(0, 9), (6, 9), (9, 9)]
    assert seen[-1][2]["correct"] == pytest.approx(4 / 9)
    assert ("problems without samples (left out)", "4") in result.rows()
    assert ("maj@3", "66.7%  (95% 20.8% to 93.9%), over 3 of 7 problems") in result.rows()


def test_the_table_says_how_many_of_the_problems_the_accuracy_is_of(tmp_path):
    rows = dict(run(tmp_path, samples={"p1": ["#### 2"]}).rows())
    assert rows["pass@1"].startswith("100.0%") and rows["pass@1"].endswith("over 1 of 7 problems")
    whole = dict(run(tmp_path / "whole", samples={p.id: ["#### 2"] for p in PROBLEMS}).rows())
    assert "over" not in whole["pass@1"]


def test_one_problem_that_is_partly_right_has_no_interval(tmp_path):
    """The bootstrap over one problem always draws the same: a width of zero would pass for certainty."""
    result = run(tmp_path, samples={"p1": ["#### 2", "#### 3"]})
    assert result.accuracy.value == 0.5 and math.isnan(result.accuracy.low)
    assert dict(result.rows())["pass@1"] == "50.0%  (no interval of one problem), over 1 of 7 problems"
    assert numbers(tmp_path)["accuracy"] == {"value": 0.5, "low": None, "high": None, "num_problems": 1}


def test_one_sample_a_problem_has_wilsons_interval(tmp_path):
    samples = {"p1": ["#### 2"], "p2": ["#### 2"], "p3": ["#### 6"]}
    accuracy = run(tmp_path, samples=samples).accuracy
    assert (accuracy.low, accuracy.high) == wilson_interval(2, 3)


def test_unjudged_is_counted_beside_the_accuracy_and_never_as_wrong(tmp_path):
    def grader(problem, response):
        return Verdict(response)

    samples = {"p1": ["correct", "unjudged"], "p2": ["wrong", "correct"], "p3": ["unjudged", "unjudged"]}
    result = run(tmp_path, grader, samples=samples, extract=lambda response: "same")
    assert result.accuracy.value == pytest.approx((1 + 1 / 2) / 2)
    assert result.accuracy.num_problems == 2
    assert result.unjudged_rate == pytest.approx(3 / 6)
    # Two judged samples has only p2; the majority answers of p1 and p2 were judged, p3's was not.
    assert (result.pass_at[2].value, result.pass_at[2].num_problems) == (1.0, 1)
    assert (result.maj_at[2].value, result.maj_at[2].num_problems) == (0.5, 2)


def test_nothing_judged_is_said_and_is_valid_json(tmp_path):
    result = run(tmp_path, lambda p, r: Verdict("unjudged"), samples={"p1": ["x"]})
    assert ("pass@1", "none judged") in result.rows()
    assert numbers(tmp_path)["accuracy"] == {"value": None, "low": None, "high": None, "num_problems": 0}


def test_spellings_of_one_answer_vote_together_as_in_a_search(tmp_path):
    """1,000 and 1000 and $1000 are three votes for one answer, 7 has two."""
    problem = Problem("p", "q", "1000")
    answers = ["1,000", "7", "1000", "7", "$1000"]
    result = run(
        tmp_path,
        lambda problem, response: Verdict("wrong" if "7" in response else "correct"),
        problems=[problem],
        samples={"p": [f"#### {answer}" for answer in answers]},
        scores={"p": [0.4, 0.5, 0.4, 0.5, 0.4]},  # 1.2 against 1.0
    )
    assert (result.maj_at[5].value, result.weighted_at[5].value) == (1.0, 1.0)
    assert [row["answer"] for row in untimed(tmp_path)] == answers, "on record as extracted"


def test_without_an_extractor_there_is_no_majority(tmp_path):
    result = run(tmp_path, extract=None)
    assert result.maj_at == {}
    assert "answer" not in json.loads(lines(tmp_path)[0])


def test_every_sample_is_on_record_with_its_verdict(tmp_path):
    result = run(tmp_path)
    rows = [json.loads(line) for line in lines(tmp_path)]
    assert [(r["id"], r["sample"]) for r in rows] == [(p.id, k) for p in PROBLEMS for k in range(3)]
    for row in rows:
        problem = PROBLEMS[int(row["id"][1:])]
        assert row["verdict"] == make_grader("arithmetic")(problem, row["response"]).status
        assert row["answer"] == in_hash(row["response"])
        assert (row["finish_reason"] == "length") == (row["response"] == "hm")
        assert row["num_tokens"] == len(row["response"])
    assert result.tokens == sum(len(row["response"]) for row in rows)
    assert result.truncated_rate == sum(row["response"] == "hm" for row in rows) / 21
    assert result.generation_seconds > 0 and result.tokens_per_second > 0


def test_prompts_are_rendered_and_by_default_the_problem_and_a_newline(tmp_path):
    generator = Guesser()
    run(tmp_path / "a", generator=generator)
    run(tmp_path / "b", generator=generator, render=lambda text: text + " =")
    assert generator.prompts[0] == "0 + 0?\n" and generator.prompts[7] == "0 + 0? ="


def test_batches_draw_from_streams_of_their_own(tmp_path):
    seeds = []

    class Recorder(Guesser):
        def generate(self, prompts, sampling):
            seeds.append(sampling.seed)
            return super().generate(prompts, sampling)

    run(tmp_path / "a", generator=Recorder())
    run(tmp_path / "b", generator=Recorder(), sampling=S(n=3, seed=6))
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_response_with_a_lone_surrogate_is_recorded(tmp_path):
    run(tmp_path, samples={"p1": ["\ud800 #### 2"]})
    assert untimed(tmp_path)[0]["response"] == "\ud800 #### 2"
    run(tmp_path, CountingGrader(limit=0), samples={"p1": ["\ud800 #### 2"]})


# --- resuming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradings", [0, 5, 9, 14, 18, 20])
def test_a_run_interrupted_while_grading_grades_nothing_twice(tmp_path, gradings):
    run(tmp_path / "whole")
    first, second = CountingGrader(limit=gradings), CountingGrader()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", first)
    recorded = len(lines(tmp_path / "cut"))
    assert recorded == gradings
    assert not (tmp_path / "cut" / "result.json").exists()
    generator = Guesser()
    run(tmp_path / "cut", second, generator)
    assert len(second.seen) == 21 - recorded
    assert len(generator.prompts) == 7 - recorded // 9 * 3, "whole batches are not generated again"
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    assert untimed(tmp_path / "cut") == untimed(tmp_path / "whole")


def test_a_run_killed_outright_loses_only_the_sample_in_flight(tmp_path, monkeypatch):
    """The batch holds all 21 samples: what was judged long enough before the kill is on record."""
    monkeypatch.setattr("eval.run.SECONDS_UNRECORDED", 0.0)

    class Killed(CountingGrader):
        def __call__(self, problem, response):
            if len(self.seen) == 10:
                os._exit(9)  # like SIGKILL: nothing is tidied up
            return super().__call__(problem, response)

    child = os.fork()
    if child == 0:
        run(tmp_path, Killed(), batch_size=7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(lines(tmp_path)) == 10
    grader = CountingGrader()
    run(tmp_path, grader, batch_size=7)
    assert len(grader.seen) == 11


def test_a_full_disk_while_grading_leaves_no_sample_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.run.SECONDS_UNRECORDED", 0.0)
    append, calls = append_jsonl, []

    def full_at_the_third(path, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise UserError(f"{path}: cannot write")
        append(path, rows)

    monkeypatch.setattr("eval.run.append_jsonl", full_at_the_third)
    with pytest.raises(UserError, match="cannot write"):
        run(tmp_path)
    assert len(lines(tmp_path)) == 2 and calls == [1, 1, 1]


@pytest.mark.parametrize("cut", range(1, 2400, 149))
def test_a_file_torn_anywhere_is_mended_without_grading_twice(tmp_path, cut):
    run(tmp_path)
    whole, wanted = numbers(tmp_path), untimed(tmp_path)
    path = tmp_path / "samples.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    kept = content[:-cut].count(b"\n")
    grader = CountingGrader()
    run(tmp_path, grader)
    assert len(grader.seen) == 21 - kept
    assert numbers(tmp_path) == whole
    assert untimed(tmp_path) == wanted


def test_a_finished_run_does_nothing_and_keeps_its_times(tmp_path):
    first = run(tmp_path)
    generator = Guesser()
    again = run(tmp_path, CountingGrader(limit=0), generator)
    assert generator.prompts == []
    assert again == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": {"benchmark": "sums", "model": {"name": "other"}}},
            'model.name = "guesser", now "other"',
        ),
        ({"settings": {"benchmark": "sums"}}, 'model.name = "guesser", now null'),
        ({"sampling": S(n=3, seed=6)}, "run.sampling.seed = 5, now 6"),
        ({"sampling": S(n=4, seed=5)}, "run.sampling.n = 3, now 4"),
        ({"batch_size": 4}, "run.batch_size = 3, now 4"),
        ({"problems": PROBLEMS[:6]}, "run.problems = "),
        ({"problems": [*PROBLEMS[:6], replace(PROBLEMS[6], answer="13")]}, "run.problems = "),
        ({"render": lambda text: text}, "run.prompts = "),
        ({"samples": {"p1": ["x"]}}, "run.batch_size = 3, now null"),
    ],
)
def test_other_settings_are_refused_by_name_with_a_remedy(tmp_path, changes, message):
    run(tmp_path)
    before = lines(tmp_path)
    with pytest.raises(UserError) as error:
        run(tmp_path, **changes)
    assert message in str(error.value) and "choose another output folder" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert lines(tmp_path) == before


def test_other_samples_in_an_old_folder_are_refused(tmp_path):
    run(tmp_path, samples={"p1": ["#### 2"]})
    with pytest.raises(UserError, match=r"run\.samples"):
        run(tmp_path, samples={"p1": ["#### 3"]})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "samples.jsonl:2: broken JSON"),
        ('{"id": "p1", "sample": 0}', "samples.jsonl:2: no field 'finish_reason'; remove that line"),
        ({"id": "elsewhere"}, "samples.jsonl:2: sample 0 of id 'elsewhere' is not of this run"),
        ({"sample": 3}, "samples.jsonl:2: sample 3 of id 'p0' is not of this run"),
        ({"sample": -1}, "samples.jsonl:2: sample -1 of id 'p0' is not of this run"),
        ({"id": ["p0"]}, "is not of this run"),
        ({}, "samples.jsonl:2: sample 0 of id 'p0' stands twice"),
        ({"sample": 1, "verdict": "fine"}, 'samples.jsonl:2: unknown verdict "fine"'),
    ],
)
def test_a_damaged_record_is_named_by_line(tmp_path, line, message):
    run(tmp_path)
    first = lines(tmp_path)[0]
    if isinstance(line, dict):
        line = json.dumps(json.loads(first) | line)
    (tmp_path / "samples.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(UserError) as error:
        run(tmp_path)
    assert message in str(error.value)


def test_a_record_without_settings_is_refused(tmp_path):
    run(tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(UserError, match=r"no settings\.json"):
        run(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json: unreadable"):
        run(tmp_path)


def test_no_problems_and_no_samples_are_errors(tmp_path):
    with pytest.raises(UserError, match="no problems"):
        run(tmp_path, problems=[])
    with pytest.raises(UserError, match="none for any of the problems"):
        run(tmp_path, samples={})
