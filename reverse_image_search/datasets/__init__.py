"""Where images come from. Adding a source is one file here and one line in `DATASETS`."""

from reverse_image_search.datasets.dataset import Dataset, DatasetError, DatasetSpec, LabeledImage
from reverse_image_search.datasets.fashion_mnist import load_fashion_mnist

DATASETS = {
    "fashion_mnist": DatasetSpec(load=load_fashion_mnist, default_encoder="fashion"),
}

__all__ = ["DATASETS", "Dataset", "DatasetError", "DatasetSpec", "LabeledImage"]
