"""What a user reads when a config or a data file is wrong, and that good ones survive a round trip."""

import gzip
import os
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from data.errors import UserError, did_you_mean
from data.files import (
    append_jsonl,
    check_folder,
    cut_torn_line,
    read_jsonl,
    read_settings,
    write_atomically,
)
from data.settings import Settings, read_yaml


class Inner(Settings):
    learning_rate: float = Field(1e-5, gt=0)
    """Step size of the optimiser."""
    kind: Literal["adam", "sgd"] = "adam"


class Outer(Settings):
    name: str
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)


def message(call, *args, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **options)
    return str(error.value)


# --- settings --------------------------------------------------------------------------------------------


def test_settings_survive_a_round_trip_through_yaml(tmp_path):
    outer = Outer(name="é: #1", inner=Inner(learning_rate=3e-7, kind="sgd"), sizes=(4,))
    outer.to_yaml(tmp_path / "deep" / "c.yaml")
    assert Outer.from_yaml(tmp_path / "deep" / "c.yaml") == outer
    assert Outer.from_dict({"name": "n"}) == Outer(name="n")


def test_settings_are_frozen_and_documented_by_the_docstring_under_a_field():
    with pytest.raises(ValidationError, match="frozen"):
        Outer(name="n").name = "m"
    assert Inner.model_fields["learning_rate"].description == "Step size of the optimiser."


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"name": "n", "nmae": 1}, "c.yaml: unknown key 'nmae'; did you mean 'name'?"),
        (
            {"name": "n", "inner": {"learnin_rate": 1}},
            "c.yaml: unknown key 'inner.learnin_rate'; did you mean 'learning_rate'?",
        ),
        ({"name": "n", "zzz": 1}, "c.yaml: unknown key 'zzz'; known: inner, name, sizes"),
        (
            {"name": "n", "inner": {"learning_rate": -1}},
            "c.yaml: inner.learning_rate: Input should be greater than 0, got -1",
        ),
        (
            {"name": "n", "inner": {"kind": "adamw"}},
            "c.yaml: inner.kind: Input should be 'adam' or 'sgd', got 'adamw'",
        ),
        (
            {"name": "n", "sizes": [1, "x"]},
            "c.yaml: sizes.1: Input should be a valid integer, unable to parse string as an integer, got 'x'",
        ),
    ],
)
def test_a_wrong_setting_is_named_by_its_dotted_path_with_the_remedy(values, text):
    assert message(Outer.from_dict, values, where="c.yaml") == text


def test_a_missing_setting_is_named_and_two_faults_take_a_line_each():
    text = message(Outer.from_dict, {"inner": {"kind": 1}}, where="c.yaml")
    first, second = text.splitlines()
    assert first == "c.yaml: name: Field required; set it in the config file or as --name"
    assert second.startswith("inner.kind: Input should be 'adam' or 'sgd', got 1")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("name: [1, 2", "c.yaml:1: broken YAML (expected ',' or ']', but got '<stream end>' at column 12)"),
        ("name: n\ninner:\n\tkind: adam\n", "c.yaml:3: broken YAML (found character '\\t'"),
        ("- name\n", "c.yaml: expected a mapping of settings, got list"),
        ("just text", "c.yaml: expected a mapping of settings, got str"),
    ],
)
def test_broken_yaml_is_named_by_file_and_line(tmp_path, content, text):
    (tmp_path / "c.yaml").write_text(content)
    assert message(read_yaml, tmp_path / "c.yaml").startswith(f"{tmp_path}/{text}")


def test_missing_empty_and_undecodable_config_files(tmp_path):
    assert message(read_yaml, tmp_path / "no.yaml") == f"{tmp_path}/no.yaml: no such config file"
    (tmp_path / "empty.yaml").write_text("# nothing set\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert message(Outer.from_yaml, tmp_path / "latin.yaml").startswith(
        f"{tmp_path}/latin.yaml: unreadable ("
    )
    assert message(read_yaml, tmp_path).startswith(f"{tmp_path}: unreadable (")


def test_did_you_mean_gives_the_nearest_names_or_all():
    assert did_you_mean("kl_coeff", ["kl_coef", "vf_coef", "gamma"]).startswith("; did you mean 'kl_coef'")
    assert did_you_mean("xyz", ["b", "a"]) == "; known: a, b"


