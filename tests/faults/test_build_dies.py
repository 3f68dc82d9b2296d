"""Builds that are killed, that run out of disk or may not write: what was there stays whole."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reverse_image_search import layout
from reverse_image_search.client import Client
from reverse_image_search.layout import gallery_file
from reverse_image_search.serving.checksums import verify
from reverse_image_search.serving.file_system import PublishingError
from reverse_image_search.serving.publishing import (
    finish_publishing,
    publish_index_version,
    staging,
)
from tests.faults import staged_build
from tests.faults.conftest import is_right, run_as_nobody
from tests.running import (
    BUILD_TIMEOUT,
    REPO_ROOT,
    run_script,
    script_environment,
    skip_or_fail,
    wait_until,
)

KILLS = int(os.environ.get("FAULTS_BUILD_KILLS", "6"))
SEED = int(os.environ.get("FAULTS_SEED", "7"))
BUILD = ("--limit", "300", "--epochs", "1")
CHANGES_AT_MOST = 200  # of a tiny build: far more than there are


def build_command(data_dir: Path, output_dir: Path) -> list[str]:
    command = [sys.executable, "-m", "reverse_image_search.build_models", *BUILD]
    return [*command, "--data-dir", str(data_dir), "--output-dir", str(output_dir)]


def run_build(data_dir: Path, output_dir: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        build_command(data_dir, output_dir),
        cwd=REPO_ROOT,
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT,
    )


def start_check(output_dir: Path) -> subprocess.CompletedProcess:
    """What a start script does first: finish what was half done, then verify every file."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "reverse_image_search.serving.publishing",
            output_dir,
        ],
        capture_output=True,
        text=True,
    )


