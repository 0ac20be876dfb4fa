"""`stepwell doctor`: what this machine has of what stepwell needs, in a few seconds.

Broken is what a verb cannot do without: a required package that is missing, too old or does not import, or
one of our own packages hidden by another of its name. Everything else that is missing is advice. Packages are
imported in another process, which a hang or a crash cannot take this one with; no engine is started.
"""

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console

from data.errors import UserError
from data.machine import cpu_count
from data.settings import Settings
from reasoning_rl.live import table_text
from reasoning_rl.options import parse

OWN = ("data", "eval", "prm", "reasoning_rl")
MODULES = {"pyyaml": "yaml", "math-verify": "math_verify", "scikit-learn": "sklearn"}
"""Distribution -> module, where hyphens are not the only difference."""
LEAST_DISK_GB, LEAST_MEMORY_GB = 5.0, 4.0
"""Below these a run of the quickstart's size still works, and one with a 1.5B model does not."""
UNCHECKED = "not checked: others took the time"
IMPORT_SECONDS = 20.0
"""Time for all packages to import, a few seconds unless the machine is busy; later ones are not checked."""
HEAVY = ("torch", "transformers", "accelerate", "datasets")
_IMPORT = """
import importlib, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # some packages talk to standard output while they are imported
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        fault = ""
    except BaseException as error:
        fault = f"does not import: {type(error).__name__}: {error}".splitlines()[0][:200]
    print(json.dumps([name, fault]), file=answers, flush=True)
    if name == "torch" and not fault:
        import torch
        devices = []
        if torch.cuda.is_available():
            found = [torch.cuda.get_device_properties(k) for k in range(torch.cuda.device_count())]
            devices = [f"{one.name} ({one.total_memory / 2**30:.0f} GiB)" for one in found]
        elif torch.backends.mps.is_available():
            devices = ["Apple GPU (mps)"]
        print(json.dumps(["devices", devices or ["cpu"]]), file=answers, flush=True)
"""


class DoctorConfig(Settings):
    """A look at the machine: `stepwell doctor`."""

    output_dir: str = "outputs"
    """Where runs are to go: the free disk is that of this folder."""


@dataclass(frozen=True)
class Package:
    """One distribution that stepwell uses."""

    name: str
    needed: str
    """Version specifier, e.g. ">=2.11"."""
    extra: str
    """Extra that brings it; "" for one that is always needed."""
    version: str | None
    fault: str
    """Why it cannot be used; "" when it can."""

    @property
    def is_broken(self) -> bool:
        return self.fault not in ("", UNCHECKED) and not self.extra


@dataclass(frozen=True)
class Examination:
    """What was found."""

    python: str
    system: str
    packages: list[Package]
    own: Mapping[str, str]
    """Our package -> its folder, or why it cannot be imported."""
    hidden: list[str]
    """Our packages that another of the same name hides."""
    devices: list[str]
    cpus: int
    memory_gb: float | None
    """Available now; None where the system does not tell."""
    disk_gb: float
    isolation: str
    """What keeps model-written programs in: level and layers."""
    isolation_missing: list[str]
    advice: list[str] = field(default_factory=list)

    @property
    def is_broken(self) -> bool:
        return bool(self.hidden) or any(package.is_broken for package in self.packages)


def run_doctor(args: list[str]) -> None:
    """`stepwell doctor`; exits with 1 when something needed is broken."""
    parsed = parse(args, DoctorConfig, flags=["json"])
    found = examine(DoctorConfig.from_dict(parsed.values, parsed.where).output_dir)
    if "json" in parsed.flags:
        text = json.dumps({"is_broken": found.is_broken, **asdict(found)}, indent=1)
    else:
        text = table_text(found_rows(found)) + "".join(f"\n- {line}" for line in found.advice)
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
    if found.is_broken:
        sys.exit(1)


def examine(output_dir: str) -> Examination:
    """Look at everything once."""
    requirements = _requirements()
    wanted = [_module(r.name) for r, _ in requirements if _version(r.name) is not None]
    finish = _start_imports(wanted)
    isolation, missing = _isolation()
    own, hidden = _own_packages()
    faults, devices = finish()
    packages = [_package(r, extra, faults) for r, extra in requirements]
    found = Examination(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=packages,
        own=own,
        hidden=hidden,
        devices=devices,
        cpus=cpu_count(),
        memory_gb=_memory_gb(),
        disk_gb=shutil.disk_usage(_existing(Path(output_dir))).free / 1e9,
        isolation=isolation,
        isolation_missing=missing,
    )
    found.advice.extend(_advice(found))
    return found


def found_rows(found: Examination) -> list[tuple[str, str]]:
    """Return (label, value) pairs for a printed table."""
    rows = [("python", f"{found.python} on {found.system}")]
    for package in found.packages:
        shown = package.version or "not installed"
        extra = f"  (extra {package.extra})" if package.extra else ""
        mark = "BROKEN: " if package.is_broken else ""
        fault = f"  {mark}{package.fault}" if package.fault and package.version or mark else ""
        rows.append((package.name, shown + extra + fault))
    rows += [(f"our {name}", where) for name, where in found.own.items()]
    rows.append(("devices", ", ".join(found.devices)))
    memory = "unknown" if found.memory_gb is None else f"{found.memory_gb:.1f} GB available"
    rows += [("processors", str(found.cpus)), ("memory", memory), ("free disk", f"{found.disk_gb:.1f} GB")]
    rows.append(("isolation of programs", found.isolation))
    rows += [("  missing", what) for what in found.isolation_missing]
    rows.append(("verdict", _verdict(found)))
    return rows


