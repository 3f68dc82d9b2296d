"""timm's vision transformers behind the tensor contract: real ones, cut to two random layers."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch.nn import functional as F

from reverse_image_search.encoders import ENCODERS, EncoderError, TrainingOptions
from reverse_image_search.encoders.embedding import to_pixels
from reverse_image_search.serving.export import load_torchscript, write_model_files

MODELS = {
    "dinov2_small": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_base": "vit_base_patch14_dinov2.lvd142m",
    "siglip2_base": "vit_base_patch16_siglip_224.v2_webli",
}
create_model = timm.create_model


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_exported_it_equals_timms_pipeline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(timm, "create_model", partial(create_model, depth=2))
    torch.manual_seed(0)
    network = timm.create_model(MODELS[name], num_classes=0, img_size=224).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    spec = ENCODERS[name]
    options = TrainingOptions(weights_file=tmp_path / "weights.pth", adapt=False)
    encoder = spec.make(None, options)
    write_model_files({"model.pt": encoder}, tmp_path / "1", input_ndim=4)
    exported = load_torchscript(tmp_path / "1" / "model.pt")

    config = resolve_model_data_config(network, {"img_size": 224})
    for height, width, batch in ((1, 1, 1), (37, 211, 2), (1200, 900, 1)):
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([rows % 256, columns % 256, (rows + columns) % 200], axis=2)
        pixels = pixels.astype(np.uint8)
        published = create_transform(**config)(Image.fromarray(pixels))
        images = to_pixels(np.stack([np.roll(pixels, i, axis=1) for i in range(batch)]))
        ours = encoder.preprocess(images)
        assert (ours[0] - published).abs().mean() < 0.5 / 255 / min(config["std"])
        expected = F.normalize(network(ours))
        assert (exported(images[:, None]) - expected).abs().max() <= spec.export_tolerance


def test_file_of_another_network_is_named(tmp_path: Path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    options = TrainingOptions(weights_file=tmp_path / "other.pth")
    with pytest.raises(EncoderError, match=r"dinov2_small.* could not be loaded from .*other\.pth"):
        ENCODERS["dinov2_small"].make(None, options)
