"""The design of this tutorial's first version: ResNet-18, 704 images, no batching, no warm-up."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from reverse_image_search import contract
from reverse_image_search.serving.export import export_torchscript, model_config

_GALLERY_SIZE = 704  # images
_DIM = 512
_TOP_K = 20


class _Similarity(nn.Module):
    def __init__(self, gallery: Tensor) -> None:
        super().__init__()
        self.top_k = _TOP_K
        self.register_buffer("gallery", nn.functional.normalize(gallery))

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        scores = nn.functional.normalize(queries) @ self.gallery.t()
        best = torch.topk(scores, self.top_k)
        return best.indices, best.values


def write_first_version(folder: Path) -> None:
    """Its model repository, with random weights: the time does not depend on them."""
    torch.manual_seed(0)
    encoder = resnet18()
    encoder.fc = nn.Identity()
    modules = (encoder, _Similarity(torch.randn(_GALLERY_SIZE, _DIM)))
    for model, module in zip(contract.MODELS, modules, strict=True):
        export_torchscript(module, folder / model.name / "1" / "model.pt")
        config = model_config(model, "first version", _DIM, _TOP_K, (1,))
        config = config[: config.index("model_warmup")].replace("dynamic_batching { }", "")
        (folder / model.name / "config.pbtxt").write_text(config)
