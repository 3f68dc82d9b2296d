"""The `fashion` encoder: a small residual network with two heads, trained here.

The *class* head predicts the category of the image, the *instance* head separates this image from
all others and is invariant to shifts, rotations and flips. One embedding holds both, so that one
cosine search finds images of the same category and, among them, copies of the same image.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverse_image_search.datasets import Dataset
from reverse_image_search.encoders.spec import EncoderError, TrainingOptions
from reverse_image_search.training.train import TwoHeadedEncoder, half_whitening, train_two_heads

IMAGE_SIZE = 28  # pixels; every image is resized to this many rows and columns
LUMA = (0.299, 0.587, 0.114)  # weights of red, green, blue: ITU-R BT.601, as Pillow's "L" mode
PIXEL_MEAN, PIXEL_STD = 0.286, 0.353  # of the 60,000 training images, pixels 0 to 1
WHITENING_IMAGES = 6_000  # whose instance embeddings the whitening is computed from


class FashionEncoder(TwoHeadedEncoder):
    """Residual network of seven convolutions, after David Page's ResNet-9.

    The first layer takes blocks of 2 x 2 pixels, so nothing runs at full resolution, where a
    ResNet-9 spends most of its time (https://myrtle.ai/learn/how-to-train-your-resnet/).
    `width` : channels of the first convolution; `class_weight` : see `join_parts`
    """

    luma: Tensor

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 32,
        instance_dims: int = 64,
        class_weight: float = 0.85,
    ):
        super().__init__()
        self.num_classes, self.instance_dims = num_classes, instance_dims
        self.embedding_dim = num_classes + instance_dims
        self.class_weight = class_weight
        # TorchScript cannot read module globals.
        self.pixel_mean, self.pixel_std = PIXEL_MEAN, PIXEL_STD
        self.image_size = [IMAGE_SIZE, IMAGE_SIZE]
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)
        self.backbone = nn.Sequential(  # rows and columns:
            nn.PixelUnshuffle(2),  # 14
            _convolution(4, width),
            _Residual(width),
            _convolution(width, 2 * width, stride=2),  # 7
            _convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),  # 3
            _Residual(4 * width),
        )
        self.class_head = _CosineClassifier(8 * width, num_classes)
        self.instance_head = nn.Sequential(
            nn.Linear(8 * width, instance_dims, bias=False), nn.BatchNorm1d(instance_dims)
        )

    def forward(self, images: Tensor) -> Tensor:
        """`contract.IMAGES`, clamped, NaN as 0 -> (batch, embedding_dim) float32, unit length.

        An image and its mirror image have the same embedding.
        """
        probabilities, instance_embeddings = self.flip_averaged_heads(self.preprocess(images))
        return join_parts(probabilities, instance_embeddings, self.class_weight)

    def preprocess(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) RGB -> (batch, 1, 28, 28) grayscale, 0 to 1."""
        images = torch.nan_to_num(images, nan=0.0).clamp(0.0, 1.0)
        grayscale = (self.luma * images).sum(dim=1, keepdim=True)
        # Leaves images that already have this size unchanged.
        return F.interpolate(grayscale, self.image_size, mode="bilinear", antialias=True)

    def flip_averaged_heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Flip test-time augmentation: both heads on the mean features of image and mirror image.

        (batch, 1, 28, 28) -> class probabilities (batch, num_classes) and instance embeddings
        (batch, instance_dims), unit length
        """
        features, flipped_features = self.features(torch.cat([images, images.flip(3)])).chunk(2)
        logits, instance_embeddings = self.heads((features + flipped_features) / 2)
        return logits.softmax(dim=1), instance_embeddings

    def features(self, images: Tensor) -> Tensor:
        """(batch, 1, 28, 28) -> (batch, 8 * width): average and max pooling."""
        maps = self.backbone((images - self.pixel_mean) / self.pixel_std)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (batch, num_classes) and unit-length embeddings (batch, instance_dims)."""
        return self.class_head(features), F.normalize(self.instance_head(features))


def join_parts(probabilities: Tensor, instance_embeddings: Tensor, class_weight: float) -> Tensor:
    """Concatenate class probabilities and instance embeddings at unit length.

    The dot product of two class parts approximates the probability that both images are of the
    same class. The less certain the class, the shorter its part, and the more the instance part
    counts; `class_weight` is its length where the class is certain, 0 to 1.
    """
    class_part = class_weight * probabilities
    rest = (1 - class_part.square().sum(dim=1, keepdim=True)).sqrt()
    return torch.cat([class_part, rest * instance_embeddings], dim=1)


def train_fashion_encoder(
    dataset: Dataset,
    options: TrainingOptions,
    width: int = 32,
    class_weight: float = 0.85,
    instance_loss_weight: float = 1.0,
) -> FashionEncoder:
    """Train on the gallery of a labeled dataset of 28 x 28 grayscale images.

    `width`, `class_weight` : see `FashionEncoder`; `instance_loss_weight` : see `encoder_loss`

    Returns
    -------
    FashionEncoder in evaluation mode, on the CPU, float32; the same for the same seed and machine

    Raises
    ------
    EncoderError : the dataset has no labels, or images of another size
    """
    images, labels = training_tensors(dataset)
    encoder = train_one(
        images,
        labels,
        options.epochs,
        options.seed,
        new_encoder=partial(FashionEncoder, width=width, class_weight=class_weight),
        instance_loss_weight=instance_loss_weight,
    )
    linear = encoder.instance_head[0]  # the batch norm behind it is folded into it
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        whitening = whitening_of(
            lambda part: encoder.heads(encoder.features(part))[1], images, encoder.instance_dims
        )
        linear.weight.copy_(whitening @ linear.weight)
        linear.bias.copy_(whitening @ linear.bias)
    return encoder.to("cpu")


def train_one(
    images: Tensor,
    labels: Tensor,
    epochs: int,
    seed: int,
    description: str = "training",
    new_encoder: Callable[[int], FashionEncoder] = FashionEncoder,
    instance_loss_weight: float = 1.0,
) -> FashionEncoder:
    """Train one encoder on the device of `images`, without whitening."""
    return train_two_heads(
        partial(new_encoder, int(labels.max()) + 1),
        images,
        labels,
        epochs,
        seed,
        description,
        instance_loss_weight,
    )


def whitening_of(embed: Callable[[Tensor], Tensor], images: Tensor, dims: int) -> Tensor:
    """`half_whitening` of what `embed` makes of the first `images` (N, 28, 28) uint8."""
    pixels = images[:WHITENING_IMAGES].unsqueeze(1) / 255
    return half_whitening(torch.cat([embed(part) for part in pixels.split(500)]), dims)


def training_tensors(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Images (N, 28, 28) uint8 and class indices (N,) int64, on the GPU where there is one."""
    images = [image.pixels for image in dataset.gallery]
    labels = [image.label for image in dataset.gallery]
    shapes = {image.shape for image in images}
    if None in labels or shapes != {(IMAGE_SIZE, IMAGE_SIZE)}:
        raise EncoderError(
            f"the fashion encoder is trained on labeled {IMAGE_SIZE} x {IMAGE_SIZE} grayscale "
            f"images, which {dataset.name} does not have. Name a pretrained one with --encoder"
        )
    numbers = torch.tensor([dataset.class_names.index(str(label)) for label in labels])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.from_numpy(np.stack(images)).to(device), numbers.to(device)


class _CosineClassifier(nn.Module):
    """Logits are `scale` times the cosine to each class center ("normalized softmax",
    Zhai and Wu 2018, https://arxiv.org/abs/1811.12649). A low scale keeps probabilities soft.
    """

    def __init__(self, in_features: int, num_classes: int, dims: int = 64, scale: float = 6.0):
        super().__init__()
        self.scale = scale
        self.projection = nn.Sequential(
            nn.Linear(in_features, in_features, bias=False),
            nn.BatchNorm1d(in_features),
            nn.ReLU(inplace=True),
            nn.Linear(in_features, dims, bias=False),
        )
        self.class_centers = nn.Parameter(torch.randn(num_classes, dims))

    def forward(self, features: Tensor) -> Tensor:  # (batch, in_features) -> (batch, num_classes)
        vectors = F.normalize(self.projection(features))
        return self.scale * F.linear(vectors, F.normalize(self.class_centers))


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block = nn.Sequential(*(_convolution(channels, channels) for _ in range(2)))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.block(maps)


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
