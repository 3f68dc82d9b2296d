"""Bring a gallery up to date whenever the files in its folders change.

The library watchfiles says when to look; what there is, a scan says. So events that nobody sends,
as for files that another machine writes to a network share, cost a minute at most.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from reverse_image_search.datasets.image_finder import Found, find_images, identify
from reverse_image_search.gallery import display_path

_QUIET = 1.0  # seconds without a change that end a burst
_LONGEST_BURST = 60  # looks, one each `_QUIET`
_PAUSE = 2.0  # seconds between two looks at whether a folder has gone or returned
_RESCAN = 60.0  # seconds between two scans without an event, and between retries


def watch_folders(folders: Sequence[Path], sync: Callable[[], int]) -> int:
    """Call `sync` when there are images in the folders, and after each burst of changes.

    It returns an exit code. If the first one is an error, that is returned; later errors are
    retried. Nothing is done while a folder is missing: its disk may return. Ends otherwise by
    KeyboardInterrupt only.
    """
    paths = [os.fsencode(os.path.realpath(folder)) for folder in folders]
    synced, status, is_first = None, "", True
    wake_ups = _wake_ups(paths)
    while True:
        next(wake_ups)
        found = find_images(paths)
        missing = [path for path in paths if path in found.unreadable or not found.files]
        if not missing and found.files != synced:
            found = _wait_for_quiet(paths, found)
            if code := sync():
                if is_first:
                    return code
            else:
                synced, status, is_first = found.files, "", False
        verb, named = ("Waiting for images in", missing) if missing else ("Watching", paths)
        if status != (status := f"{verb} {', '.join(map(display_path, named))}. Stop with Ctrl-C."):
            print(status, flush=True)


def _wait_for_quiet(paths: Sequence[bytes], found: Found) -> Found:
    """What is in the folders at the end of a burst of changes."""
    for _ in range(_LONGEST_BURST):
        time.sleep(_QUIET)
        before, found = found, find_images(paths)
        if found.files == before.files:
            break
    return found


def _wake_ups(paths: Sequence[bytes]) -> Iterator[None]:
    """Yield at once, soon after something may have changed in the folders, and once a minute.

    Where there are no events (no inotify, too many folders for it), that is every few seconds.
    """
    import watchfiles  # of requirements-watch.txt

    while True:
        yield
        watched, next_scan = [identify(path) for path in paths], 0.0
        try:
            for changes in watchfiles.watch(
                *map(os.fsdecode, paths),
                watch_filter=None,
                rust_timeout=int(1000 * _PAUSE),
                yield_on_timeout=True,
                poll_delay_ms=int(1000 * _PAUSE),
                ignore_permission_denied=True,
            ):
                # Also soon after the watch began: something may have changed before.
                if changes or time.monotonic() > next_scan:
                    yield
                    next_scan = time.monotonic() + _RESCAN
                if [identify(path) for path in paths] != watched:
                    break  # events come from a folder, not from what has its name
        except (OSError, RuntimeError, UnicodeError):
            time.sleep(_PAUSE)
