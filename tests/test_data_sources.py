"""Rows of files, folders, saved datasets and the hub, each with its place; what cannot be read is named."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import UserError
from data.sources import Row, field, read_rows
from eval.benchmarks import read_benchmark

REPO = Path(__file__).resolve().parent.parent


def write_rows(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def values(source, **options) -> list:
    return [row.values for row in read_rows(source, **options)]


ROWS = [{"a": 1, "b": ["x", None]}, {"a": 2, "b": []}]


def test_every_file_type_gives_the_same_rows_and_its_own_places(tmp_path):
    import pyarrow
    import pyarrow.parquet

    lines = write_rows(tmp_path / "r.jsonl", ROWS)
    packed = tmp_path / "r.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    array = tmp_path / "r.json"
    array.write_text(json.dumps(ROWS, indent=1))
    disguised = tmp_path / "lines.json"
    disguised.write_bytes(lines.read_bytes())
    columns = tmp_path / "r.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), columns)
    for path, place in [
        (lines, ":2"),
        (packed, ":2"),
        (array, ":row 2"),
        (disguised, ":2"),
        (columns, ":row 2"),
    ]:
        rows = list(read_rows(path))
        assert [row.values for row in rows] == ROWS
        assert rows[1].where == f"{path}{place}"


def test_a_folder_is_all_its_files_in_order_without_hidden_ones(tmp_path):
    write_rows(tmp_path / "b.jsonl", [{"n": 2}])
    write_rows(tmp_path / "a.jsonl", [{"n": 1}])
    write_rows(tmp_path / "sub" / "c.jsonl", [{"n": 3}])
    write_rows(tmp_path / ".cache" / "d.jsonl", [{"n": 4}])
    (tmp_path / "README.md").write_text("not data")
    assert values(tmp_path) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_a_folder_with_files_named_after_splits_gives_only_the_split_asked_for(tmp_path):
    write_rows(tmp_path / "main" / "train.jsonl", [{"n": 1}])
    write_rows(tmp_path / "main" / "test-00000-of-00001.jsonl", [{"n": 2}])
    write_rows(tmp_path / "main" / "val.jsonl", [{"n": 3}])
    write_rows(tmp_path / "other" / "train.jsonl", [{"n": 4}])
    assert values(tmp_path) == [{"n": 1}, {"n": 4}]
    assert values(tmp_path, name="main") == [{"n": 1}]
    assert values(tmp_path, split="test") == [{"n": 2}]
    assert values(tmp_path, split="validation") == [{"n": 3}]
    with pytest.raises(UserError, match="no file of split 'dev2'; the folder has test, train, val"):
        values(tmp_path, split="dev2")


def test_a_saved_dataset_is_read_by_split(tmp_path):
    import datasets

    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "two")
    assert values(tmp_path / "one") == values(tmp_path / "two") == ROWS
    assert [row.where for row in read_rows(tmp_path / "two", split="test")] == [
        f"{tmp_path / 'two'}[test]:row 1"
    ]
    with pytest.raises(UserError, match="no split 'dev'; the saved dataset has train, test"):
        values(tmp_path / "two", split="dev")


def test_a_hub_dataset_is_read_by_id_split_and_configuration(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = list(read_rows("owner/some-set", split="test", name="main"))
    assert [row.values for row in rows] == ROWS
    assert rows[1].where == "owner/some-set[test]:row 2"
    assert asked == [("owner/some-set", "main", "test")]


def test_without_a_network_the_hub_is_not_asked_again_and_again(monkeypatch):
    import datasets
    import huggingface_hub.constants as hub

    modes = []

    def load_dataset(*names, split):
        modes.append((datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE))
        raise ConnectionError("no such host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("data.sources.getproxies", dict)
    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    with pytest.raises(UserError, match=r"gsm8k: openai/gsm8k\[test\].*no such host.*--source"):
        read_benchmark("gsm8k")
    assert modes == [(True, True)] and before == (datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE)


def test_a_hub_dataset_that_cannot_be_had_offline_names_the_ways_out():
    code = "from data.sources import read_rows; list(read_rows('owner/no-such-set', split='test'))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    message = run.stderr.partition("data.sources.HubError: ")[2]
    assert message.startswith("owner/no-such-set[test]: no such local file, and not loadable from the hub")
    assert "give a local file or folder" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "no such file or folder"),
        ("r.txt", "x", "r.txt: unknown file type; expected .jsonl"),
        ("r.jsonl", '{"a": 1}\n{"a": \n', r"r.jsonl:2: broken JSON"),
        ("r.jsonl", '{"a": 1}\n\n[2]\n', r"r.jsonl:3: expected a JSON object, got list"),
        ("r.jsonl", '{"a": 1}\n{"a": "\\ud800"}\n', r"r.jsonl:2: holds \\ud800, half of a surrogate pair"),
        ("r.jsonl", '{"a": {"b": ["\\uDE00\\uD83D"]}}\n', r"r.jsonl:1: holds \\ude00, half"),
        ("r.json", '[{"a": "\\ud800"}]', r"r.json: holds \\ud800"),
        ("r.json", '[{"a": 1},\n {"a" 2}]', r"r.json:2: broken JSON"),
        ("r.json", '[{"a": 1}, 7]', r"r.json:row 2: expected an object, got an integer 7"),
        ("r.jsonl.gz", "not gzipped", "unreadable"),
        ("r.parquet", "not parquet", "r.parquet: unreadable as parquet"),
        ("empty/readme.md", "x", "the folder holds no .jsonl"),
        ("broken/state.json", "{}", "not readable as a saved dataset"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_rows(path.parent if "/" in name else path))


def test_whole_surrogate_pairs_and_backslashes_are_texts(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00"}\n{"a": "\\\\ud800"}\n')
    assert [row.values["a"] for row in read_rows(path)] == ["\U0001f600", "\\ud800"]


def test_a_missing_field_names_place_expected_and_found():
    row = Row("rows.jsonl:12", {"problem": "p", "labels": [], "question": {"text": "q"}, "n": True})
    with pytest.raises(UserError) as error:
        field(row, "steps", list, expected="problem, steps, labels")
    assert str(error.value) == (
        "rows.jsonl:12: no field 'steps'; expected problem, steps, labels; found problem, labels, question, n"
    )
    assert field(row, "question.text", str) == "q"
    with pytest.raises(UserError, match=r"no field 'question.answer'; found text"):
        field(row, "question.answer")
    with pytest.raises(UserError, match=r"no field 'problem.x'; found str"):
        field(row, "problem.x")
    with pytest.raises(UserError, match="field 'problem' must be a list, got a string 'p'"):
        field(row, "problem", list)
    with pytest.raises(UserError, match="field 'n' must be an integer or a number, got true/false True"):
        field(row, "n", (int, float))
