"""Penultimate-layer features of torchvision's ImageNet classifiers."""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from reverse_image_search.datasets import Dataset
from reverse_image_search.encoders.spec import EncoderError, TrainingOptions
from reverse_image_search.layout import BUILD_COMMAND

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # red, green, blue, of pixels from 0 to 1
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_SIDE = 224  # pixels, rows and columns


class PretrainedEncoder(nn.Module):
    """A classifier without its last layer, preprocessing included.

    `backbone` : (batch, 3, 224, 224) normalized RGB -> (batch, embedding_dim)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, embedding_dim: int):
        super().__init__()
        self.embedding_dim, self.backbone = embedding_dim, backbone
        self.image_size = [IMAGENET_SIDE, IMAGENET_SIDE]
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """`contract.IMAGES`, clamped, NaN as 0 -> (batch, embedding_dim) float32, unit length."""
        images = torch.nan_to_num(images, nan=0.0).clamp(0.0, 1.0)
        images = F.interpolate(images, self.image_size, mode="bilinear", antialias=True)
        return F.normalize(self.backbone((images - self.mean) / self.std))


def load_resnet18(_dataset: Dataset, options: TrainingOptions) -> PretrainedEncoder:
    """ResNet-18 (He et al. 2016), with torchvision's weights or those of a file.

    Raises
    ------
    EncoderError : the weights cannot be downloaded or read, or do not fit
    """
    network = torchvision.models.resnet18()
    _load_weights(network, "resnet18", options)
    embedding_dim = network.fc.in_features
    network.fc = nn.Identity()
    return PretrainedEncoder(network, embedding_dim).eval()


def _load_weights(network: nn.Module, name: str, options: TrainingOptions) -> None:
    path = options.weights_file
    if path is None:
        published = torchvision.models.get_model_weights(name).DEFAULT
        try:
            network.load_state_dict(published.get_state_dict(progress=True, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise EncoderError(
                f"the weights of {name} could not be downloaded from {published.url} ({error}). "
                f"Download that file elsewhere and name it: {BUILD_COMMAND} --encoder {name} "
                "--weights FILE"
            ) from error
        return
    if not path.exists():
        raise EncoderError(f"there is no file {path}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a bad file
        raise EncoderError(
            f"{path} cannot be read as weights ({type(error).__name__}). It must be a state dict "
            f"of torchvision's {name}, saved with torch.save"
        ) from error
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise EncoderError(
            f"{path} does not hold the weights of torchvision's {name}: names or shapes of its "
            "tensors differ"
        ) from error
