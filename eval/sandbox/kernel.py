"""The Linux calls that Python does not wrap, through ctypes. Every function raises OSError like os does."""

import ctypes
import fcntl
import os
import platform
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEW = {
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "mount": 0x00020000,
}
"""Namespaces by name, linux/sched.h."""
CLONE_THREAD = 0x00010000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 24, 36, 38

# Name, number on x86_64 and on aarch64 ("-": no such call); from asm/unistd_64.h and asm-generic/unistd.h.
_NUMBERS = """
acct 163 89, add_key 248 217, adjtimex 159 171, bpf 321 280, capset 126 91, chroot 161 51, clock_adjtime 305
266, clock_settime 227 112, clone 56 220, clone3 435 435, delete_module 176 106, fanotify_init 300 262,
fanotify_mark 301 263, finit_module 313 273, fork 57 -, fsconfig 431 431, fsmount 432 432, fsopen 430 430,
fspick 433 433, init_module 175 105, io_uring_enter 426 426, io_uring_register 427 427, io_uring_setup 425
425, ioperm 173 -, iopl 172 -, kcmp 312 272, kexec_file_load 320 294, kexec_load 246 104, keyctl 250 219, kill
62 129, landlock_add_rule 445 445, landlock_create_ruleset 444 444, landlock_restrict_self 446 446,
lookup_dcookie 212 18, mbind 237 235, memfd_secret 447 447, migrate_pages 256 238, mknod 133 -, mknodat 259
33, modify_ldt 154 -, mount 165 40, mount_setattr 442 442, move_mount 429 429, move_pages 279 239, mq_open 240
180, mq_unlink 241 181, msgctl 71 187, msgget 68 186, msgrcv 70 188, msgsnd 69 189, name_to_handle_at 303 264,
open_by_handle_at 304 265, open_tree 428 428, perf_event_open 298 241, personality 135 92, pidfd_getfd 438
438, pidfd_open 434 434, pidfd_send_signal 424 424, pivot_root 155 41, prlimit64 302 261,
ioprio_set 251 30, sched_setaffinity 203 122, sched_setattr 314 274, sched_setparam 142 118,
sched_setscheduler 144 119, setpriority 141 140, process_madvise 440 440,
process_vm_readv 310 270, process_vm_writev 311 271, ptrace 101 117, quotactl 179 60, reboot 169 142,
request_key 249 218, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, seccomp 317 277, semctl 66 191,
semget 64 190, semop 65 193, semtimedop 220 192, set_mempolicy 238 237, setdomainname 171 162, sethostname 170
161, setns 308 268, setpgid 109 154, setsid 112 157, settimeofday 164 170, shmat 30 196, shmctl 31 195, shmget
29 194, socket 41 198, swapoff 168 225, swapon 167 224, sysfs 139 -, syslog 103 116, tgkill 234 131, tkill 200
130, umount2 166 39, unshare 272 97, uselib 134 -, userfaultfd 323 282, ustat 136 -, vfork 58 -, vhangup 153
58
"""
_COLUMN = {"x86_64": 1, "aarch64": 2}.get(platform.machine())
NUMBERS: dict[str, int] = {
    parts[0]: int(parts[_COLUMN])
    for parts in (entry.split() for entry in _NUMBERS.split(","))
    if _COLUMN and parts[_COLUMN] != "-"
}
"""System call numbers of this machine by name; empty on a machine that is not in the table."""


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(name: str, *arguments: object) -> int:
    if name not in NUMBERS:
        raise OSError(38, f"{name}: no such call on this machine")
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_LIBC.syscall(ctypes.c_long(NUMBERS[name]), *words), name)


def prctl(option: int, value: object = 0, third: object = 0) -> None:
    """prctl(2). Raises OSError, as all calls here do."""
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (value, third, 0, 0)]
    _check(_LIBC.prctl(option, *words), f"prctl {option}")


def unshare(flags: int) -> None:
    """unshare(2): leave the namespaces that the flags name for new ones."""
    _check(_LIBC.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    _check(
        _LIBC.mount(*words, ctypes.c_ulong(flags), None if options is None else options.encode()),
        f"mount {target}",
    )


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _check(_LIBC.umount2(target.encode(), ctypes.c_int(flags)), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2): make a mount the root, and hang the old root below it."""
    _syscall("pivot_root", new_root.encode(), put_old.encode())


def make_read_only(target: str) -> None:
    """Make a mount and every mount below it read-only, without devices and set-user-id bits."""
    at_fdcwd, at_recursive = -100, 0x8000
    attributes = struct.pack("QQQQ", 0x1 | 0x2 | 0x4, 0, 0, 0)  # MOUNT_ATTR_RDONLY | NOSUID | NODEV
    _syscall("mount_setattr", at_fdcwd, target.encode(), at_recursive, attributes, len(attributes))


def drop_capabilities() -> None:
    """Give up every capability for good; a later exec gives none back under no_new_privs."""
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    _syscall("capset", header, bytes(24))


# --- landlock --------------------------------------------------------------------------------------------

READ_FILE, _READ_DIR, _EXECUTE = 1 << 2, 1 << 3, 1 << 0
READ = READ_FILE | _READ_DIR | _EXECUTE
READ_WRITE_FILE = READ_FILE | 1 << 1 | 1 << 14 | 1 << 15  # read, write, truncate, ioctl


def landlock_version() -> int:
    """Return the kernel's landlock ABI, 0 where it has none."""
    try:
        return _syscall("landlock_create_ruleset", 0, 0, 1)
    except OSError:
        return 0


def landlock_ruleset(version: int, rules: dict[str, int | None]) -> int:
    """Return a ruleset: `rules` gives the rights below each path (None: all), everything else is forbidden.

    So are TCP (version 4), and signals and abstract sockets to the outside (version 6). Close it after use.
    """
    if version < 1:
        raise OSError(38, "not built in")
    every = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    net = 3 if version >= 4 else 0
    scoped = 3 if version >= 6 else 0
    attributes = struct.pack("QQQ", every, net, scoped)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _syscall("landlock_create_ruleset", attributes, len(attributes), 0)
    for path, rights in rules.items():
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            allowed = every if rights is None else rights & every
            _syscall("landlock_add_rule", ruleset, 1, struct.pack("=Qi", allowed, beneath), 0)
        finally:
            os.close(beneath)
    # Above the numbers that a program's own files get: one of those would take its place.
    high = fcntl.fcntl(ruleset, fcntl.F_DUPFD_CLOEXEC, 16)
    os.close(ruleset)
    return high


def landlock_restrict(ruleset: int) -> None:
    """Bind this process and all it starts to the ruleset; needs no_new_privs."""
    _syscall("landlock_restrict_self", ruleset, 0)
