"""What this process may use and has used."""

import os
import resource
import sys

_STATUS, _RESET = "/proc/self/status", "/proc/self/clear_refs"
_highest = 0.0


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MiB; it never falls."""
    global _highest
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts KiB, macOS bytes
    _highest = max(_highest, peak / (1024 if sys.platform != "darwin" else 1024**2))
    return _highest


def take_peak_rss_mb() -> float:
    """Peak resident memory in MiB since the last call, or since the start of the process.

    Where the system does not reset its record (it is Linux that can): what is resident now, or, without
    /proc, the peak of the whole process.
    """
    global _highest
    whole = peak_rss_mb()  # before the record is reset
    try:
        with open(_STATUS, encoding="ascii") as file:
            status = dict(line.split(":", 1) for line in file)
        since, now = (float(status[key].split()[0]) / 1024 for key in ("VmHWM", "VmRSS"))
    except (OSError, KeyError):
        return whole
    _highest = max(_highest, since)
    try:
        with open(_RESET, "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return now
    return since


def cpu_count() -> int:
    """Cores this process may run on, where the system tells; else the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
