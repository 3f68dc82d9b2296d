"""What builds do, also on failure; whole builds: the `small_build` fixture."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reverse_image_search import build_models, layout
from reverse_image_search.datasets import (
    DATASETS,
    Dataset,
    DatasetError,
    DatasetOptions,
    LabeledImage,
)
from reverse_image_search.encoders import ENCODERS
from reverse_image_search.gallery import Gallery
from reverse_image_search.serving import memory
from reverse_image_search.serving.export import load_torchscript

NAMES = ["dark", "light"]


def tiny_dataset(options: DatasetOptions) -> Dataset:
    """300 images of two classes that differ in brightness, and 64 queries."""
    generator = np.random.default_rng(0)

    def images(split: str, count: int) -> list[LabeledImage]:
        noise = generator.integers(0, 100, (count, 28, 28), np.uint8)
        return [
            LabeledImage(pixels + np.uint8(150 * (i % 2)), f"{split} #{i}", NAMES[i % 2])
            for i, pixels in enumerate(noise)
        ]

    return Dataset("tiny", images("gallery", 300)[: options.limit], images("query", 64), NAMES)


@pytest.fixture
def build(monkeypatch, tmp_path):
    """``build(*arguments)``: build the tiny dataset into `tmp_path`; the exit code."""
    spec = replace(DATASETS["fashion_mnist"], load=tiny_dataset)
    monkeypatch.setitem(DATASETS, "fashion_mnist", spec)
    return lambda *arguments: build_models.main(
        ["--output-dir", str(tmp_path), "--limit", "300", "--epochs", "1", *arguments]
    )


def files(folder: Path) -> dict[str, bytes]:
    """Content of every file below `folder`, without the build's own folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".build" not in path.parts
    }


def test_model_repository_holds_exactly_the_four_files(small_build):
    found = sorted(
        path.relative_to(small_build).as_posix()
        for path in (small_build / "model_repo").rglob("*")
        if path.is_file()
    )

    assert found == [
        "model_repo/image_encoder/1/model.pt",
        "model_repo/image_encoder/config.pbtxt",
        "model_repo/vector_similarity/1/model.pt",
        "model_repo/vector_similarity/config.pbtxt",
    ]


@pytest.mark.parametrize(
    "failure",
    [KeyboardInterrupt(), OSError(28, "No space left on device", "model.pt")],
    ids=["Ctrl-C", "disk full"],
)
def test_a_failed_build_says_so_and_leaves_the_old_one(
    build, tmp_path, monkeypatch, capsys, failure
):
    assert build() == 0
    before = files(tmp_path)

    def fail(*_arguments):
        raise failure

    monkeypatch.setitem(ENCODERS, "fashion", replace(ENCODERS["fashion"], make=fail))

    assert build("--seed", "1") == (130 if isinstance(failure, KeyboardInterrupt) else 1)
    error = capsys.readouterr().err
    assert "what was built before is unchanged" in error
    assert "Traceback" not in error
    assert files(tmp_path) == before


