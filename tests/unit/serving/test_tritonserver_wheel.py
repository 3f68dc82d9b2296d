import os
import platform
import stat
import sys
import tempfile

import pytest

from reverse_image_search.serving import tritonserver_wheel
from reverse_image_search.serving.supervisor import LocalServerError
from reverse_image_search.serving.tritonserver_wheel import (
    check_platform,
    lay_out_backends,
    state_folder,
)


@pytest.mark.parametrize(
    ("function", "answer", "message"),
    [
        ("system", "Darwin", "needs Linux on x86_64, this is Darwin on x86_64"),
        ("machine", "aarch64", "needs Linux on x86_64, this is Linux on aarch64"),
        ("libc_ver", ("glibc", "2.31"), "glibc 2.35 or newer, this is glibc 2.31"),
        ("libc_ver", ("", ""), "glibc 2.35 or newer, this is another libc"),
    ],
)
def test_unsupported_platforms_are_sent_to_docker(monkeypatch, function, answer, message):
    monkeypatch.setattr(platform, function, lambda: answer)

    with pytest.raises(LocalServerError, match=f"{message}.*\\s+Install Docker"):
        check_platform()


def test_glibc_is_compared_by_number_not_by_letters(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.100"))
    check_platform()


@pytest.fixture
def wheel(tmp_path):
    """An installed wheel with the files that the backends are made of."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    tritonserver = tmp_path / "wheel" / "pytriton" / "tritonserver"
    for name in (
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        f"python_backend_stubs/{version}/triton_python_backend_stub",
    ):
        (tritonserver / name).parent.mkdir(parents=True, exist_ok=True)
        (tritonserver / name).write_text(name)
    return tmp_path / "wheel"


@pytest.fixture
def backends(wheel, tmp_path, monkeypatch):
    """``backends()`` lays them out in a repository of the test's own; {name: text} of the files."""
    monkeypatch.setattr(tritonserver_wheel, "REPOSITORY_ROOT", tmp_path / "clone")
    (tmp_path / "clone").mkdir()

    def lay_out() -> dict:
        folder = lay_out_backends(wheel)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path for path in files}

    return lay_out


def test_backends_are_copied_once_and_again_when_they_change(wheel, backends):
    first = backends()
    assert sorted(first) == [
        "python/libtriton_python.so",
        "python/triton_python_backend_stub",
        "python/triton_python_backend_utils.py",
        "pytorch/model.py",
    ]
    inodes = {name: path.stat().st_ino for name, path in first.items()}
    assert {name: path.stat().st_ino for name, path in backends().items()} == inodes

    name = "python/libtriton_python.so"
    first[name].write_text("damaged")
    assert backends()[name].read_text() == f"backends/{name}"


def test_a_python_without_a_backend_names_those_that_have_one(wheel, backends):
    stubs = wheel / "pytriton" / "tritonserver" / "python_backend_stubs"
    next(stubs.iterdir()).rename(stubs / "3.7")

    with pytest.raises(LocalServerError, match=r"no backend for Python 3\.\d+, only for 3\.7\."):
        backends()


def test_a_user_who_may_not_write_gets_a_folder_of_his_own(tmp_path, monkeypatch):
    """Kubernetes runs containers under any user id, on a code folder that belongs to another."""
    monkeypatch.setattr(tritonserver_wheel, "REPOSITORY_ROOT", tmp_path / "clone")
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    folder = state_folder()

    assert folder == tmp_path / f"reverse_image_search-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert state_folder() == folder


def test_a_temporary_folder_of_another_user_is_not_used(tmp_path, monkeypatch):
    """Anyone may make that folder in /tmp first, and put programs into it."""
    monkeypatch.setattr(tritonserver_wheel, "REPOSITORY_ROOT", tmp_path / "clone")
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"reverse_image_search-{os.getuid()}").symlink_to("elsewhere")

    with pytest.raises(LocalServerError, match=r"belongs to another user. Remove it"):
        state_folder()
