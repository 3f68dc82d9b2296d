"""How much memory this machine or container has, and how much of it processes use.

Only the standard library.
"""

import os
from collections.abc import Iterable
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUPS = Path("/sys/fs/cgroup")


def memory_limit() -> int:
    """Bytes that this process may use: the machine's, or fewer where its cgroup has a limit."""
    limits = [_PAGE * os.sysconf("SC_PHYS_PAGES")]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # no such file, or "max"
                continue
    return min(limits)


def used_memory(processes: Iterable[int], shared_files: Iterable[Path] = ()) -> int:
    """Bytes of `processes` that no file on disk holds, and of the files in shared memory."""
    used = 0
    for pid in processes:
        try:
            resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
        except OSError:  # it ended
            continue
        used += (int(resident) - int(shared)) * _PAGE
    for file in shared_files:
        try:
            used += file.stat().st_blocks * 512
        except OSError:
            continue
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
