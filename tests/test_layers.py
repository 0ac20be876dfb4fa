"""Who may import whom, read from the source of every file: top-level, nested and by-name imports alike."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Package -> our packages it may import besides itself.
ALLOWED: dict[str, set[str]] = {
    "data": set(),
    "eval": {"data"},
    "prm": {"data"},
    "reasoning_rl": {"data", "prm"},
    "scripts": {"data", "eval", "prm", "reasoning_rl"},
}
OURS = {*ALLOWED, "tests", "benchmarks"}

COMPOSITION_ROOTS = [
    f"reasoning_rl/{name}.py"
    for name in ("api", "commands*", "compose*", "labelling", "prm_eval", "quickstart")
]
"""Files (patterns) that put the parts together: they alone may import eval, and print."""

ENGINES = [
    "reasoning_rl/rollout/vllm_*.py",
    "prm/vllm_scorer.py",
    "prm/zero.py",
    "reasoning_rl/runtime.py",
]
"""Files (patterns) that may import vllm and deepspeed."""

TORCH_FREE_BUT = {"eval": [], "data": ["data/collate.py"]}
"""Packages without torch -> their files that may import it."""


def imported_modules(tree: ast.AST, path: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything the file at `path` imports; `from a import b` gives a.b."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                parents = package[: len(package) - level + 1] if level else []
                prefix = ".".join([*parents, *([module] if module else [])])
                yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in names)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
                called = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
                if called in ("import_module", "__import__"):
                    yield node.lineno, name


def is_root(path: str) -> bool:
    return any(fnmatch(path, pattern) for pattern in COMPOSITION_ROOTS)


def import_fault(path: str, module: str) -> str | None:
    """Return why the file at `path` (relative to the root) may not import `module`; None when it may."""
    package, target = path.split("/")[0], module.split(".")[0]
    if target == "eval" and package == "reasoning_rl":
        return None if is_root(path) else "only the composition roots import eval"
    if target in OURS and target != package and target not in ALLOWED[package]:
        return f"{package} imports only {', '.join(sorted(ALLOWED[package])) or 'itself'}"
    if target in ("vllm", "deepspeed") and not any(fnmatch(path, pattern) for pattern in ENGINES):
        return "only " + ", ".join(ENGINES) + " import an engine"
    if package in TORCH_FREE_BUT and path not in TORCH_FREE_BUT[package]:
        carries_torch = module == "data.collate" or module.startswith("data.collate.")
        if target == "torch" or (carries_torch and package == "eval"):
            return f"{package} runs without torch"
        if target == "transformers" and package == "eval":
            return "eval runs without transformers"
    return None


def find_violations(root: Path) -> list[str]:
    """Return one "file:line: what" for each breach of the layers under `root`, sorted."""
    faults = []
    for package in ALLOWED:
        for file in sorted((root / package).rglob("*.py")):
            path = file.relative_to(root).as_posix()
            tree = ast.parse(file.read_text(encoding="utf-8"), path)
            for line, module in imported_modules(tree, path):
                if reason := import_fault(path, module):
                    faults.append(f"{path}:{line}: imports {module}: {reason}")
            if package == "scripts" or is_root(path):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                    faults.append(
                        f"{path}:{node.lineno}: prints: only the composition roots speak to the user"
                    )
    return sorted(faults)


def test_layers_hold() -> None:
    assert find_violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("data/a.py", "import prm.losses", "data imports only itself"),
        ("data/a.py", "def f():\n    from reasoning_rl import types", "data imports only itself"),
        ("data/a.py", "import torch", "data runs without torch"),
        ("data/a.py", "from torch.nn import functional", "data runs without torch"),
        ("eval/a.py", "from prm.scorer import score", "eval imports only data"),
        ("eval/a.py", "from ..prm import scorer", "eval imports only data"),
        ("eval/a.py", "import importlib\nimportlib.import_module('prm.scorer')", "eval imports only data"),
        ("eval/a.py", "__import__('torch')", "eval runs without torch"),
        ("eval/a.py", "if True:\n    import transformers", "eval runs without transformers"),
        ("eval/a.py", "from data import collate", "eval runs without torch"),
        ("eval/a.py", "from data.collate import pad", "eval runs without torch"),
        ("prm/a.py", "from eval.metrics import auc", "prm imports only data"),
        ("prm/a.py", "import vllm", "import an engine"),
        ("reasoning_rl/ppo.py", "import eval.run", "only the composition roots import eval"),
        ("reasoning_rl/rollout/hf.py", "from vllm import LLM", "import an engine"),
        ("reasoning_rl/rollout/hf.py", "from ...eval import run", "only the composition roots import eval"),
        ("reasoning_rl/ppo.py", "import deepspeed", "import an engine"),
        ("reasoning_rl/ppo.py", "from tests import worlds", "reasoning_rl imports only data, prm"),
        (
            "scripts/a.py",
            "from benchmarks import speed",
            "scripts imports only data, eval, prm, reasoning_rl",
        ),
        ("prm/a.py", "def f():\n    print('x')", "prints"),
    ],
)
def test_each_breach_is_reported_once(tmp_path: Path, path: str, source: str, fault: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    faults = find_violations(tmp_path)
    assert len(faults) == 1
    # Every breach above stands on the last line of its source.
    assert faults[0].startswith(f"{path}:{source.count(chr(10)) + 1}: ")
    assert fault in faults[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data/collate.py", "import torch\nfrom data.schema import Sample\nfrom .steps import split"),
        ("data/a.py", "import transformers\nimport torchless"),
        (
            "eval/a.py",
            "from data.schema import Verdict\nfrom eval.answers import normalise\nfrom . import run",
        ),
        ("prm/a.py", "import torch\nfrom data.collate import pad\nimport re\nre.compile('vllm')"),
        ("prm/vllm_scorer.py", "import vllm"),
        ("reasoning_rl/commands.py", "from eval.run import evaluate\nprint('hello')"),
        ("reasoning_rl/runtime.py", "import deepspeed"),
        ("reasoning_rl/rollout/vllm_local.py", "from vllm import LLM\nfrom ..types import Rollout"),
        ("scripts/a.py", "from reasoning_rl.cli import main\nprint('hello')"),
    ],
)
def test_what_the_design_allows_passes(tmp_path: Path, path: str, source: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert find_violations(tmp_path) == []


def test_data_and_eval_import_without_torch() -> None:
    # The source walk sees our own imports only; this also sees what the libraries drag in.
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in TORCH_FREE_BUT
        for file in sorted((ROOT / package).rglob("*.py"))
        if file.relative_to(ROOT).as_posix() not in TORCH_FREE_BUT[package] and file.name != "__main__.py"
    ]
    code = f"import sys\nfor name in {modules}: __import__(name); assert 'torch' not in sys.modules, name"
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
