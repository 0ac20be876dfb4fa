"""What the sandbox says about a program, and what kept it in."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["namespaces", "landlock", "unsandboxed"]


@dataclass(frozen=True, slots=True)
class Isolation:
    """What stands between a program and this machine."""

    level: Level
    """namespaces: an own file tree, no network, no other process in sight. landlock: the machine's own tree,
    most of it forbidden, and a list of forbidden system calls. unsandboxed: resource limits alone."""
    layers: tuple[str, ...] = ()
    """Mechanisms in force, e.g. ("user", "pid", "net", "ipc", "uts", "mount", "seccomp", "landlock")."""
    missing: tuple[str, ...] = ()
    """Mechanisms that this machine refused, each with the system's reason."""

    def __str__(self) -> str:
        return self.level if not self.layers else f"{self.level} ({', '.join(self.layers)})"


@dataclass(frozen=True, slots=True)
class CodeVerdict:
    """What running a program against its tests gave.

    passed: every test held. failed: a test did not hold. timeout: the time was up. error: the program does
    not compile, lacks its entry point, raised, or died; or, where `is_fault`, nobody can tell.
    """

    status: Literal["passed", "failed", "timeout", "error"]
    reason: str = ""
    seconds: float = 0.0
    """Wall clock, from the request to the end of everything the program started."""
    isolation: str = "unsandboxed"
    """What kept the program in, as `str(Isolation)`."""
    num_passed: int = 0
    """Calls, cases or asserts that held; of all where the request counts them, else of those before the first
    that did not."""
    is_fault: bool = False
    """True when the verdict is about the sandbox or the test, not about the program. The reason cannot tell:
    a program chooses the name of what it raises."""
