"""`stepwell doctor`: what it finds here, and what it makes of a broken machine."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli_cases import ENVIRONMENT

from reasoning_rl import commands_doctor
from reasoning_rl.cli import main
from reasoning_rl.commands_doctor import _start_imports, examine, found_rows

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def found():
    return examine("outputs")


def test_this_machine_is_examined(found):
    named = {package.name: package for package in found.packages}
    assert {"torch", "transformers", "math-verify", "pyyaml", "vllm", "deepspeed", "peft"} <= named.keys()
    assert named["numpy"].version and not named["numpy"].fault and named["peft"].extra == "lora"
    assert not any(package.is_broken for package in found.packages)
    assert found.own == {name: str(ROOT / name) for name in ("data", "eval", "prm", "reasoning_rl")}
    assert found.cpus >= 1 and found.disk_gb > 0 and found.isolation and not found.is_broken
    rows = dict(found_rows(found))
    assert rows["isolation of programs"] == found.isolation and rows["our eval"] == str(ROOT / "eval")


def test_json_is_one_object_and_the_exit_code_says_broken(found, monkeypatch, capsys):
    torch = next(package for package in found.packages if package.name == "torch")
    broken = replace(found, packages=[replace(torch, fault="does not import: OSError: no libfoo")])
    monkeypatch.setattr(commands_doctor, "examine", lambda folder: broken)
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert stop.value.code == 1 and said["is_broken"] and said["packages"][0]["fault"].endswith("no libfoo")
    monkeypatch.setattr(commands_doctor, "examine", lambda folder: found)
    main(["doctor"])
    assert "isolation of programs" in capsys.readouterr().out


def test_a_missing_extra_breaks_nothing(found):
    extra = replace(found.packages[0], extra="vllm", version=None, fault="not installed; needed >=1")
    assert not replace(found, packages=[extra]).is_broken
    assert replace(found, packages=[replace(extra, extra="")]).is_broken


def test_imports_that_fail_crash_or_hang_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "talks.py").write_text("print('[12:00:00] a package at work')")
    (tmp_path / "raises.py").write_text("raise ImportError('no such symbol')")
    (tmp_path / "crashes.py").write_text("import os; print('[noise]'); os._exit(7)")
    (tmp_path / "hangs.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    faults, _ = _start_imports(["json", "talks", "raises", "crashes", "never"])()
    assert (
        faults["json"] == faults["talks"] == ""
        and faults["raises"] == "does not import: ImportError: no such symbol"
    )
    assert "code 7" in faults["crashes"] and "never" not in faults
    monkeypatch.setattr(commands_doctor, "IMPORT_SECONDS", 3.0)
    faults, _ = _start_imports(["json", "hangs"])()
    assert "hangs" not in faults


def test_a_package_that_hides_ours_is_named(tmp_path):
    hiding = tmp_path / "prm"
    hiding.mkdir()
    (hiding / "__init__.py").write_text("")
    code = "from reasoning_rl.commands_doctor import _own_packages; print(_own_packages()[1])"
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert child.stdout.strip() == "['prm']", child.stderr
