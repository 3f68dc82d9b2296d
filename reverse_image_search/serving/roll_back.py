"""Go back to what was served before, and wait for the running server to do so.

    python3 -m reverse_image_search.serving.roll_back OUTPUT_DIR URL

Only the standard library.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reverse_image_search import layout
from reverse_image_search.contract import VECTOR_SIMILARITY
from reverse_image_search.layout import MODEL_REPO, PARTS
from reverse_image_search.serving.checksums import verify
from reverse_image_search.serving.file_system import PublishingError, link_tree
from reverse_image_search.serving.live import NotServedError, wait_until_served
from reverse_image_search.serving.publishing import finish_publishing, staging, staging_update

_NO_SERVER = 4  # exit code


def roll_back(output_dir: Path) -> None:
    """Serve what was served before: the index's version before, or else the build before.

    It becomes the newest version; rolling back again returns to where this started.

    Raises PublishingError when there is no earlier version, or it is damaged.
    """
    finish_publishing(output_dir)
    verify(output_dir)
    model_repo, index = output_dir / MODEL_REPO, VECTOR_SIMILARITY.name
    older = [
        version
        for version in layout.versions(model_repo, index)
        if version != layout.served_version(model_repo, index)
    ]
    previous = layout.previous_build(output_dir)
    if older:
        with staging_update(output_dir) as folder:
            target = layout.version_folder(folder / MODEL_REPO, index)
            link_tree(layout.version_folder(model_repo, index, older[-1]), target)
    elif previous.exists():
        verify(previous)
        with staging(output_dir) as folder:
            for part in PARTS:
                if (previous / part).exists():
                    link_tree(previous / part, folder / part)
    else:
        raise PublishingError(f"There is no earlier version in {output_dir}")


def main() -> int | str:
    """Roll back, and wait for the server that runs; `_NO_SERVER` where none does."""
    output_dir, url = Path(sys.argv[1]), sys.argv[2]
    try:
        roll_back(output_dir)
        version = layout.served_version(output_dir / MODEL_REPO, VECTOR_SIMILARITY.name)
        print(f"Went back to what was served before, as version {version}.", flush=True)
        seconds = wait_until_served(output_dir, url)
    except (PublishingError, NotServedError) as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    if seconds is None:
        return _NO_SERVER
    print(f"The server at {url} took it over within {seconds:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
