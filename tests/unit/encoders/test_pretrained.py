"""torchvision's ResNet-18 behind the tensor contract, with weights made here."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch.nn import functional as F

from reverse_image_search.encoders import ENCODERS, EncoderError, TrainingOptions


def load(weights_file: Path) -> torch.nn.Module:
    return ENCODERS["resnet18"].make(None, TrainingOptions(weights_file=weights_file))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


@pytest.fixture(scope="module")
def weights_file(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), path)
    return path


@torch.inference_mode()
def test_it_is_the_network_without_its_last_layer(network: torch.nn.Module, weights_file: Path):
    encoder = load(weights_file)
    images = torch.rand(2, 3, 224, 224)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    logits = network((images - mean) / std)
    # The last layer on the embedding, at the length it had, gives the network's own logits.
    with_length = encoder.backbone((images - mean) / std)
    assert torch.allclose(network.fc(with_length), logits, atol=1e-4)
    assert torch.allclose(encoder(images), F.normalize(with_length), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (2, 3, 300, 180)])
@torch.inference_mode()
def test_any_size_becomes_a_unit_vector_exported_or_not(weights_file: Path, shape):
    encoder = load(weights_file)
    images = torch.rand(shape)
    images[0, 0, 0, 0] = float("nan")
    embeddings = encoder(images)
    assert embeddings.shape == (shape[0], encoder.embedding_dim) == (shape[0], 512)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1.0] * shape[0], abs=1e-5)
    assert torch.allclose(torch.jit.script(encoder)(images), embeddings, atol=1e-5)


def test_missing_weights_file_is_named(tmp_path: Path):
    with pytest.raises(EncoderError, match=r"there is no file .*nowhere\.pth"):
        load(tmp_path / "nowhere.pth")


def test_file_without_weights_is_named(tmp_path: Path):
    path = tmp_path / "text.pth"
    path.write_text("not weights")
    with pytest.raises(EncoderError, match=r"text.pth cannot be read as weights"):
        load(path)


def test_weights_of_another_network_are_named(network: torch.nn.Module, tmp_path: Path):
    path = tmp_path / "other.pth"
    torch.save({k: v for k, v in network.state_dict().items() if k != "fc.bias"}, path)
    with pytest.raises(EncoderError, match="names or shapes"):
        load(path)
