"""The way into namespaces of one's own, with a user map and a root."""

import contextlib
import os
import sys
from typing import Any

from eval.sandbox import kernel, root


class HalfInsideError(Exception):
    """The namespaces are entered and cannot be left, and what belongs to them failed."""


def enter_namespaces(
    report: dict[str, Any], folders: list[str], *, program_uid: int, scratch_mb: int
) -> bool:
    """Enter new namespaces and a new root; False, with the reason on record, where refused at the door.

    Raises HalfInsideError where it fails later.
    """
    if sys.platform != "linux":
        return False
    ready, done = os.pipe(), os.pipe()
    parent, uid, gid = os.getpid(), os.geteuid(), os.getegid()
    helper = os.fork()
    if helper == 0:  # only a process outside may map more than one user
        os.close(ready[1])
        if os.read(ready[0], 1):
            write_maps(parent, uid, gid, program_uid)
            os.write(done[1], b"1")
        os._exit(0)
    os.close(done[1])
    os.close(ready[0])
    try:
        flags = 0
        for flag in kernel.CLONE_NEW.values():
            flags |= flag
        try:
            kernel.unshare(flags)  # all or none
        except OSError as error:
            report["missing"].append(f"namespaces: {error.strerror}")
            return False
        os.write(ready[1], b"1")
        if not os.read(done[0], 1):
            raise HalfInsideError("the user map was refused")
        root.enter_root(folders)
        root.new_scratch(scratch_mb)
    except OSError as error:
        raise HalfInsideError(error.strerror) from error
    finally:
        for end in (ready[1], done[0]):
            os.close(end)
        os.waitpid(helper, 0)
    report["level"] = "namespaces"
    report["layers"] += list(kernel.CLONE_NEW)
    return True


def write_maps(pid: int, uid: int, gid: int, program_uid: int) -> None:
    """Map this user to itself, and for root a second one for the programs."""
    more = f"\n{program_uid} {program_uid} 1" if uid == 0 else ""
    with contextlib.suppress(OSError):
        if uid != 0:
            _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/uid_map", f"{uid} {uid} 1{more}")
        _write(f"/proc/{pid}/gid_map", f"{gid} {gid} 1{more}")
        return
    os._exit(1)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
