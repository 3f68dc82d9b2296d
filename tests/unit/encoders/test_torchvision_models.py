"""torchvision's classifiers behind the tensor contract, with random weights made here."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F

from reverse_image_search.encoders import ENCODERS, EncoderError, TrainingOptions
from reverse_image_search.encoders.embedding import to_pixels
from reverse_image_search.serving.export import load_torchscript, write_model_files

# Each with the weights whose preprocessing it takes over.
CLASSIFIERS = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
    "efficientnet_b0": torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1,
    "convnext_tiny": torchvision.models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
    "vit_b_16": torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1,
}


def photo(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 with edges, so that bicubic resampling overshoots."""
    rows, columns = np.mgrid[:height, :width]
    stripes = [(rows // 7) % 2 * 255, (columns // 5) % 2 * 255, (rows + columns) % 256]
    return np.stack(stripes, axis=2).astype(np.uint8)


@pytest.fixture(scope="module", autouse=True)
def two_layers_of_the_transformer():
    """All twelve would take half a minute, and test nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        original = torchvision.models.vision_transformer.Encoder.__init__

        def short(self, seq_length, num_layers, *rest):
            original(self, seq_length, 2, *rest)

        patch.setattr(torchvision.models.vision_transformer.Encoder, "__init__", short)
        yield


def save_random_weights(name: str, folder: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name).eval()
    path = folder / f"{name}.pth"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.inference_mode()
def test_exported_it_equals_the_published_pipeline(name: str, tmp_path: Path):
    network, weights_file = save_random_weights(name, tmp_path)
    spec = ENCODERS[name]
    encoder = spec.make(None, TrainingOptions(weights_file=weights_file, adapt=False))
    write_model_files({"model.pt": encoder}, tmp_path / "1", input_ndim=4)
    exported = load_torchscript(tmp_path / "1" / "model.pt")
    last_inputs = []
    last_layer = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    last_layer.register_forward_pre_hook(lambda _layer, inputs: last_inputs.append(inputs[0]))

    for height, width, batch in ((1, 1, 1), (37, 211, 2), (1200, 900, 1)):
        pixels = photo(height, width)
        published = CLASSIFIERS[name].transforms()(Image.fromarray(pixels))
        images = to_pixels(np.stack([np.roll(pixels, i, axis=1) for i in range(batch)]))
        # Pillow rounds to 8 bits after each of two passes, and clips there.
        ours = encoder.preprocess(images)
        assert (ours[0] - published).abs().mean() < 1 / 255 / 0.225
        network(ours)
        expected = F.normalize(last_inputs[-1])
        embeddings = exported(images[:, None])
        assert embeddings.shape == (batch, last_layer.in_features)
        assert (embeddings - expected).abs().max() <= spec.export_tolerance


def load_resnet18(weights_file: Path) -> nn.Module:
    options = TrainingOptions(weights_file=weights_file, adapt=False)
    return ENCODERS["resnet18"].make(None, options)


@torch.inference_mode()
def test_pixels_out_of_range_do_not_spread(tmp_path: Path):
    _network, weights_file = save_random_weights("resnet18", tmp_path)
    images = torch.rand(2, 3, 28, 28)
    images[0, 0, 0, 0] = float("nan")
    norms = load_resnet18(weights_file)(images).norm(dim=1)
    assert norms.tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_missing_weights_file_is_named(tmp_path: Path):
    with pytest.raises(EncoderError, match=r"there is no file .*nowhere\.pth"):
        load_resnet18(tmp_path / "nowhere.pth")


def test_file_without_weights_is_named(tmp_path: Path):
    path = tmp_path / "text.pth"
    path.write_text("not weights")
    with pytest.raises(EncoderError, match=r"text.pth cannot be read as weights"):
        load_resnet18(path)


def test_weights_of_another_network_are_named(tmp_path: Path):
    network, path = save_random_weights("resnet18", tmp_path)
    torch.save({k: v for k, v in network.state_dict().items() if k != "fc.bias"}, path)
    with pytest.raises(EncoderError, match="names or shapes"):
        load_resnet18(path)
