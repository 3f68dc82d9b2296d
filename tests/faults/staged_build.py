"""Publishes a tiny build and meets with an accident at its n-th change of the file system.

    python staged_build.py OUTPUT_DIR CONTENT kill|fail N [update | previous]

Every file that the build writes has the text CONTENT. `update` publishes a version of the index
instead, and a gallery; `previous` rolls back. `kill` ends the process with SIGKILL right
before change N, `fail` has the change fail as on a full disk, 0 is no accident. What changes files
is seen through Python's audit events (https://docs.python.org/3/library/audit_events.html).
"""

import errno
import os
import signal
import sys
from pathlib import Path

from reverse_image_search import layout
from reverse_image_search.contract import IMAGE_ENCODER, MODELS, VECTOR_SIMILARITY
from reverse_image_search.serving.publishing import publish_index_version, staging
from reverse_image_search.serving.roll_back import roll_back

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
_CHANGES |= {"os.link", "os.utime"}


def write(folder: Path, content: str) -> None:
    """The files of a build, each with the text `content`."""
    for model in MODELS:
        config = layout.config_file(folder / layout.MODEL_REPO, model.name)
        config.parent.mkdir(parents=True)
        config.write_text(f"{layout.version_policy(layout.FIRST_VERSION)}\n# {content}")
    _write(layout.model_file(folder / layout.MODEL_REPO, IMAGE_ENCODER.name), content)
    write_update(folder, content)


def write_update(folder: Path, content: str) -> None:
    """The files of an update, each with the text `content`."""
    _write(layout.model_file(folder / layout.MODEL_REPO, VECTOR_SIMILARITY.name), content)
    _write(layout.gallery_file(folder), content)


def served(output_dir: Path) -> dict[str, str]:
    """The texts that a server and the app would read."""
    repository = output_dir / layout.MODEL_REPO
    configs = {f"config of {m.name}": layout.config_file(repository, m.name) for m in MODELS}
    models = {m.name: layout.model_file(repository, m.name) for m in MODELS}
    files = configs | models | {"gallery": layout.gallery_file(output_dir)}
    return {name: path.read_text().split("# ")[-1] for name, path in files.items()}


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def main() -> None:
    """Build, publish, and print how many changes that took."""
    output_dir, content, accident, at, *what = sys.argv[1:]
    count = 0

    def on_event(event: str, arguments: tuple) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        if not (writes or event in _CHANGES):
            return
        count += 1
        if count == int(at):
            if accident == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(on_event)
    if what == ["update"]:
        publish_index_version(Path(output_dir), lambda folder: write_update(folder, content))
    elif what == ["previous"]:
        roll_back(Path(output_dir))
    else:
        with staging(Path(output_dir)) as folder:
            write(folder, content)
    print(count)


if __name__ == "__main__":
    main()
