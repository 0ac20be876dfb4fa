"""A control group: bounds memory and processes of everything that a program starts, taken together.

Used where this user may write to the hierarchy, which is root and delegated sessions; elsewhere the limits of
single processes stand alone.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

PARENT = Path("/sys/fs/cgroup")
MAX_TASKS = 160
"""Processes and threads in the group: a program's own bound, our processes, and room to fork."""


class Group:
    """One group (version 2) or one in each of two hierarchies (version 1), with this process in it."""

    def __init__(self, folders: dict[str, Path], memory: int) -> None:
        self.folders = [
            (os.open(folder.parent, os.O_PATH | os.O_CLOEXEC), folder.name) for folder in folders.values()
        ]
        self.outside = [
            os.open(folder.parent / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for folder in folders.values()
        ]
        """Both held open: this process's root changes too."""
        self.memory = memory
        """File descriptor of the memory limit, which stays writable after the root has changed."""
        self.current: int | None = None

    @classmethod
    def create(cls, report: dict[str, Any]) -> "Group | None":
        """Return a new group that this process is in; None, with the reason on record, where refused."""
        made: dict[str, Path] = {}
        try:
            for kind, parent in _own_groups().items():
                folder = parent / f"stepwell-{os.getpid()}"
                folder.mkdir()
                made[kind] = folder
            names = {"memory": "memory.limit_in_bytes", "": "memory.max"}
            kind = "memory" if "memory" in made else ""
            memory = os.open(made[kind] / names[kind], os.O_WRONLY | os.O_CLOEXEC)
            pids = made.get("pids", made.get(""))
            if pids:
                (pids / "pids.max").write_text(str(MAX_TASKS))
            for folder in made.values():
                (folder / "cgroup.procs").write_text(str(os.getpid()))
        except (OSError, KeyError) as error:
            for folder in made.values():
                with contextlib.suppress(OSError):
                    folder.rmdir()
            report["missing"].append(f"cgroup: {getattr(error, 'strerror', None) or 'no memory controller'}")
            return None
        report["layers"].append("cgroup")
        return cls(made, memory)

    def limit(self, megabytes: int) -> None:
        """Bound the memory of the whole group."""
        if megabytes != self.current:
            with contextlib.suppress(OSError):
                os.pwrite(self.memory, str(megabytes << 20).encode(), 0)
            self.current = megabytes

    def remove(self) -> None:
        """Leave the group and delete it."""
        for outside in self.outside:
            with contextlib.suppress(OSError):
                os.write(outside, b"0")  # the writer itself, whatever its number is called here
        for parent, name in self.folders:
            for _ in range(50):
                try:
                    os.rmdir(name, dir_fd=parent)
                    break
                except OSError:  # the last to end is counted a moment longer
                    time.sleep(0.01)


def _own_groups() -> dict[str, Path]:
    """The groups this process is in: {"memory": ..., "pids": ...} of version 1, or {"": ...} of version 2."""
    groups: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        for kind in kinds.split(","):
            if kind in ("memory", "pids"):
                groups[kind] = PARENT / kinds / path.lstrip("/")
        if not kinds:
            unified = PARENT / path.lstrip("/")
            if (unified / "memory.max").exists():
                groups[""] = unified
    if "" in groups and "memory" not in groups:
        return {"": groups[""]}
    return {kind: path for kind, path in groups.items() if kind}
