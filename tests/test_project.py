"""The repository as a whole: packaging, what an installed copy guarantees, what tracked files may hold."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("data", "eval", "prm", "reasoning_rl")


def project_files() -> list[Path]:
    """Return the files git tracks or would add, without binaries."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout: " + listing.stderr.strip())
    files = [ROOT / name for name in sorted(set(listing.stdout.split("\0"))) if name]
    return [file for file in files if file.is_file() and b"\0" not in file.read_bytes()]


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


def test_listed_packages_are_the_folders_on_disk() -> None:
    # A folder missing from the list would work in this checkout and be absent elsewhere.
    on_disk = {
        ".".join(folder.relative_to(ROOT).parts)
        for package in PACKAGES
        for folder in [ROOT / package, *(ROOT / package).rglob("*")]
        if folder.is_dir() and any(folder.glob("*.py"))
    }
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(on_disk)


@pytest.mark.parametrize("package", PROJECT["tool"]["setuptools"]["packages"])
def test_every_package_has_an_init_file(package: str) -> None:
    # Without one, any plain folder of the same name in the working folder would win over it.
    assert (ROOT / package.replace(".", "/") / "__init__.py").is_file()


def test_plain_folders_of_the_same_name_do_not_shadow_the_packages(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "notes.txt").touch()
    code = f"import {', '.join(PACKAGES)}\nfor m in ({', '.join(PACKAGES)}): print(m.__file__)"
    child = run_python("-c", code, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines() == [str(ROOT / package / "__init__.py") for package in PACKAGES]


def test_real_packages_of_the_same_name_do_not_shadow_a_script(tmp_path: Path) -> None:
    # "python -c" searches the working folder first, so there a data/__init__.py wins; a script such as
    # .venv/bin/stepwell searches its own folder instead, and that is what we promise.
    (tmp_path / "work/data").mkdir(parents=True)
    (tmp_path / "work/data/__init__.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/script").write_text("import data\nprint(data.__file__)")
    child = run_python(str(tmp_path / "bin/script"), cwd=tmp_path / "work")
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == str(ROOT / "data/__init__.py")


def test_console_script_is_installed_as_declared() -> None:
    declared = PROJECT["project"]["scripts"]["stepwell"]
    assert [entry.value for entry in entry_points(group="console_scripts", name="stepwell")] == [declared]


def test_help_is_quick_and_loads_no_torch(tmp_path: Path) -> None:
    module, function = PROJECT["project"]["scripts"]["stepwell"].split(":")
    code = f"""
import sys, time
from {module} import {function} as main
sys.argv = ["stepwell", "--help"]
try:
    code = main()
except SystemExit as stop:
    code = stop.code
assert not code, code
heavy = {{"torch", "transformers", "datasets", "vllm"}} & set(sys.modules)
assert not heavy, heavy
print(time.process_time(), file=sys.stderr)
"""
    seconds = []
    # The faster of two: the first run may still have to compile the sources.
    for _ in range(2):
        child = run_python("-c", code, cwd=tmp_path)
        assert child.returncode == 0, child.stderr
        assert "quickstart" in child.stdout
        seconds.append(float(child.stderr.split()[-1]))
    assert min(seconds) < 1.5


def test_no_help_and_no_completion_script_loads_a_heavy_library(tmp_path: Path) -> None:
    code = """
import sys
from reasoning_rl.cli import VERBS, main
heavy = {"torch", "transformers", "accelerate", "datasets", "vllm", "peft"}
for words in [*([verb, "--help"] for verb in VERBS), ["completion", "bash"]]:
    main(words)
    assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))
"""
    child = run_python("-c", code, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    assert "--fit.learning-rate" in child.stdout


def test_required_python_is_the_one_ruff_checks_for() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"


def test_cpu_constraint_satisfies_the_torch_floor() -> None:
    (pinned,) = re.findall(r"^torch==([\d.]+)$", (ROOT / "scripts/constraints-cpu.txt").read_text(), re.M)
    (floor,) = (need[7:] for need in PROJECT["project"]["dependencies"] if need.startswith("torch>="))
    assert [int(part) for part in pinned.split(".")] >= [int(part) for part in floor.split(".")]


def test_every_pattern_of_the_pure_modules_names_one() -> None:
    """A module that was renamed would drop out of the coverage unseen."""
    patterns = PROJECT["tool"]["coverage"]["run"]["include"]
    assert [pattern for pattern in patterns if not any(ROOT.glob(pattern))] == []


def test_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", text)
    assert "END OF TERMS AND CONDITIONS" in text


def test_files_name_no_machine_and_no_package_index() -> None:
    # Spelled in pieces, so that this file does not name one either.
    home = r"(?<![\w.\-/~}])/(?:" + "|".join(["home", "root", "work", "Users", "opt"]) + r")/\w"
    index = "|".join([r"pypi\.(?:org|io)", r"pythonhosted\.org", r"download\.pytorch\.org", "index" + "-url"])
    pattern = re.compile(f"{home}|{index}")
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for file in project_files()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "scripts"])
def test_programs_beside_the_packages_import_what_exists(folder: str) -> None:
    """Many of their imports stand in functions: hours may pass before they run."""
    absent = []
    for file in sorted((ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                if "vllm" in node.module:  # an extra's
                    continue
                module = import_module(node.module)
                absent += [
                    f"{file.name}:{node.lineno}: {node.module} has no {alias.name}"
                    for alias in node.names
                    if not hasattr(module, alias.name) and find_spec(f"{node.module}.{alias.name}") is None
                ]
    assert absent == []


def test_python_files_stay_short() -> None:
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for file in project_files()
        if file.suffix == ".py"
    }
    assert {name: lines for name, lines in lengths.items() if lines >= 400} == {}


@pytest.mark.parametrize(
    "script",
    ["scripts/quickstart.sh", "scripts/test.sh", "scripts/coverage.sh", "scripts/setup.sh", ".ci/run"],
)
def test_shell_scripts_parse(script: str) -> None:
    child = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def test_no_placeholder_is_left_in_the_documents() -> None:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        left = re.findall(r"\b[A-Z0-9]+_(?:TABLE|SEEDS|ITERATIONS)\b", path.read_text(encoding="utf-8"))
        assert not left, f"{path.name}: {left}"
