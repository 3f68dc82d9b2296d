"""How much memory this machine or container has, and how much of it processes use.

Only the standard library.
"""

import contextlib
import os
import resource
from collections.abc import Iterable
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUPS = Path("/sys/fs/cgroup")


def memory_limit() -> int:
    """Bytes that this process may use: the machine's, or fewer where its cgroup has a limit."""
    limits = [_PAGE * os.sysconf("SC_PHYS_PAGES")]
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                limits.append(int((folder / name).read_text()))
    return min(limits)


def used_memory(processes: Iterable[int], shared_files: Iterable[Path] = ()) -> int:
    """Bytes of `processes` that no file on disk holds, and of the files in shared memory."""
    used = 0
    for pid in processes:
        with contextlib.suppress(OSError):  # it ended
            resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
            used += (int(resident) - int(shared)) * _PAGE
    for file in shared_files:
        with contextlib.suppress(OSError):
            used += file.stat().st_blocks * 512
    return used


def missing_memory(needed: int, purpose: str) -> str | None:
    """Why `purpose` cannot work here, where fewer than `needed` bytes of memory are."""
    found = memory_limit()
    if found >= needed:
        return None
    return (
        f"{purpose} needs {needed / 2**30:.1f} GB of memory; "
        f"this machine or container has {found / 2**30:.1f} GB."
    )


def address_limit() -> str:
    """A sentence about the limit of `ulimit -v`, which looks like a lack of memory; or nothing."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return ""
    return f" ulimit -v limits addresses to {limit / 2**30:.1f} GB: try ulimit -v unlimited."