def run_staged(output_dir: Path, content: str, accident: str, at: int, *what: str):
    """A tiny build in a process of its own, which meets with an accident."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.faults.staged_build",
            output_dir,
            content,
            accident,
            str(at),
            *what,
        ],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
    )


def publish(output_dir: Path, content: str) -> None:
    with staging(output_dir) as folder:
        staged_build.write(folder, content)


def published(output_dir: Path) -> str:
    """The text that all published files have, after a start: "old" or "new"."""
    finish_publishing(output_dir)
    verify(output_dir)
    texts = set(staged_build.served(output_dir).values())
    assert len(texts) == 1, f"files of two builds: {texts}"
    assert not (output_dir / ".build" / "ready").exists()
    return texts.pop()


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder in memory, where flushing costs nothing."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


@pytest.mark.parametrize("accident", ["kill", "fail"])
def test_an_accident_at_each_change_of_the_file_system(fast_folder: Path, accident, tally):
    """From the first folder made to the last one deleted, one after the other: no gap."""
    row = tally(f"publishing, {'killed' if accident == 'kill' else 'disk full'} at each change")
    outcomes = []
    for at in range(1, CHANGES_AT_MOST):
        output_dir = fast_folder / str(at)
        publish(output_dir, "old")
        result = run_staged(output_dir, "new", accident, at)
        if result.stdout and int(result.stdout) < at:
            break  # all changes were made before the accident
        with row.case(f"change {at}"):
            died = result.returncode != 0
            assert died or accident == "fail"
            outcomes.append(published(output_dir))
            if died and accident == "fail" and outcomes[-1] == "new":
                assert "The build is complete, but could not be moved" in result.stderr
            publish(output_dir, "third")
            assert published(output_dir) == "third"
            shutil.rmtree(output_dir)
    assert 20 < len(outcomes) < CHANGES_AT_MOST - 1
    assert set(outcomes) == {"old", "new"}
    if accident == "kill":  # there is one moment at which the build has happened
        assert outcomes == sorted(outcomes, key=("old", "new").index)
    row.note = f"old one served {outcomes.count('old')} times, new one {outcomes.count('new')}"


@pytest.mark.parametrize("what", ["update", "previous"])
def test_an_update_that_is_killed_at_each_change_of_the_file_system(fast_folder: Path, what, tally):
    """A server that starts before anything finished what was cut short serves one whole version."""
    row = tally(f"{what}, killed at each change")
    outcomes = []
    for at in range(1, CHANGES_AT_MOST):
        output_dir = fast_folder / str(at)
        publish(output_dir, "older")
        publish_index_version(output_dir, lambda folder: staged_build.write_update(folder, "old"))
        result = run_staged(output_dir, "new", "kill", at, what)
        if result.stdout and int(result.stdout) < at:
            break
        new = "new" if what == "update" else "older"
        with row.case(f"change {at}"):
            at_once = staged_build.served(output_dir)["vector_similarity"]
            assert at_once in ("old", new)
            finish_publishing(output_dir)
            verify(output_dir)
            outcomes.append(staged_build.served(output_dir)["vector_similarity"])
            assert outcomes[-1] in ("old", new)
            assert outcomes[-1] == new or at_once == "old", "went back to the old version"
            numbers = layout.versions(output_dir / "model_repo", "vector_similarity")
            version = publish_index_version(
                output_dir, lambda folder: staged_build.write_update(folder, "third")
            )
            assert version > max(numbers)
            verify(output_dir)
            shutil.rmtree(output_dir)
    assert 20 < len(outcomes) < CHANGES_AT_MOST - 1
    assert outcomes == sorted(outcomes, key=("old", new).index)
    row.note = f"old one served {outcomes.count('old')} times, new one {outcomes.count(new)}"


def test_a_first_build_that_dies_leaves_nothing_that_passes_for_one(fast_folder: Path, tally):
    row = tally("first build, killed at each change")
    for at in range(1, CHANGES_AT_MOST):
        output_dir = fast_folder / str(at)
        if run_staged(output_dir, "new", "kill", at).returncode == 0:
            break
        with row.case(f"change {at}"):
            finish_publishing(output_dir)
            if (output_dir / "model_repo").exists():
                assert published(output_dir) == "new"
            else:
                with pytest.raises(PublishingError, match=r"There are no models.*build_models.sh"):
                    verify(output_dir)


def test_builds_killed_at_random_moments(
    small_build: Path, build_copy: Path, start_triton, data_dir: Path, known_queries, tally
):
    """The whole build, from the first import on; a server serves the old one all along."""
    row = tally("builds killed at random moments")
    client = Client(start_triton(build_copy).url, timeout=30)
    known = client.search(known_queries)
    before = {path: path.read_bytes() for path in build_copy.rglob("*") if path.is_file()}
    scratch = build_copy.with_name("scratch")
    start = time.monotonic()
    result = run_build(data_dir, scratch)
    duration = time.monotonic() - start
    assert result.returncode == 0, result.stderr
    rng = random.Random(SEED)
    finished = 0
    for number in range(KILLS):
        moment = duration * (number + rng.random()) / KILLS
        with row.case(f"after {moment:.1f} of {duration:.1f} s"):
            with subprocess.Popen(
                build_command(data_dir, build_copy),
                cwd=REPO_ROOT,
                env=script_environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as build:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    build.wait(moment)
                build.kill()
            if build.returncode == 0:
                finished += 1
                continue
            check = start_check(build_copy)
            assert check.returncode == 0, check.stderr
            if gallery_file(build_copy).read_bytes() != before[gallery_file(build_copy)]:
                finished += 1  # published, and then killed: the server takes it over
                continue
            changed = [
                path
                for path, content in before.items()
                if ".build" not in path.parts and path.read_bytes() != content
            ]
            assert not changed
            assert is_right(client.search(known_queries), known)
    with row.case("the next build"):
        result = run_build(data_dir, build_copy)
        assert result.returncode == 0, result.stderr
        verify(build_copy)
    row.note = f"over the {duration:.0f} s of a build; {finished} were faster than the kill"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(megabytes)``: a folder on a disk of that size."""
    mounted = []
    sudo = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]

    def mount(megabytes: int) -> Path:
        folder = tmp_path / f"disk_of_{megabytes}_MB"
        folder.mkdir()
        options = f"size={megabytes}m,mode=1777"
        command = [*sudo, "mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        try:
            result = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError as error:
            skip_or_fail(str(error))
        if result.returncode != 0:
            skip_or_fail(f"a tmpfs may not be mounted here: {result.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run([*sudo, "umount", folder], check=True)


# A build of 300 images writes about 2 MB of models, then 8 MB of gallery.
@pytest.mark.parametrize("megabytes", [1, 5, 9])
def test_disk_full(small_disk, data_dir: Path, megabytes: int, tally):
    row = tally(f"disk full after {megabytes} MB")
    output_dir = small_disk(megabytes)
    publish(output_dir, "old")
    with row.case("build"):
        result = run_build(data_dir, output_dir)
        assert result.returncode == 1, result.stdout + result.stderr
        assert "Traceback" not in result.stderr, result.stderr
        assert str(output_dir) in result.stderr
        assert "Nothing was published; what was built before is unchanged." in result.stderr
        assert published(output_dir) == "old"
        assert not (output_dir / ".build" / "staging").exists()


def test_a_folder_that_may_not_be_written(data_dir: Path, small_build: Path, tally):
    """By a user who is not root: nothing changes, and what is there can be served."""
    row = tally("folder that may not be written")
    # Not below pytest's folder, which only its owner may enter.
    parent = Path(tempfile.mkdtemp())
    try:
        parent.chmod(0o755)
        build = shutil.copytree(small_build, parent / "build")
        shutil.copytree(data_dir / "FashionMNIST", parent / "data" / "FashionMNIST")
        empty = parent / "empty"
        empty.mkdir()
        for folder in (empty, build, *build.rglob("*")):
            folder.chmod(0o555 if folder.is_dir() else 0o444)
        for output_dir in (build, empty):
            with row.case(f"build into {output_dir.name}"):
                command = build_command(parent / "data", output_dir)
                result = run_as_nobody(command, cwd=REPO_ROOT, timeout=BUILD_TIMEOUT)
                assert result.returncode == 1, result.stdout + result.stderr
                assert "Traceback" not in result.stderr, result.stderr
                assert f"{output_dir}/.build" in result.stderr
                assert "Permission denied" in result.stderr
        with row.case("start"):
            check = [
                sys.executable,
                "-m",
                "reverse_image_search.serving.publishing",
                build,
            ]
            result = run_as_nobody(check)
            assert result.returncode == 0, result.stderr
    finally:
        for folder in (parent, *(path for path in parent.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        shutil.rmtree(parent)


@contextlib.contextmanager
def build_in_progress(output_dir: Path) -> Iterator[None]:
    """Another process is in the middle of a build into `output_dir`."""
    code = (
        "import sys, pathlib; from reverse_image_search.serving.publishing import staging\n"
        "with staging(pathlib.Path(sys.argv[1])): print('building', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, output_dir],
        cwd=REPO_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as builder:
        assert builder.stdout.readline() == "building\n"
        try:
            yield
        finally:
            builder.kill()


def test_two_at_once(build_copy: Path, data_dir: Path, start_triton, free_port, tmp_path, tally):
    row = tally("two builds, two servers, both at once")
    with build_in_progress(build_copy):
        with row.case("a second build"):
            result = run_build(data_dir, build_copy)
            assert result.returncode == 1
            assert f"Another build is writing to {build_copy}" in result.stderr
            assert "Traceback" not in result.stderr
        with row.case("a server started while a build writes serves the old one"):
            server = start_triton(build_copy)
            assert Client(server.url, timeout=30).is_ready()
    with row.case("a server started before the first build is done"):
        first = tmp_path / "first"
        with build_in_progress(first):
            result = run_script(
                "start_inference_server_cpu.sh", **server.environment | {"OUTPUT_DIR": str(first)}
            )
        assert result.returncode == 1
        assert f"build is writing to {first}" in result.stderr
    with row.case("a second server on the same port"):
        result = server.start()
        assert result.returncode == 1
        assert f"already runs on port {server.http_port} (process {server.pid})" in result.stderr
        assert "--stop" in result.stderr
    with row.case("a second server on the same gRPC port"):
        other = server.environment | {"TRITON_HTTP_PORT": str(free_port())}
        result = run_script("start_inference_server_cpu.sh", **other)
        assert result.returncode == 1
        assert f"port {server.grpc_port} (TRITON_GRPC_PORT) is taken" in result.stderr
    with row.case("the first still serves"):
        assert Client(server.url, timeout=30).is_ready()
    assert server.stop().returncode == 0
    with row.case("two starts at the same moment"):
        command = [REPO_ROOT / "reverse_image_search/bin/start_inference_server_cpu.sh", "--detach"]
        starts = [
            subprocess.Popen(
                command,
                env=script_environment(**server.environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(2)
        ]
        said = [start.communicate(timeout=180)[0] for start in starts]
        assert sorted(start.returncode for start in starts) == [0, 1], said
        loser = said[[start.returncode for start in starts].index(1)]
        assert "server is being started" in loser or "already runs on port" in loser, loser
        assert "starting " not in loser, loser  # the log of the winner
        wait_until(Client(server.url).is_ready, "the winner serves", 30)
