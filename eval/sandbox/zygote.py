"""The process that forks programs: warm, confined, and never told a test.

    python -c "...; from eval.sandbox.zygote import main; main()" CHANNEL CONFIG

CHANNEL is the number of a socket; CONFIG is JSON: {"level": the strongest to try, "folders": [readable],
"path": [folders of installed packages]}. The first frame out is {"level", "layers", "missing"}; a further
"restart" names a weaker level: the one tried failed when it could no longer be left, so a new process has to
begin there, and this one ends. Else, in turn:

    in   {"op": "start", "mode": "session" | "script", "memory_mb", "cpu_s"} with file descriptors:
         the program's channel, and for a script its standard input and output. No reply.
    in   {"op": "end"}: kill everything that was started
    out  {"ended": [exit code of each program in the order of starting, negative for a signal],
          "cpu_s", "max_mb"}

It ends, with everything it started, when the channel closes.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from eval.sandbox import candidate, cgroups, filters, kernel, namespaces, root, wire

PROGRAM_UID = 65534
"""nobody: what programs run as where this process may choose."""
MAX_PROCESSES = 64
"""Processes and threads of one program, where the system counts them."""
SCRATCH_MB = 64
"""Room in the program's temporary folder."""
MAX_FILE_BYTES = 64 << 20
STACK_BYTES = 100 << 20
BASE_MB = 96
"""Address space of the bare interpreter, added to what a program is allowed."""
TRIAL_SECONDS = 20.0
WARM = """
abc array base64 binascii bisect calendar cmath collections collections.abc contextlib copy csv dataclasses
datetime decimal enum fractions functools hashlib heapq io itertools json math numbers operator os pathlib
queue random re shutil statistics string struct subprocess sys tempfile textwrap threading time traceback
types typing unicodedata zlib encodings.idna encodings.latin_1 encodings.ascii
""".split()  # noqa: SIM905
"""What programs import most, imported once."""


def main() -> None:
    """Isolate this process, report what holds, start programs until the judge is gone.

    Arguments: socket, settings.
    """
    channel = socket.socket(fileno=int(sys.argv[1]))
    config = json.loads(sys.argv[2])
    sys.path[:] = [*sys.path[1:], *config["path"]]  # the first is the one that led to this file
    sys.executable = os.path.realpath(sys.executable)  # a virtual environment's bin/ is not shown
    for name in WARM:
        importlib.import_module(name)
    report: dict[str, Any] = {"level": "unsandboxed", "layers": [], "missing": []}
    group = cgroups.Group.create(report)
    try:
        has_namespaces = config["level"] == "namespaces" and namespaces.enter_namespaces(
            report, config["folders"], program_uid=PROGRAM_UID, scratch_mb=SCRATCH_MB
        )
        # The first process of the new process namespace: all others die with it.
        pid = os.fork() if has_namespaces else 0
    except (namespaces.HalfInsideError, OSError) as error:
        report["missing"].append(f"namespaces: {error}")
        report["restart"] = WEAKER["namespaces"]
        wire.send(channel, json.dumps(report).encode())
        if group:
            group.remove()
        os._exit(0)
    if has_namespaces:
        if pid:
            channel.close()
            os.waitpid(pid, 0)
            if group:
                group.remove()
            os._exit(0)
        sys.path[:] = map(root.inside, sys.path)
        config["folders"] = [root.inside(folder) for folder in config["folders"]]
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what has no handler, programs cannot send us here
    server = Server(channel, report, group, has_namespaces=has_namespaces, level=config["level"])
    server.confine(config["folders"])
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page it marks
    try:
        with contextlib.suppress(wire.Closed):
            refusal = server.try_program()
            if refusal:
                tried = "namespaces" if has_namespaces else config["level"]
                report["missing"].append(f"{tried}: {refusal}")
                report["restart"] = WEAKER[tried]  # no weaker one: the client hears that there is no sandbox
            wire.send(channel, json.dumps(report).encode())
            if not refusal:
                server.serve()
    finally:
        server.end()
        server.leave()


WEAKER = {"namespaces": "landlock", "landlock": "unsandboxed"}


