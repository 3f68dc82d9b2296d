"""Files cut short, emptied, replaced, with one bit turned, or gone: each is named, not served."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reverse_image_search.datasets.fashion_mnist import DatasetError, load_fashion_mnist
from reverse_image_search.gallery import Gallery, GalleryError
from reverse_image_search.layout import gallery_file
from reverse_image_search.serving.checksums import verify
from reverse_image_search.serving.file_system import PublishingError
from tests.running import free_ports, run_script

BUILD_COMMAND = "reverse_image_search/bin/build_models.sh"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"not what the build wrote" * 100)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: list[Callable[[Path], None]] = [cut_short, empty, foreign, flip_a_bit, Path.unlink]


def files_of(build: Path) -> list[Path]:
    return sorted(
        path.relative_to(build)
        for part in ("model_repo", "gallery")
        for path in (build / part).rglob("*")
        if path.is_file()
    )


def test_each_damaged_file_of_a_build_is_named(small_build: Path, build_copy: Path, tally):
    row = tally("damaged files of a build")
    for name in files_of(small_build):
        for damage in DAMAGES:
            with row.case(f"{name} {damage.__name__}"):
                damage(build_copy / name)
                with pytest.raises(PublishingError) as caught:
                    verify(build_copy)
                message = str(caught.value)
                if name.name != "SHA256SUMS":
                    assert str(build_copy / name) in message
                assert BUILD_COMMAND in message
            shutil.copy2(small_build / name, build_copy / name)
    verify(build_copy)


def test_a_model_that_the_build_did_not_write_is_named(build_copy: Path):
    """Triton would load it, and run what it holds."""
    stranger = build_copy / "model_repo" / "stranger" / "config.pbtxt"
    stranger.parent.mkdir()
    stranger.write_text('backend: "python"')

    with pytest.raises(PublishingError, match=f"{stranger} is not part of this build"):
        verify(build_copy)


@pytest.mark.parametrize(
    "name",
    ["model_repo/image_encoder/1/model.pt", "model_repo/vector_similarity/config.pbtxt"],
)
def test_the_start_script_refuses(build_copy: Path, name: str, tally):
    row = tally("starts with a damaged file")
    flip_a_bit(build_copy / name)
    ports = dict(
        zip(
            ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT"),
            map(str, free_ports(3)),
            strict=True,
        )
    )
    with row.case(name):
        result = run_script(
            "start_inference_server_cpu.sh",
            RUNTIME="local",
            OUTPUT_DIR=str(build_copy),
            **ports,
        )
        assert result.returncode == 1
        assert f"{build_copy / name} is damaged" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_damaged_gallery_is_named_by_the_app(build_copy: Path, tally):
    """The app opens the gallery without reading all of it: a flipped bit is for `verify`."""
    row = tally("damaged galleries, opened")
    path = gallery_file(build_copy)
    sound = path.read_bytes()
    for damage in (cut_short, empty, foreign, Path.unlink):
        with row.case(damage.__name__):
            damage(path)
            with pytest.raises(GalleryError, match=f"{path}.*{BUILD_COMMAND}"):
                Gallery(path)
        path.write_bytes(sound)
    Gallery(path)


def test_each_damaged_file_of_the_dataset_is_named(data_dir: Path, tmp_path: Path, tally):
    row = tally("damaged files of the dataset")
    folder = tmp_path / "FashionMNIST" / "raw"
    shutil.copytree(data_dir / "FashionMNIST" / "raw", folder)
    for name in sorted(path.name for path in folder.glob("*-ubyte")):
        for damage in (cut_short, empty, foreign, flip_a_bit):
            with row.case(f"{name} {damage.__name__}"):
                damage(folder / name)
                with pytest.raises(DatasetError, match=f"{folder / name} is damaged"):
                    load_fashion_mnist(tmp_path)
            shutil.copy2(data_dir / "FashionMNIST" / "raw" / name, folder / name)
