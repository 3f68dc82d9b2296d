"""The image encoder: a small residual network with two heads, pixels in, unit vectors out.

The *class* head puts images of the same kind close to each other, the *instance* head puts
every picture close to its own copies. One embedding holds both, side by side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIZE = 28  # pixels; every image is resized to this many rows and columns
LUMA = (0.299, 0.587, 0.114)  # weights of red, green, blue, ITU-R BT.601, as Pillow's "L" mode
PIXEL_MEAN, PIXEL_STD = 0.286, 0.353  # over the 60,000 training images, 0 to 1


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block = nn.Sequential(
            _convolution(channels, channels), _convolution(channels, channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.block(features)


class ImageEncoder(nn.Module):
    """ResNet-9 (David Page, "How to train your ResNet") with a class and an instance head.

    Parameters
    ----------
    width : channels of the first convolution; the last has eight times as many.
    class_dims, instance_dims : dimensions of the two parts of the embedding.
    instance_weight : length of the instance part; the class part has length 1.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 16,
        class_dims: int = 64,
        instance_dims: int = 64,
        instance_weight: float = 0.5,
        class_scale: float = 6.0,
    ):
        super().__init__()
        self.embedding_dim = class_dims + instance_dims
        self.instance_weight = instance_weight
        self.class_scale = class_scale
        self.pixel_mean, self.pixel_std = PIXEL_MEAN, PIXEL_STD  # TorchScript sees no globals
        self.image_size = [IMAGE_SIZE, IMAGE_SIZE]
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)
        self.backbone = nn.Sequential(
            _convolution(1, width),
            _convolution(width, 2 * width),
            nn.MaxPool2d(2),
            _Residual(2 * width),
            _convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            _convolution(4 * width, 8 * width),
            nn.MaxPool2d(2),
            _Residual(8 * width),
        )
        self.class_head = nn.Linear(16 * width, class_dims, bias=False)
        self.instance_head = nn.Sequential(
            nn.Linear(16 * width, instance_dims, bias=False), nn.BatchNorm1d(instance_dims)
        )
        self.class_centers = nn.Parameter(torch.randn(num_classes, class_dims))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) RGB, 0 to 1, any size -> (batch, embedding_dim), unit length.

        Values outside 0 to 1 are clamped; NaN counts as 0, black.
        """
        features = self.features(self.prepare(images))
        class_part = self.sharpen(self.classify(features))
        instance_part = self.instance_weight * self.describe(features)
        return F.normalize(torch.cat([class_part, instance_part], dim=1))

    def prepare(self, images: Tensor) -> Tensor:
        """RGB images of any size -> (batch, 1, 28, 28) grey, 0 to 1."""
        images = torch.nan_to_num(images, nan=0.0).clamp(0.0, 1.0)
        grey = (self.luma * images).sum(dim=1, keepdim=True)
        # Leaves pixels as they are when the image has the right size already.
        return F.interpolate(
            grey, self.image_size, mode="bilinear", antialias=True, align_corners=False
        )

    def features(self, grey: Tensor) -> Tensor:
        """(batch, 1, 28, 28) grey, 0 to 1 -> (batch, 16 * width) pooled features."""
        maps = self.backbone((grey - self.pixel_mean) / self.pixel_std)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Unit vectors (batch, class_dims) that lie near their class center."""
        return F.normalize(self.class_head(features))

    def class_logits(self, class_vectors: Tensor) -> Tensor:
        """Scaled cosine to each class center (batch, num_classes): "normalised softmax"."""
        return self.class_scale * class_vectors @ F.normalize(self.class_centers).T

    def describe(self, features: Tensor) -> Tensor:
        """Unit vectors (batch, instance_dims) that lie near those of the image's copies."""
        return F.normalize(self.instance_head(features))

    def sharpen(self, class_vectors: Tensor) -> Tensor:
        """Pull class vectors towards the centers of the classes that they probably belong to."""
        probabilities = self.class_logits(class_vectors).softmax(dim=1)
        expected_center = probabilities @ F.normalize(self.class_centers)
        return F.normalize(0.25 * class_vectors + expected_center)