class Server:
    """What the process keeps between programs."""

    def __init__(
        self,
        channel: socket.socket,
        report: dict[str, Any],
        group: "cgroups.Group | None",
        *,
        has_namespaces: bool,
        level: str,
    ) -> None:
        self.channel = channel
        self.report = report
        self.group = group
        self.has_namespaces = has_namespaces
        self.level = level
        self.pids: list[int] = []
        self.ended: dict[int, int] = {}
        self.folders: list[str] = []
        self.ruleset: int | None = None
        self.has_seccomp = False
        self.scratch = root.SCRATCH if has_namespaces else tempfile.mkdtemp(prefix=f"stepwell-{os.getpid()}-")
        self.spent = 0.0

    def confine(self, folders: list[str]) -> None:
        """Put this process under the layers that programs inherit, and prepare theirs."""
        layers, missing = self.report["layers"], self.report["missing"]
        null = os.open(os.devnull, os.O_RDWR)
        for target in (0, 1, 2) if "STEPWELL_SANDBOX_DEBUG" not in os.environ else (0, 1):
            os.dup2(null, target)
        os.close(null)
        if sys.platform == "linux":
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        if sys.platform == "linux" and self.level != "unsandboxed":
            kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
            kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
            self.folders = folders
            try:
                self._make_ruleset()
                layers.append(f"landlock {kernel.landlock_version()}")
            except OSError as error:
                missing.append(f"landlock: {error.strerror}")
            try:
                self.inner = None if not self.has_namespaces else filters.program_filter(has_namespaces=True)
                filters.install(filters.outer_filter())
                self.has_seccomp = True
                layers.append("seccomp")
            except OSError as error:
                missing.append(f"seccomp: {error.strerror}")
            if not self.has_namespaces and self.ruleset is not None and self.has_seccomp:
                self.report["level"] = "landlock"
        os.environ.update({"HOME": self.scratch, "TMPDIR": self.scratch})
        tempfile.tempdir = None
        os.umask(0o077)
        # Without a process namespace the count is of all this user's processes; the filter refuses forks.
        _limit(LIMITS if self.has_namespaces else LIMITS[:-1])
        layers.append("rlimits")

    def _make_ruleset(self) -> None:
        """Prepare what programs may touch. A rule holds for a folder, not for its name: make it anew too."""
        if self.ruleset is not None:
            os.close(self.ruleset)
        rules = self._rules()
        self.ruleset = None
        self.ruleset = kernel.landlock_ruleset(kernel.landlock_version(), rules)

    def _rules(self) -> dict[str, int | None]:
        readable = dict.fromkeys((*root.SYSTEM, *self.folders), kernel.READ)
        readable |= dict.fromkeys(root.FILES, kernel.READ_FILE)
        writable: dict[str, int | None] = {self.scratch: None}
        devices = dict.fromkeys(root.DEVICES, kernel.READ_WRITE_FILE)
        return {path: r for path, r in (readable | writable | devices).items() if os.path.exists(path)}

    def try_program(self) -> str:
        """Start a program that does nothing; return why it did not start and end as it should, or nothing.

        What is refused only after the fork would otherwise be every program's error.
        """
        mine, theirs = socket.socketpair()
        with mine:
            try:
                self.start({"mode": "session", "memory_mb": 256, "cpu_s": 5}, [theirs.detach()])
            except OSError as error:
                return f"no process can be started: {error.strerror}"
            mine.shutdown(socket.SHUT_WR)  # it ends
            mine.settimeout(TRIAL_SECONDS)
            with contextlib.suppress(OSError):
                mine.recv(1)
            code = self.end()["ended"][0]
        return f"a process for a program ended with {code} on its way in" if code else ""

    def serve(self) -> None:
        """Obey until the channel closes."""
        while True:
            payload, descriptors = _receive_with_descriptors(self.channel)
            request = json.loads(payload)
            if request["op"] == "start":
                self.start(request, descriptors)
            else:
                wire.send(self.channel, json.dumps(self.end()).encode())

    def start(self, request: dict[str, Any], descriptors: list[int]) -> None:
        if self.group:
            self.group.limit(request["memory_mb"] + BASE_MB)
        pid = os.fork()
        if pid == 0:
            try:
                self._become_program(request, descriptors)
            except BaseException as error:  # noqa: BLE001 - nobody else would ever hear of it
                if "STEPWELL_SANDBOX_DEBUG" in os.environ and sys.__stderr__:
                    sys.__stderr__.write(f"{type(error).__name__}: {error}\n")
                    sys.__stderr__.flush()
            finally:
                os._exit(111)
        self.pids.append(pid)
        for descriptor in descriptors:
            os.close(descriptor)

    def _become_program(self, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
        # Short on purpose: every page that a fork writes to is copied, and that is most of a program's cost.
        for target, descriptor in enumerate(descriptors[1:]):
            os.dup2(descriptor, target)
        os.dup2(descriptors[0], 3)
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=3)
        ruleset = self.ruleset
        if ruleset is not None:
            os.dup2(ruleset, 4)
        os.closerange(5, 256)
        self.channel.detach()
        os.setsid()
        os.chdir(self.scratch)
        limits = ((resource.RLIMIT_AS, (request["memory_mb"] + BASE_MB) << 20),)
        _limit((*limits, (resource.RLIMIT_CPU, request["cpu_s"])))
        if self.has_namespaces and os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(PROGRAM_UID, PROGRAM_UID, PROGRAM_UID)
            os.setresuid(PROGRAM_UID, PROGRAM_UID, PROGRAM_UID)  # and with it every capability is gone
        elif sys.platform == "linux" and self.level != "unsandboxed":
            kernel.drop_capabilities()
        if self.level != "unsandboxed" and sys.platform == "linux":
            if not self.has_namespaces:  # there, all die with the first process
                kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            if ruleset is not None:
                kernel.landlock_restrict(4)
                os.close(4)
            if self.has_seccomp:
                inner = self.inner or filters.program_filter(has_namespaces=False, pid=os.getpid())
                filters.install(inner)
        if request["mode"] == "script":
            candidate.run_script(channel)
        candidate.run_session(channel)

    def end(self) -> dict[str, Any]:
        """Kill and reap everything that was started, empty the scratch folder, say how each program ended."""
        if self.has_namespaces:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        while True:
            if not self.has_namespaces:
                for pid in self.pids:
                    _kill(os.killpg, pid)
                for pid in (*self.pids, *_children()):
                    _kill(os.kill, pid)
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                break
            self.ended[pid] = os.waitstatus_to_exitcode(status)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = usage.ru_utime + usage.ru_stime
        report = {
            "ended": [self.ended.get(pid, -9) for pid in self.pids],
            "cpu_s": round(spent - self.spent, 6),
            "max_mb": usage.ru_maxrss >> 10,
        }
        self.spent = spent
        self.pids.clear()
        self.ended.clear()
        self._empty_scratch()
        return report

    def leave(self) -> None:
        """Remove what would outlive the namespaces, or without them this process."""
        if not self.has_namespaces:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if self.group:
                self.group.remove()

    def _empty_scratch(self) -> None:
        if not os.listdir(self.scratch):
            return
        if self.has_namespaces:
            kernel.umount(self.scratch)
            root.new_scratch(SCRATCH_MB)
        else:
            shutil.rmtree(self.scratch, ignore_errors=True)
            os.makedirs(self.scratch, exist_ok=True)
        if self.ruleset is not None:
            self._make_ruleset()


def _kill(how: Callable[[int, int], None], pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        how(pid, signal.SIGKILL)


def _children() -> list[int]:
    """This process's children, with those whose own parent has died: Linux gives them to us."""
    try:
        return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


LIMITS = (
    (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_NOFILE, 256),
    (resource.RLIMIT_STACK, STACK_BYTES),
    (resource.RLIMIT_NPROC, MAX_PROCESSES),
)
"""The same for every program, so this process takes them on for all."""


def _limit(limits: Iterable[tuple[int, int]]) -> None:
    for which, wanted in limits:
        hard = resource.getrlimit(which)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(which, (value, value))


def _receive_with_descriptors(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return one frame and the file descriptors that came with it. Raises Closed."""
    head, descriptors, _, _ = socket.recv_fds(channel, 4, 4)
    if not head:
        raise wire.Closed
    head += wire.exactly(channel, 4 - len(head), None) if len(head) < 4 else b""
    return wire.exactly(channel, int.from_bytes(head, "big"), None), descriptors
