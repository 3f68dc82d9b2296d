"""Publishes a tiny build and meets with an accident at its n-th change of the file system.

    python staged_build.py OUTPUT_DIR CONTENT kill|fail N

Every file that the build writes has the text CONTENT. `kill` ends the process with SIGKILL right
before change N, `fail` has the change fail as on a full disk, 0 is no accident. What changes files
is seen through Python's audit events (https://docs.python.org/3/library/audit_events.html).
"""

import errno
import os
import signal
import sys
from pathlib import Path

from reverse_image_search.serving.publishing import staging

FILES = (
    "model_repo/image_encoder/config.pbtxt",
    "model_repo/image_encoder/1/model.pt",
    "model_repo/vector_similarity/1/model.pt",
    "gallery/gallery.sqlite",
)
_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def write(folder: Path, content: str) -> None:
    """The files of a build, each with the text `content`."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def main() -> None:
    """Build, publish, and print how many changes that took."""
    output_dir, content, accident, at = sys.argv[1:]
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
    with staging(Path(output_dir)) as folder:
        write(folder, content)
    print(count)


if __name__ == "__main__":
    main()
