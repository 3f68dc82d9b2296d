import os
import subprocess
import sys
from pathlib import Path

import pytest

from reverse_image_search.serving.memory import memory_limit, missing_memory, used_memory
from tests.running import is_running, memory_cgroup, wait_until

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def limit_seen_in(group: Path) -> int:
    code = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from reverse_image_search.serving.memory import memory_limit; print(memory_limit())"
    )
    command = [sys.executable, "-c", code, group / "cgroup.procs"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("gigabytes", [1, 2, 4])
def test_the_limit_of_a_container_counts(gigabytes):
    with memory_cgroup(gigabytes * 2**30) as group:
        assert limit_seen_in(group) == gigabytes * 2**30


def test_a_limit_above_the_machine_does_not_count():
    with memory_cgroup(2**45) as group:
        assert limit_seen_in(group) == min(MACHINE, memory_limit())


def test_used_memory_is_what_a_process_filled():
    code = "data = bytearray(b'x') * 10**8; print('filled', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        assert 10**8 < used_memory([process.pid]) < 2 * 10**8
    wait_until(lambda: not is_running(process.pid), "gone", timeout=10)
    assert used_memory([process.pid]) == 0


def test_addresses_without_memory_do_not_count():
    """torch reserves gigabytes of addresses that it never touches."""
    code = "import mmap; data = mmap.mmap(-1, 2**34); print('reserved', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        assert used_memory([process.pid]) < 5 * 10**7


def test_shared_memory_counts_once(tmp_path):
    file = tmp_path / "region"
    file.write_bytes(b"x" * 10**6)

    assert 10**6 <= used_memory([], [file, tmp_path / "gone"]) < 1.1 * 10**6


def test_too_little_memory_names_what_is_needed_and_found():
    assert missing_memory(1, "the server") is None
    assert missing_memory(2**50, "the server") == (
        "the server needs 1048576.0 GB of memory; "
        f"this machine or container has {memory_limit() / 2**30:.1f} GB."
    )