# --- files -----------------------------------------------------------------------------------------------


def test_lines_count_from_one_and_blank_lines_keep_their_number(tmp_path):
    content = '{"a": 1}\n\n  \n{"a": "\u2028"}'
    (tmp_path / "r.jsonl").write_text(content, encoding="utf-8")
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    rows = [(1, {"a": 1}), (4, {"a": "\u2028"})]
    assert list(read_jsonl(tmp_path / "r.jsonl")) == list(read_jsonl(str(tmp_path / "r.jsonl.gz"))) == rows


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"a": 1}\n{"a": }\n', ":2: broken JSON (Expecting value at column 7)"),
        (b'{"a": 1}\n\n[1]\n', ":3: expected a JSON object, got list"),
        (b"null\n", ":1: expected a JSON object, got NoneType"),
        (b'{"a": 1}\n{"a": "\xe9"}\n', ": unreadable ('utf-8' codec can't decode byte 0xe9"),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path, content, text):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    assert message(lambda: list(read_jsonl(path))).startswith(f"{path}{text}")


def test_missing_and_cut_off_files_are_named(tmp_path):
    path = tmp_path / "no.jsonl"
    assert message(lambda: list(read_jsonl(path))).startswith(
        f"{path}: no such file; check the path (working folder: "
    )
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"a": 1}\n' * 5000)[:-20])
    assert message(lambda: list(read_jsonl(cut))).startswith(f"{cut}: unreadable after line ")
    cut.write_bytes(b'{"a": 1}\n')
    assert message(lambda: list(read_jsonl(cut))).startswith(f"{cut}: unreadable (Not a gzipped file (b'{{\"")
    assert message(lambda: list(read_jsonl(cut))).endswith("; give a whole, readable file")


@pytest.mark.parametrize(
    ("value", "fault"),
    [("[" * 100_000, "brackets nested too deep"), ("9" * 5000, "a number of thousands of digits")],
)
def test_json_that_python_refuses_is_named_like_any_other_broken_line(tmp_path, value, fault):
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"a": 1}}\n{{"a": {value}\n')
    said = f"{path}:2: broken JSON ({fault}); mend it or remove it"
    assert message(lambda: list(read_jsonl(path))) == said
    path.write_text(value)
    with pytest.raises(UserError, match=r"r\.jsonl: .*; evaluate again"):
        read_settings(path, "evaluate again")


def test_where_no_folder_can_be_is_said_before_anything_is_written(tmp_path):
    (tmp_path / "file").write_text("")
    said = message(lambda: check_folder(tmp_path / "file"))
    assert said == f"{tmp_path / 'file'}: is no folder to write to (File exists); give another one"


def test_files_are_written_whole_with_their_folders_and_no_leftover(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_atomically(path, "one\n")
    write_atomically(str(path), "é two\n")
    assert path.read_text(encoding="utf-8") == "é two\n"
    assert os.listdir(path.parent) == ["b.txt"]


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_kept(tmp_path):
    path = tmp_path / "taken"
    (path / "inside").mkdir(parents=True)
    assert message(write_atomically, path, "x") == (
        f"{path}: cannot write (Is a directory); the old file is kept"
    )
    assert os.listdir(tmp_path) == ["taken"]


def test_rows_are_appended_and_a_torn_last_line_is_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, [{"id": 1}])
    append_jsonl(path, [{"id": 2}, {"id": 3}])
    whole = path.read_bytes()
    cut_torn_line(path)
    assert path.read_bytes() == whole and [row["id"] for _, row in read_jsonl(path)] == [1, 2, 3]
    path.write_bytes(whole + b'{"id": 4')
    cut_torn_line(path)
    assert path.read_bytes() == whole
    path.write_bytes(b'{"id"')
    cut_torn_line(path)
    assert path.read_bytes() == b""


def test_rows_that_do_not_fit_are_an_error_and_what_stood_there_stays():
    with pytest.raises(UserError, match="/dev/full: cannot write .*what is recorded is kept"):
        append_jsonl("/dev/full", [{"id": 1}])
