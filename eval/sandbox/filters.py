"""Lists of forbidden system calls as seccomp filters (BPF), built from names.

A list and not the whole table: what numpy, threads and the C library need differs between versions, and a
program must not fail for that. Forbidden is what reaches around the other layers or widens the attackable
kernel: mounts, namespaces, tracing, keys, io_uring, BPF, System V IPC, all sockets but local ones.
"""

import ctypes
import errno
import platform
import struct

from eval.sandbox.kernel import (
    CLONE_NEW,
    CLONE_THREAD,
    NUMBERS,
    PR_SET_SECCOMP,
    prctl,
)

NOBODY = """
acct add_key adjtimex bpf clock_adjtime clock_settime delete_module fanotify_init fanotify_mark finit_module
fsconfig fsmount fsopen fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp
kexec_file_load kexec_load keyctl lookup_dcookie mbind memfd_secret migrate_pages modify_ldt mount_setattr
move_mount move_pages mq_open mq_unlink msgctl msgget msgrcv msgsnd name_to_handle_at open_by_handle_at
open_tree perf_event_open personality pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace
quotactl reboot request_key semctl semget semop semtimedop set_mempolicy setdomainname sethostname setns
settimeofday shmat shmctl shmget swapoff swapon sysfs syslog unshare uselib userfaultfd ustat vhangup
""".split()  # noqa: SIM905
"""Refused to the process that forks the programs, and so to everything below it."""

PROGRAM = "capset chroot ioprio_set mknod mknodat mount pivot_root setpriority setsid umount2".split()  # noqa: SIM905
"""Refused to programs besides; whoever forks them needs these."""

OWN = "prlimit64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler".split()  # noqa: SIM905
"""Refused to programs but for the caller itself (process number 0): else other processes of the same user are
within reach, the one that forks the programs among them."""

SIGNALS = "pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo tkill".split()  # noqa: SIM905
"""Refused besides where there is no process namespace; kill and tgkill then reach the own process only."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LOAD, _EQUAL, _SET, _NOT_BELOW, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; _ARGUMENT is the low half of the first argument (little endian)."""
_AF_UNIX = 1


def outer_filter() -> bytes:
    """Return the filter of the process that forks the programs."""
    return _build([_refuse(name) for name in NOBODY])


def program_filter(*, has_namespaces: bool, pid: int = 0) -> bytes:
    """Return the filter of a program, in force besides the outer one.

    Without namespaces it may start threads but no processes, open no socket, and signal only itself (`pid`).
    """
    rules = [_refuse(name) for name in PROGRAM]
    rules += [_refuse_unless(name, 0) for name in OWN]
    # Its flags lie in memory, out of a filter's sight; the C library then falls back to clone.
    rules.append(_refuse("clone3", errno.ENOSYS))
    if has_namespaces:
        forbidden = 0
        for flag in CLONE_NEW.values():
            forbidden |= flag
        rules += [_refuse_if_set("clone", forbidden), _refuse_unless("socket", _AF_UNIX)]
    else:
        rules += [_refuse(name) for name in (*SIGNALS, "setpgid", "fork", "vfork", "socket")]
        rules += [_refuse_unless_set("clone", CLONE_THREAD)]
        rules += [_refuse_unless(name, pid) for name in ("kill", "tgkill")]
    return _build(rules)


def install(program: bytes) -> None:
    """Put this process and all it starts under the filter; needs no_new_privs. Raises OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    mode_filter = 2
    prctl(PR_SET_SECCOMP, mode_filter, head)


def _build(rules: list[list[bytes]]) -> bytes:
    if not NUMBERS:
        raise OSError(errno.ENOSYS, f"no system call table for {platform.machine()}")
    head = [
        _step(_LOAD, _ARCH),
        _step(_EQUAL, _AUDIT_ARCH[platform.machine()], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if platform.machine() == "x86_64":  # the x32 calls have the same numbers with this bit set
        head += [_step(_NOT_BELOW, 0x40000000, 0, 1), _step(_RETURN, _ERROR | errno.ENOSYS)]
    return b"".join(head + [step for rule in rules for step in rule] + [_step(_RETURN, _ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _refuse(name: str, error: int = errno.EPERM) -> list[bytes]:
    if name not in NUMBERS:
        return []
    return [_step(_EQUAL, NUMBERS[name], 0, 1), _step(_RETURN, _ERROR | error)]


def _refuse_on(name: str, code: int, value: int, *, refuse_when: bool) -> list[bytes]:
    """Refuse the call when the test of its first argument comes out as `refuse_when`."""
    if name not in NUMBERS:
        return []
    jumps = (0, 1) if refuse_when else (1, 0)
    return [
        _step(_EQUAL, NUMBERS[name], 0, 4),
        _step(_LOAD, _ARGUMENT),
        _step(code, value, *jumps),
        _step(_RETURN, _ERROR | errno.EPERM),
        _step(_LOAD, _NUMBER),
    ]


def _refuse_if_set(name: str, bits: int) -> list[bytes]:
    return _refuse_on(name, _SET, bits, refuse_when=True)


def _refuse_unless_set(name: str, bits: int) -> list[bytes]:
    return _refuse_on(name, _SET, bits, refuse_when=False)


def _refuse_unless(name: str, value: int) -> list[bytes]:
    return _refuse_on(name, _EQUAL, value, refuse_when=False)
