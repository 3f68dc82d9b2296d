"""The build's command line and its promises on failure; whole builds: the `small_build` fixture."""

import sys

import pytest
import torch

from reverse_image_search import build_models
from reverse_image_search.datasets.fashion_mnist import Dataset
from reverse_image_search.serving.export import load_torchscript


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "'0' is not a whole number above 0"),
        (["--limit", "-5"], "'-5' is not a whole number above 0"),
        (["--epochs", "1.5"], "'1.5' is not a whole number above 0"),
        (["--top-k", "many"], "'many' is not a whole number above 0"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--quality", "--encoder", "resnet18"], "--quality trains encoders"),
    ],
)
def test_wrong_options_are_refused(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        build_models.main(["--output-dir", str(tmp_path), *arguments])

    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny_dataset() -> Dataset:
    """300 images of two classes that differ in brightness, and 64 queries."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 2
        noise = torch.randint(0, 100, (count, 28, 28), generator=generator)
        return (noise + 150 * labels[:, None, None]).to(torch.uint8), labels

    return Dataset("tiny", ["dark", "light"], *images(300), *images(64))


@pytest.fixture
def build(monkeypatch, tmp_path, tiny_dataset):
    """``build(*arguments)``: build the tiny dataset into `tmp_path`; the exit code."""

    def load(_data_dir, limit):
        return Dataset(
            tiny_dataset.name,
            tiny_dataset.class_names,
            tiny_dataset.train_images[:limit],
            tiny_dataset.train_labels[:limit],
            tiny_dataset.test_images,
            tiny_dataset.test_labels,
        )

    monkeypatch.setattr(build_models, "load_fashion_mnist", load)
    return lambda *arguments: build_models.main(
        ["--output-dir", str(tmp_path), "--limit", "300", "--epochs", "1", *arguments]
    )


def files(folder) -> dict[str, bytes]:
    """Content of every file below `folder`, without the build's own folder of locks."""
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

    def fail(*_arguments, **_options):
        raise failure

    monkeypatch.setattr(build_models, "train_encoder", fail)

    assert build() == (130 if isinstance(failure, KeyboardInterrupt) else 1)
    error = capsys.readouterr().err
    assert "what was built before is unchanged" in error
    assert "Traceback" not in error
    assert files(tmp_path) == before


def test_missing_dataset_is_one_message(tmp_path, monkeypatch, capsys):
    def fail(*_arguments):
        raise build_models.DatasetError("Fashion-MNIST is not there")

    monkeypatch.setattr(build_models, "load_fashion_mnist", fail)

    assert build_models.main(["--output-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("build_models: Fashion-MNIST is not there")
    assert "Traceback" not in error
    assert files(tmp_path) == {}


def test_equal_builds_have_equal_ids_and_others_have_others(build, tmp_path):
    def build_id() -> str:
        return build_models.Path(tmp_path / "gallery" / "manifest.json").read_text()

    assert build("--seed", "1") == 0
    first = build_id()
    assert build("--seed", "1") == 0
    assert build_id() == first
    assert build("--seed", "2") == 0
    assert build_id() != first


def test_one_build_id_on_gallery_and_both_models(build, tmp_path):
    from reverse_image_search.gallery import read_build_id

    assert build() == 0

    build_id = read_build_id(tmp_path / "gallery")
    assert len(build_id) == 12
    for model in ("image_encoder", "vector_similarity"):
        config = (tmp_path / "model_repo" / model / "config.pbtxt").read_text()
        assert f'key: "build_id" value {{ string_value: "{build_id}" }}' in config


def test_a_quality_build_serves_an_ensemble(build, tmp_path):
    assert build("--quality") == 0

    encoder = load_torchscript(tmp_path / "model_repo" / "image_encoder" / "1" / "model.pt")
    assert encoder(torch.rand(2, 3, 28, 28)).shape == (2, 2 + 118)
    config = (tmp_path / "model_repo" / "vector_similarity" / "config.pbtxt").read_text()
    assert "dims: [120]" in config


def test_more_neighbors_than_images_are_all_images(build, tmp_path):
    assert build("--limit", "10", "--top-k", "50") == 0

    config = (tmp_path / "model_repo" / "vector_similarity" / "config.pbtxt").read_text()
    assert 'name: "OUTPUT__0" data_type: TYPE_INT64 dims: [10]' in config


def test_app_and_server_need_no_training_modules(small_build):
    """What is served is the exported file alone: it loads without the project's code."""
    import subprocess

    path = small_build / "model_repo" / "image_encoder" / "1" / "model.pt"
    code = f"import torch; print(torch.jit.load({str(path)!r})(torch.zeros(1, 3, 28, 28)).shape)"
    result = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "torch.Size([1, " in result.stdout
