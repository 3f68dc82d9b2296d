"""Where images come from. Adding a source is one file here and one line in `DATASETS`."""

from reverse_image_search.datasets.dataset import (
    Dataset,
    DatasetError,
    DatasetOptions,
    DatasetSpec,
    LabeledImage,
)
from reverse_image_search.datasets.fashion_mnist import load_fashion_mnist
from reverse_image_search.datasets.image_folder import load_image_folder

DATASETS = {
    "fashion_mnist": DatasetSpec(
        load=lambda options: load_fashion_mnist(options.data_dir, options.limit),
        default_encoder="fashion",
    ),
    "image_folder": DatasetSpec(
        load=load_image_folder, default_encoder="efficientnet_lite0", is_of_files=True
    ),
}

__all__ = [
    "DATASETS",
    "Dataset",
    "DatasetError",
    "DatasetOptions",
    "DatasetSpec",
    "LabeledImage",
]