def test_missing_dataset_is_one_message(tmp_path, monkeypatch, capsys):
    def fail(*_arguments):
        raise DatasetError("Fashion-MNIST is not there")

    spec = replace(DATASETS["fashion_mnist"], load=fail)
    monkeypatch.setitem(DATASETS, "fashion_mnist", spec)

    assert build_models.main(["--output-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("build_models: Fashion-MNIST is not there")
    assert "Traceback" not in error
    assert files(tmp_path) == {}


def test_an_encoder_is_trained_once(build, tmp_path, monkeypatch, capsys):
    """By a build that is stopped, or published; again if what determines it has changed."""
    trainings = []
    spec = ENCODERS["fashion"]

    def count(dataset, options):
        trainings.append(options.seed)
        return spec.make(dataset, options)

    monkeypatch.setitem(ENCODERS, "fashion", replace(spec, make=count))

    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build_models, "embed_each", interrupt)
        assert build() == 130
    assert trainings == [0]

    assert build() == 0
    assert trainings == [0]
    assert "Resuming an interrupted build" in capsys.readouterr().out

    encoder = layout.model_file(tmp_path / "model_repo", "image_encoder").read_bytes()
    assert build("--index", "ivf") == 0
    assert trainings == [0]
    assert "The published encoder is the one" in capsys.readouterr().out
    file = layout.model_file(tmp_path / "model_repo", "image_encoder")
    assert file.read_bytes() == encoder

    file.write_bytes(encoder[:-1])  # damaged
    assert build() == 0
    assert build("--seed", "1") == 0
    assert build() == 0
    assert trainings == [0, 0, 1, 0]


def test_models_and_gallery_have_one_identity(build, tmp_path):
    assert build() == 0
    gallery = Gallery(layout.gallery_file(tmp_path))
    encoder, index = (
        (tmp_path / "model_repo" / model / "config.pbtxt").read_text()
        for model in ("image_encoder", "vector_similarity")
    )
    encoder_id = f'key: "encoder_id" value {{ string_value: "{gallery.encoder_id}" }}'
    gallery_id = f'key: "gallery_id" value {{ string_value: "{gallery.gallery_id}" }}'
    assert len(gallery.encoder_id) == len(gallery.gallery_id) == 12
    assert encoder_id in encoder
    assert encoder_id in index
    assert gallery_id in index

    assert build("--seed", "2") == 0
    other = Gallery(layout.gallery_file(tmp_path))
    assert other.encoder_id != gallery.encoder_id
    assert other.gallery_id != gallery.gallery_id


def test_the_gallery_holds_what_the_ids_stand_for(build, tmp_path):
    assert build() == 0

    gallery = Gallery(layout.gallery_file(tmp_path))
    expected = tiny_dataset(DatasetOptions())
    assert gallery.ids().tolist() == list(range(300))
    (image,) = gallery.images([42])
    assert (image.source, image.label, image.width, image.height) == ("gallery #42", "dark", 28, 28)
    assert np.array_equal(image.pixels, expected.gallery[42].pixels)
    (query,) = gallery.queries([63])
    assert np.array_equal(query.pixels, expected.queries[63].pixels)
    ids, embeddings = gallery.embeddings()
    assert ids.tolist() == list(range(300))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_a_quality_build_serves_an_averaged_encoder(build, tmp_path):
    assert build("--quality") == 0

    encoder = load_torchscript(layout.model_file(tmp_path / "model_repo", "image_encoder"))
    assert encoder(torch.rand(2, 3, 28, 28)).shape == (2, 2 + 118)
    config = layout.config_file(tmp_path / "model_repo", "vector_similarity").read_text()
    assert "dims: [120]" in config


def test_a_quick_build_serves_a_smaller_encoder(build, tmp_path):
    sizes = []
    for option in ([], ["--quick"]):
        assert build(*option) == 0
        path = layout.model_file(tmp_path / "model_repo", "image_encoder")
        assert load_torchscript(path)(torch.rand(2, 3, 28, 28)).shape == (2, 2 + 64)
        sizes.append(path.stat().st_size)

    assert sizes[1] < sizes[0] / 2


def test_a_gallery_smaller_than_k_is_padded(build, tmp_path):
    assert build("--limit", "10", "--top-k", "50") == 0

    index = load_torchscript(layout.model_file(tmp_path / "model_repo", "vector_similarity"))
    ids, _scores = index(torch.rand(1, 2 + 64))
    assert sorted(ids[0, :10].tolist()) == list(range(10))
    assert ids[0, 10:].tolist() == [-1] * 40
    config = layout.config_file(tmp_path / "model_repo", "vector_similarity").read_text()
    assert 'name: "OUTPUT__0" data_type: TYPE_INT64 dims: [50]' in config


def test_a_served_encoder_needs_none_of_the_project(small_build):
    """The exported file alone is served: it loads where the project is not installed."""
    path = layout.model_file(small_build / "model_repo", "image_encoder")
    code = (
        "import sys, torch; "
        f"print(torch.jit.load({str(path)!r})(torch.zeros(1, 3, 28, 28)).shape); "
        "assert not any(name.startswith('reverse_image_search') for name in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "torch.Size([1, " in result.stdout


@pytest.mark.parametrize(("what", "message"), [("memory", "needs 1.4 GB"), ("disk", "needs 1 MB")])
def test_a_build_that_cannot_fit_is_refused_before_the_training(
    build, tmp_path, monkeypatch, capsys, what, message
):
    def train(*_arguments):
        pytest.fail("the training began")

    monkeypatch.setitem(ENCODERS, "fashion", replace(ENCODERS["fashion"], make=train))
    if what == "memory":
        monkeypatch.setattr(memory, "memory_limit", lambda: 2**30)
    else:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)

    assert build() == 1
    assert message in capsys.readouterr().err
    assert files(tmp_path) == {}
