"""A short run of the soak program: the long one is started by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.running import IN_CI, REPO_ROOT, Triton

MINUTES = float(os.environ.get("FAULTS_SOAK_MINUTES", "3" if IN_CI else "1"))
# Minutes are too short for a verdict on the slowest answers of a shared machine.
TOLERANCE = "0.2" if MINUTES >= 10 else "2"


def test_nothing_grows_slows_down_or_goes_wrong(victim: Triton, tally):
    row = tally(f"soak, {MINUTES:g} min at 32 clients")
    command = [sys.executable, "-m", "reverse_image_search.benchmark.soak", "--clients", "32"]
    with row.case("soak"):
        result = subprocess.run(
            [*command, "--minutes", str(MINUTES), "--p99-tolerance", TOLERANCE],
            cwd=REPO_ROOT,
            env=os.environ | victim.environment,
            capture_output=True,
            text=True,
            timeout=60 * MINUTES + 60,
        )
        print(result.stdout)
        assert result.returncode == 0, result.stdout + result.stderr
        answers = int(re.match(r"([\d,]+) answers", result.stdout)[1].replace(",", ""))
        assert answers > 1000
        p99 = re.search(r"^p99.*at the end.*$", result.stdout, re.MULTILINE)[0]
        row.note = f"{answers:,} answers; {p99}"


def test_without_a_server_it_says_so(free_port):
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "reverse_image_search.benchmark.soak", "--url", url]
    result = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, timeout=60)

    assert result.returncode == 1
    assert "start_inference_server_cpu.sh" in result.stderr
