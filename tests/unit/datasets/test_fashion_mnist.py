import gzip
import os
import shutil
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from reverse_image_search.datasets import fashion_mnist as dataset
from reverse_image_search.datasets.fashion_mnist import DatasetError, load_fashion_mnist

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture
def copied_data(fashion_mnist, data_dir, tmp_path):
    """A copy of the data folder that a test may damage."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        shutil.copy(data_dir / "FashionMNIST" / "raw" / name, raw)
    return tmp_path


@pytest.fixture
def cut_off(monkeypatch, tmp_path):
    """No network, no apt, and none of Debian's files: the loader has what is on disk."""
    urllib.request.install_opener(None)  # the global one keeps the proxy of its first request
    monkeypatch.setattr(dataset, "_DEBIAN_FOLDER", tmp_path / "no Debian package")
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")  # nothing listens there
        monkeypatch.delenv(f"{scheme.upper()}_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    yield
    urllib.request.install_opener(None)


def test_it_is_fashion_mnist(fashion_mnist):
    """Facts of the paper and of Zalando's README."""
    assert fashion_mnist.name == "Fashion-MNIST"
    gallery, queries = list(fashion_mnist.gallery), list(fashion_mnist.queries)
    assert len(gallery) == 60_000
    assert len(queries) == 10_000
    assert set(Counter(image.label for image in gallery).values()) == {6_000}
    assert set(Counter(image.label for image in queries).values()) == {1_000}
    assert gallery[0].label == fashion_mnist.class_names[9] == "Ankle boot"
    assert gallery[42].source == "Fashion-MNIST train #42"
    # Light on dark: the published mean of the training pixels, and a black corner.
    pixels = np.stack([image.pixels for image in gallery])
    assert pixels.shape == (60_000, 28, 28)
    assert pixels.dtype == np.uint8
    assert pixels.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert pixels[0, 0, 0] == 0


def test_limit_keeps_the_first_training_images_and_all_queries(fashion_mnist, data_dir):
    limited = load_fashion_mnist(data_dir, limit=7)

    assert len(limited.gallery) == 7
    for image, expected in zip(limited.gallery, fashion_mnist.gallery, strict=False):
        assert np.array_equal(image.pixels, expected.pixels)
        assert image.label == expected.label
    assert len(limited.queries) == 10_000


def test_files_on_disk_need_no_network(copied_data, cut_off):
    assert len(load_fashion_mnist(copied_data).gallery) == 60_000


def test_debian_files_are_unpacked(copied_data, cut_off, monkeypatch, tmp_path, fashion_mnist):
    """Once, although three ask for them at the same time."""
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in FILES:
        content = (copied_data / "FashionMNIST" / "raw" / name).read_bytes()
        (packed / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
    monkeypatch.setattr(dataset, "_DEBIAN_FOLDER", packed)

    with ThreadPoolExecutor() as threads:
        for loaded in threads.map(load_fashion_mnist, [tmp_path / "empty"] * 3):
            pixels = loaded.queries[9_999].pixels
            assert np.array_equal(pixels, fashion_mnist.queries[9_999].pixels)
    assert sorted(p.name for p in (tmp_path / "empty/FashionMNIST/raw").iterdir()) == sorted(FILES)


def test_an_unavailable_dataset_names_every_attempt(cut_off, tmp_path):
    with pytest.raises(DatasetError) as failure:
        load_fashion_mnist(tmp_path / "empty")

    message = str(failure.value)
    for way in (
        "Debian's package dataset-fashion-mnist:",
        "torchvision's download:",
        "apt-get download dataset-fashion-mnist:",
        "put the four extracted files into",
    ):
        assert way in message


@pytest.mark.parametrize("damage", ["truncated", "one byte changed", "another file", "empty"])
def test_a_damaged_file_is_named(copied_data, cut_off, damage):
    path = copied_data / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[:-1],
            "one byte changed": content[:-1] + bytes([content[-1] ^ 1]),
            "another file": path.with_name("train-labels-idx1-ubyte").read_bytes(),
            "empty": b"",
        }[damage]
    )

    with pytest.raises(DatasetError, match=f"{path} is damaged or not a Fashion-MNIST file"):
        load_fashion_mnist(copied_data)