def _verdict(found: Examination) -> str:
    if found.is_broken:
        return "something needed is BROKEN"
    if any(package.fault == UNCHECKED and not package.extra for package in found.packages):
        return "nothing is known to be broken; not all could be checked"
    return "all that is needed is there"


def _requirements() -> list[tuple[Requirement, str]]:
    """Requirement and extra of every distribution but those for developing stepwell."""
    found = []
    try:
        lines = requires("stepwell") or []
    except PackageNotFoundError as error:
        raise UserError("stepwell itself is not installed; pip install -e . in its checkout") from error
    for line in lines:
        requirement = Requirement(line)
        extra = str(requirement.marker).partition("==")[2].strip(" \"'") if requirement.marker else ""
        if extra != "dev" and requirement.name != "stepwell":  # an extra may ask for another one
            found.append((requirement, extra))
    # What is needed first, and of that what imports at once: one that hangs hides the fewest others.
    return sorted(found, key=lambda one: (bool(one[1]), one[0].name in HEAVY))


def _start_imports(names: list[str]) -> Callable[[], tuple[dict[str, str], list[str]]]:
    """Import modules one after the other in a process of its own; return what waits for it: the fault of each
    ("" for none; those without a word are absent) and the devices that torch sees."""
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", _IMPORT, *names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(child.stdout or ()), daemon=True)
    reader.start()

    def finish() -> tuple[dict[str, str], list[str]]:
        reader.join(max(0.1, IMPORT_SECONDS - (time.monotonic() - started)))
        timed_out = reader.is_alive()
        child.kill()
        code = child.wait()
        reader.join(1.0)
        said = dict(json.loads(line) for line in lines)
        devices = said.pop("devices", ["unknown"])
        silent = [name for name in names if name not in said]
        if silent and not timed_out:
            said[silent[0]] = f"does not import: the process ended with code {code}"
        return said, devices

    return finish


def _package(requirement: Requirement, extra: str, faults: Mapping[str, str]) -> Package:
    installed = _version(requirement.name)
    if installed is None:
        fault = f"not installed; needed {requirement.specifier}"
    elif not requirement.specifier.contains(installed, prereleases=True):
        fault = f"needed {requirement.specifier}"
    else:
        fault = faults.get(_module(requirement.name), UNCHECKED)
    return Package(requirement.name, str(requirement.specifier), extra, installed, fault)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _module(name: str) -> str:
    return MODULES.get(name, name.replace("-", "_"))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _own_packages() -> tuple[dict[str, str], list[str]]:
    """Folder of each of our packages; those that are not beside this file's are hidden."""
    root = Path(__file__).resolve().parent.parent
    where, hidden = {}, []
    for name in OWN:
        try:
            found = Path(str(importlib.import_module(name).__file__)).resolve().parent
        except Exception as error:  # noqa: BLE001 - whatever another package of that name raises
            where[name] = _said(error)
            hidden.append(name)
            continue
        where[name] = str(found)
        if found.parent != root:
            hidden.append(name)
    return where, hidden


def _isolation() -> tuple[str, list[str]]:
    from eval.sandbox import isolation

    try:
        found = isolation()
    except UserError as error:
        return f"none: {error}", []
    return str(found), list(found.missing)


def _memory_gb() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024 / 1e9


def _existing(path: Path) -> Path:
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)


def _advice(found: Examination) -> list[str]:
    lines = []
    for package in found.packages:
        if package.is_broken:
            lines.append(f"pip install '{package.name}{package.needed}'")
        elif package.version and package.fault not in ("", UNCHECKED):
            lines.append(f"{package.name}: {package.fault}; pip install -U 'stepwell[{package.extra}]'")
    for name in found.hidden:
        lines.append(f"another package '{name}' hides ours; run elsewhere, or clear PYTHONPATH of it")
    if found.devices == ["cpu"]:
        lines.append("no GPU: fine for the quickstart and for grading; a 1.5B model wants one")
    elif found.devices != ["unknown"] and not any(p.name == "vllm" and not p.fault for p in found.packages):
        lines.append("rollouts on a GPU are faster with vLLM: pip install 'stepwell[vllm]'")
    if not found.isolation.startswith("namespaces"):
        lines.append(
            "programs are kept in less than they could be: allow unprivileged user namespaces, or use "
            "landlock (docs/sandbox.md)"
        )
    if found.disk_gb < LEAST_DISK_GB:
        lines.append(f"less than {LEAST_DISK_GB:g} GB of disk: set output_dir to a larger one")
    if found.memory_gb is not None and found.memory_gb < LEAST_MEMORY_GB:
        lines.append(f"less than {LEAST_MEMORY_GB:g} GB of memory available: lower max_batch")
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        lines.append("HF_HUB_OFFLINE is set: models and data sets come from local folders or the cache alone")
    return lines
