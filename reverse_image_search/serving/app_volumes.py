"""Let the app's container see the folders that the images of a gallery are in, read-only.

    python3 -m reverse_image_search.serving.app_volumes OUTPUT_DIR

Writes a file for Compose, to be read after docker-compose.yml, and prints its path; prints nothing
if no image comes from a file. Folders that cannot be mounted are listed on standard error.

Only the standard library.
"""

import json
import os
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from reverse_image_search import layout

_FILE = f"{layout.WORK}/app_volumes.json"  # of an output folder
_APP_SERVICES = ("app", "app-gpu", "app-on-host")
# What the container has of its own: a folder above one of these would hide it.
_OF_THE_CONTAINER = (
    "/bin", "/dev", "/etc", "/lib", "/opt/reverse_image_search", "/output", "/proc", "/run", "/sys",
    "/tmp", "/usr/bin", "/usr/lib", "/usr/local", "/var",
)  # fmt: skip


def main(output_dir: Path) -> None:
    """Write the file of the gallery in an output folder, or remove an old one."""
    folders = []
    gallery = layout.gallery_file(output_dir)
    try:
        candidates = image_folders(gallery)
    except sqlite3.Error as error:  # the page says what is to be done about it
        print(f"The app shows no originals: {gallery} cannot be read ({error}).", file=sys.stderr)
        candidates = []
    for folder in candidates:
        if problem := why_not_mounted(folder):
            name = os.fsencode(folder).decode(errors="backslashreplace")
            print(f"The app shows no originals from {name!r}: {problem}.", file=sys.stderr)
        else:
            folders.append(folder)
    file = output_dir / _FILE
    if folders:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(compose_file(folders), indent=1))
        print(file)
    else:
        file.unlink(missing_ok=True)


def image_folders(gallery: Path) -> list[str]:
    """The folders that a gallery's files are in, none of them inside another.

    Those that the build was told to search, and the folders of files that were added by name.
    """
    with closing(sqlite3.connect(f"{gallery.resolve().as_uri()}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT value FROM metadata WHERE key = 'build_options'")
        folders = [folder for (value,) in rows for folder in json.loads(value).get("folders") or []]
        files = [os.fsdecode(path) for (path,) in database.execute("SELECT path FROM files")]
    named = tuple(map(_as_prefix, folders))
    added = {os.path.dirname(path) for path in files if not path.startswith(named)}
    return outermost([*folders, *added])


def outermost(folders: Iterable[str]) -> list[str]:
    """Folders that are inside no other, in alphabetical order."""
    found: list[str] = []
    for folder in sorted(set(folders), key=_as_prefix):
        if not (found and folder.startswith(_as_prefix(found[-1]))):
            found.append(folder)
    return found


def why_not_mounted(folder: str) -> str:
    """Why a folder cannot be at the same path in the app's container; empty if it can."""
    if not os.path.isdir(folder):
        return "it is not there"
    if ":" in folder:
        return "Docker cannot mount a folder with a colon in its name"
    if os.fsencode(folder).decode(errors="replace") != folder:
        return "Docker cannot mount a folder whose name is not UTF-8"
    if any(each.startswith(_as_prefix(folder)) or each == folder for each in _OF_THE_CONTAINER):
        return "the app's container has files of its own there"
    if folder.startswith("/output/"):
        return "the app's container has the models and the gallery there"
    return ""


def compose_file(folders: Iterable[str]) -> dict:
    """What Compose adds to the services of docker-compose.yml."""
    volumes = []
    for folder in folders:
        path = folder.replace("$", "$$")  # else Compose takes it for a variable
        volumes.append({"type": "bind", "source": path, "target": path, "read_only": True})
    return {"services": {service: {"volumes": volumes} for service in _APP_SERVICES}}


def _as_prefix(folder: str) -> str:
    return os.path.join(folder, "")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
