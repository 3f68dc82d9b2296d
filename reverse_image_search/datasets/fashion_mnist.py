"""Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747): 28 x 28 grayscale."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from reverse_image_search.datasets.dataset import Dataset, DatasetError, LabeledImage

if TYPE_CHECKING:  # takes over a second, for which an update of a gallery should not wait
    from torchvision.datasets import FashionMNIST

# SHA-256 of the four extracted files as Zalando published them. torchvision checks the sums of
# the compressed files only, and of those only when it downloads them itself.
_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_DOWNLOAD_TIMEOUT = 30  # seconds without a byte


def load_fashion_mnist(data_dir: Path, limit: int | None = None) -> Dataset:
    """Load Fashion-MNIST: a gallery of 60,000 training images, and 10,000 test images as queries.

    Looks for the extracted files under ``data_dir/FashionMNIST/raw``, then for the installed
    Debian package, then tries torchvision's download, then ``apt-get download``, which needs no
    root.

    Raises
    ------
    DatasetError : the dataset cannot be found or fetched, or one of its files is damaged
    """
    from torchvision.datasets import FashionMNIST

    raw = data_dir / "FashionMNIST" / "raw"
    if not _is_whole(raw):
        with _only_one_fetches(data_dir):
            if not _is_whole(raw):
                _fetch(data_dir, raw)
    for name, sha256 in _SHA256.items():
        _check(raw / name, sha256)
    return Dataset(
        "Fashion-MNIST",
        gallery=_read("train", FashionMNIST(data_dir, train=True), limit),
        queries=_read("test", FashionMNIST(data_dir, train=False)),
        class_names=list(FashionMNIST.classes),
        shows_objects_on_black=True,
    )


def _read(split: str, mnist: FashionMNIST, limit: int | None = None) -> list[LabeledImage]:
    images, labels = mnist.data[:limit].numpy(), mnist.targets[:limit].tolist()
    return [
        LabeledImage(pixels, f"Fashion-MNIST {split} #{i}", mnist.classes[label])
        for i, (pixels, label) in enumerate(zip(images, labels, strict=True))
    ]


def _is_whole(raw: Path) -> bool:
    return all((raw / name).exists() for name in _SHA256)


@contextlib.contextmanager
def _only_one_fetches(data_dir: Path) -> Iterator[None]:
    """Wait for another process that fetches into the same folder."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks; fetching says the rest
            data_dir.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((data_dir / ".fetching").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(data_dir: Path, raw: Path) -> None:
    attempts: dict[str, Callable[[], None]] = {
        f"Debian's package {_DEBIAN_PACKAGE}": lambda: _extract(_DEBIAN_FOLDER, raw),
        "torchvision's download": lambda: _download(data_dir),
        f"apt-get download {_DEBIAN_PACKAGE}": lambda: _fetch_debian_package(raw),
    }
    reasons = ""
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, RuntimeError, EOFError, subprocess.SubprocessError) as error:
            reasons += f"  {name}: {error}\n"
        else:
            print(f"Fashion-MNIST: from {name}", flush=True)
            return
    raise DatasetError(
        f"Fashion-MNIST is not in {raw} and could not be fetched:\n{reasons}"
        f"Connect this machine to the network, or install {_DEBIAN_PACKAGE} (apt-get install "
        f"{_DEBIAN_PACKAGE}), or put the four extracted files into {raw}."
    )


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DatasetError(
            f"{path} is damaged or not a Fashion-MNIST file ({path.stat().st_size} bytes, wrong "
            "SHA-256). Delete it and build again to download it."
        )


def _extract(folder: Path, raw: Path) -> None:
    """Unpack the four .gz files of `folder` into `raw`, each atomically."""
    raw.mkdir(parents=True, exist_ok=True)
    for name in _SHA256:
        part = raw / f"{name}.part"
        with gzip.open(folder / f"{name}.gz") as source, part.open("wb") as target:
            shutil.copyfileobj(source, target)
        part.replace(raw / name)


def _download(data_dir: Path) -> None:
    from torchvision.datasets import FashionMNIST

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        FashionMNIST(data_dir, download=True)
    finally:
        socket.setdefaulttimeout(before)


def _fetch_debian_package(raw: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            _run("apt-get", "download", _DEBIAN_PACKAGE, cwd=folder)
        except subprocess.CalledProcessError:
            if os.geteuid() != 0:
                raise
            _run("apt-get", "update", cwd=folder)
            _run("apt-get", "download", _DEBIAN_PACKAGE, cwd=folder)
        (package,) = Path(folder).glob("*.deb")
        _run("dpkg-deb", "-x", str(package), folder, cwd=folder)
        _extract(Path(folder) / _DEBIAN_FOLDER.relative_to("/"), raw)


def _run(*command: str, cwd: str) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=300)
