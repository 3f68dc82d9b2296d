"""Checksums of the published files, so that a damaged one is found before it is served.

`SHA256SUMS`, in the gallery, names every file; ``sha256sum --check gallery/SHA256SUMS`` checks them
by hand.

Only the standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from reverse_image_search.layout import BUILD_COMMAND, CHECKSUMS, MODEL_REPO, WORK
from reverse_image_search.serving.file_system import PublishingError, lock, write_anew


def verify(output_dir: Path) -> None:
    """Check every file of the published build against its checksum.

    Raises PublishingError when nothing is built, or a file is missing, damaged or foreign.
    """
    if not (output_dir / MODEL_REPO).exists():
        # A build that is running is a better reason than none.
        with (
            contextlib.suppress(FileNotFoundError, PermissionError),
            lock(output_dir / WORK / "build.lock", wait=False),
        ):
            pass
    with contextlib.ExitStack() as stack:
        # Where it can be locked: a read-only folder does not change either.
        with contextlib.suppress(OSError, PublishingError):
            stack.enter_context(lock(output_dir / WORK / "publish.lock", wait=True))
        _verify(output_dir)


def _verify(output_dir: Path) -> None:
    model_repo = output_dir / MODEL_REPO
    sums = read_checksums(output_dir)
    for path in model_repo.rglob("*"):
        # Triton would serve it.
        if path.is_file() and path.relative_to(output_dir).as_posix() not in sums:
            raise _damage(f"{path} is not part of this build", "Remove it, or build again")
    for name, expected in sums.items():
        path = output_dir / name
        if not path.is_file():
            raise _damage(f"{path} is missing")
        if _sha256(path) != expected:
            raise _damage(f"{path} is damaged: it is not the file that the build wrote")


def read_checksums(output_dir: Path) -> dict[str, str]:
    """Digests of the published files by name; raises PublishingError when there are none."""
    sums = output_dir / CHECKSUMS
    try:
        lines = sums.read_text().splitlines()
    except FileNotFoundError:
        if (output_dir / MODEL_REPO).exists():
            raise _damage(f"{sums} is missing") from None
        raise _damage(f"There are no models in {output_dir / MODEL_REPO}", "Build them") from None
    except UnicodeDecodeError:
        raise _damage(f"{sums} is damaged") from None
    if not lines:
        raise _damage(f"{sums} is empty")
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def checksums_of(folder: Path) -> dict[str, str]:
    """Digests of all files in `folder`, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if path != folder / CHECKSUMS]
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def write_checksums(folder: Path, sums: dict[str, str]) -> None:
    """Write digests by name, for `verify`."""
    lines = (f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    write_anew(folder / CHECKSUMS, "".join(lines))


def _damage(reason: str, remedy: str = "Build again") -> PublishingError:
    return PublishingError(f"{reason}. {remedy} with {BUILD_COMMAND}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
