"""The file tree that programs see: Python, the system's libraries, five devices and an empty /tmp, no more.

Runs in a mount namespace of its own, so nothing here is visible from outside.
"""

import os

from eval.sandbox import kernel

SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")
FILES = ("/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
SCRATCH = "/tmp"


def enter_root(folders: list[str]) -> None:
    """Replace this process's root by one that holds SYSTEM and `folders` read-only. Raises OSError."""
    sources = {folder: os.path.realpath(folder) for folder in folders}
    sources |= {real: real for real in sources.values()}
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    new = "/tmp" if os.path.isdir("/tmp") else "/mnt"
    kernel.mount("tmpfs", new, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    os.makedirs(f"{new}/old")
    os.makedirs(f"{new}/new")
    kernel.pivot_root(new, f"{new}/old")
    os.chdir("/")  # the tmpfs left `new` when it became the root: /old is the whole old tree
    kernel.mount("tmpfs", "/new", "tmpfs", kernel.MS_NOSUID, "size=1m,mode=755")
    for folder in _outermost([*SYSTEM, *sources]):
        _show(inside(folder), sources.get(folder, folder))
    for file in (*FILES, *DEVICES):
        _show(file, file, is_device=file in DEVICES)
    os.makedirs("/new/tmp", exist_ok=True)
    if not os.path.lexists("/new/dev/shm"):
        os.symlink(SCRATCH, "/new/dev/shm")
    os.makedirs("/new/gone")
    kernel.pivot_root("/new", "/new/gone")
    os.chdir("/")
    kernel.umount("/gone")
    os.rmdir("/gone")
    kernel.mount("none", "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID)


def inside(folder: str) -> str:
    """Return the name under which programs see a folder: what lies in /tmp would be behind their own /tmp."""
    return f"/outside{folder}" if folder.startswith(SCRATCH + "/") else folder


def new_scratch(megabytes: int) -> None:
    """Mount an empty folder in memory at /tmp, writable by everybody inside."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", SCRATCH, "tmpfs", flags, f"size={megabytes}m,nr_inodes=8192,mode=1777")


def _outermost(folders: list[str]) -> list[str]:
    """Drop folders that lie in another one; keep the order."""
    kept: list[str] = []
    for folder in sorted(set(folders), key=lambda name: (name.count("/"), name)):
        if not any(folder == other or folder.startswith(other.rstrip("/") + "/") for other in kept):
            kept.append(folder)
    return kept


def _show(path: str, source: str, *, is_device: bool = False) -> None:
    """Make `source` of the old tree (now at /old) appear as `path` in the new one (at /new)."""
    source, target = f"/old{source}", f"/new{path}"
    if path in SYSTEM and os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(source), target)
        return
    if not os.path.exists(source):
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o644))
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
    if not is_device:
        kernel.make_read_only(target)
