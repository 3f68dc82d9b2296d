"""The design of this tutorial's first version: ResNet-18, 704 images, no batching, no warm-up."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from reverse_image_search import contract
from reverse_image_search.layout import MODEL_FILENAME, config_file, version_folder
from reverse_image_search.serving.export import write_model_files
from reverse_image_search.serving.model_config import ServerSettings, model_config

_GALLERY_SIZE = 704  # images
_DIM = 512
_TOP_K = 20


class _Similarity(nn.Module):
    def __init__(self, gallery: Tensor) -> None:
        super().__init__()
        self.top_k = _TOP_K
        self.register_buffer("gallery", F.normalize(gallery))

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.normalize(queries) @ self.gallery.t()
        best = torch.topk(scores, self.top_k)
        return best.indices, best.values


def write_first_version(folder: Path) -> None:
    """Its model repository, with random weights: they do not change the time."""
    torch.manual_seed(0)
    encoder = resnet18()
    encoder.fc = nn.Identity()
    modules = (encoder, _Similarity(torch.randn(_GALLERY_SIZE, _DIM)))
    for model, module, input_ndim in zip(contract.MODELS, modules, (4, 2), strict=True):
        write_model_files({MODEL_FILENAME: module}, version_folder(folder, model.name), input_ndim)
        config_file(folder, model.name).write_text(
            model_config(
                model,
                embedding_dim=_DIM,
                top_k=_TOP_K,
                example_dims=None,
                parameters={},
                settings=ServerSettings(dynamic_batching=False),
            )
        )
