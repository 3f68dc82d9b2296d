"""What pretrained encoders share: published preprocessing and weights files."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverse_image_search.encoders.spec import EncoderError


class PretrainedEncoder(nn.Module):
    """A pretrained network with its preprocessing, and a head that makes its features a vector.

    `preprocess` : RGB (batch, 3, height, width), 0 to 1, of any size -> the network's input
    `network` : that -> features (batch, F)
    `head` : features of unit length -> embeddings (batch, D) of unit length
    """

    def __init__(self, preprocess: nn.Module, network: nn.Module, head: nn.Module | None = None):
        super().__init__()
        self.preprocess, self.network = preprocess, network
        self.head = head or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """`contract.IMAGES`, clamped, NaN as 0 -> (batch, D) float32, unit length."""
        images = torch.nan_to_num(images, nan=0.0).clamp(0.0, 1.0)
        return self.head(F.normalize(self.network(self.preprocess(images))))


class FirstFeatures(nn.Module):
    """A head that takes the first features alone."""

    def __init__(self, dims: int):
        super().__init__()
        self.dims = dims

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features[:, : self.dims])


class _Preprocessing(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """`mean` and `std` are of red, green, and blue, of pixels 0 to 1."""
        return (images - self.mean) / self.std


class ResizeAndCrop(_Preprocessing):
    """Resize the shorter side, crop the center square, normalize: as ImageNet classifiers do."""

    def __init__(
        self,
        resized_side: int,
        cropped_side: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bilinear",
    ):
        super().__init__(mean, std)
        self.resized_side, self.cropped_side = resized_side, cropped_side
        self.interpolation = interpolation

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, 3, cropped_side, cropped_side)."""
        height, width = images.shape[2], images.shape[3]
        # Rounded as torchvision's Resize and CenterCrop do.
        rows = height * self.resized_side // min(height, width)
        columns = width * self.resized_side // min(height, width)
        images = F.interpolate(images, [rows, columns], mode=self.interpolation, antialias=True)
        top = int(round((rows - self.cropped_side) / 2))  # noqa: RUF046, TorchScript's is a float
        left = int(round((columns - self.cropped_side) / 2))  # noqa: RUF046
        images = images[:, :, top : top + self.cropped_side, left : left + self.cropped_side]
        return self.normalize(images.clamp(0.0, 1.0))  # bicubic resampling overshoots


class ResizeToArea(_Preprocessing):
    """Resize the whole image to about side x side pixels at its aspect ratio, and normalize.

    For networks that accept any multiple of `multiple` pixels. Up to 3:1; longer images are
    squeezed.
    """

    MAX_RATIO = 3.0

    def __init__(self, side: int, multiple: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__(mean, std)
        self.side, self.multiple, self.max_ratio = side, multiple, self.MAX_RATIO

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, 3, rows, columns), multiples of `multiple`."""
        ratio = images.shape[2] / images.shape[3]
        root = min(max(ratio, 1 / self.max_ratio), self.max_ratio) ** 0.5
        rows, columns = self.rounded(self.side * root), self.rounded(self.side / root)
        images = F.interpolate(images, [rows, columns], mode="bilinear", antialias=True)
        return self.normalize(images)

    def rounded(self, side: float) -> int:
        """The multiple nearest to `side`."""
        return max(int(side / self.multiple + 0.5), 1) * self.multiple


def trace(network: nn.Module, side: int) -> nn.Module:
    """Trace a network at one size of its input, for those that `torch.jit.script` refuses."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecation; constants that the size determines
        # Two images: a batch of one would make its size a constant.
        return torch.jit.trace(network.eval(), torch.zeros(2, 3, side, side), check_trace=False)


def remove_last_linear(network: nn.Module) -> nn.Module:
    """Make a classifier return what its last linear layer would get."""
    name = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    network.set_submodule(name, nn.Identity())
    return network


def read_weights(path: Path, network: str) -> dict[str, Tensor]:
    """Read the state dict of a network from a file of torch.save.

    Raises
    ------
    EncoderError : the file is missing or no state dict; the message names `network`
    """
    if not path.exists():
        raise EncoderError(f"there is no file {path}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a bad file
        raise EncoderError(
            f"{path} cannot be read as weights ({type(error).__name__}). It must be a state dict "
            f"of {network}, saved with torch.save"
        ) from error
    return weights


def wrong_weights(path: Path, network: str) -> EncoderError:
    """The error for a file whose tensors do not fit the network."""
    return EncoderError(
        f"{path} does not hold the weights of {network}: names or shapes of its tensors differ"
    )
