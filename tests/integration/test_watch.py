"""``build_models.sh --images DIR --watch`` on a folder that changes, vanishes and returns."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reverse_image_search import layout
from reverse_image_search.gallery import Gallery
from tests.integration.test_image_folder import photo
from tests.running import REPO_ROOT, START_TIMEOUT, wait_until

# A shell's background job ignores SIGINT.
TOY_BUILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.integration import toy_build
sys.exit(toy_build.main())
"""


class Watch:
    """The command, and what it printed so far."""

    def __init__(self, folder: Path, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.log = output_dir.with_suffix(".log")
        options = ["--images", folder, "--watch", "--encoder", "grid", "--output-dir", output_dir]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", TOY_BUILD, "0", *options],
                cwd=REPO_ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TRITON_URL": "http://127.0.0.1:1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, text: str, count: int = 1, timeout: float = 45) -> None:
        """A minute's scan would find what no event told, so wait for less."""

        def is_there() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.log.read_text().count(text) >= count

        wait_until(is_there, f"{text} in {self.log}", timeout)

    def ids(self) -> dict[str, int]:
        """Id of each file's image by the file's name."""
        gallery = Gallery(layout.gallery_file(self.output_dir))
        return {gallery.paths(int(i))[0].name: int(i) for i in gallery.ids()}


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    save_photos(folder, range(3))
    return folder


def save_photos(folder: Path, seeds: range) -> None:
    for i in seeds:
        photo(i).save(folder / f"{i}.png")


@pytest.fixture
def watch(folder, tmp_path):
    watch = Watch(folder, tmp_path / "build")
    yield watch
    watch.process.kill()
    watch.process.wait()


def test_a_watched_folder_is_followed_and_may_vanish(watch, folder, tmp_path):
    watch.wait_for("Watching", timeout=START_TIMEOUT)
    first = watch.ids()
    assert len(first) == 3

    (arriving := tmp_path / "arriving").mkdir()
    save_photos(arriving, range(3, 23))
    for path in arriving.iterdir():  # a burst
        path.rename(folder / path.name)
        time.sleep(0.05)
    (folder / "0.png").rename(folder / "moved.png")
    watch.wait_for("Watching", count=2)
    assert "20 added, 0 changed, 0 removed, 1 moved" in watch.log.read_text()
    ids = watch.ids()
    assert len(ids) == 23
    assert ids["moved.png"] == first["0.png"]

    shutil.copytree(folder, elsewhere := tmp_path / "elsewhere")
    folder.rename(tmp_path / "gone")
    watch.wait_for("Waiting for images in")
    folder.mkdir()  # where its disk would be mounted
    (folder / "note.txt").write_text("not mounted")
    save_photos(elsewhere, range(23, 24))
    (folder / "note.txt").unlink()
    folder.rmdir()
    assert watch.ids() == ids
    elsewhere.rename(folder)
    watch.wait_for("1 added, 0 changed, 0 removed, 0 moved, 23 unchanged")
    watch.wait_for("Watching", count=3)
    assert watch.ids().items() > ids.items()
    assert len(watch.ids()) == 24

    watch.process.send_signal(signal.SIGINT)
    assert watch.process.wait(60) == 130
    text = watch.log.read_text()
    assert text.endswith("\nbuild_models: stopped. What was published last stays.\n")
    assert "Traceback" not in text
