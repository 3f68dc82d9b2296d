"""The design of this tutorial's first version: ResNet-18, 704 images, no batching, no warm-up."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet18

from reverse_image_search import contract
from reverse_image_search.indexes.exact import ExactIndex
from reverse_image_search.layout import MODEL_FILENAME, config_file, version_folder
from reverse_image_search.serving.export import write_model_files
from reverse_image_search.serving.model_config import ServerSettings, model_config

_GALLERY_SIZE, _DIM, _TOP_K = 704, 512, 20


def write_first_version(folder: Path) -> None:
    """Its model repository, with random weights: they do not change the time."""
    encoder = resnet18()
    encoder.fc = nn.Identity()
    index = ExactIndex(torch.randn(_GALLERY_SIZE, _DIM), torch.arange(_GALLERY_SIZE), _TOP_K)
    for model, module, input_ndim in zip(contract.MODELS, (encoder, index), (4, 2), strict=True):
        write_model_files({MODEL_FILENAME: module}, version_folder(folder, model.name), input_ndim)
        config = model_config(
            model, embedding_dim=_DIM, top_k=_TOP_K, example_dims=None, parameters={},
            settings=ServerSettings(dynamic_batching=False),
        )  # fmt: skip
        config_file(folder, model.name).write_text(config)
