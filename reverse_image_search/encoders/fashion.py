"""The image encoder: a small residual network with two heads, pixels in, unit vectors out.

The *class* head says what kind of thing the image shows, the *instance* head tells this image
from all others and stays the same when the image is moved, turned or mirrored. One embedding
holds both, so that one cosine search finds images of the same kind and, among them, the image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIZE = 28  # pixels; every image is resized to this many rows and columns
LUMA = (0.299, 0.587, 0.114)  # weights of red, green, blue: ITU-R BT.601, as Pillow's "L" mode
PIXEL_MEAN, PIXEL_STD = 0.286, 0.353  # of the 60,000 training images, pixels 0 to 1


class ImageEncoder(nn.Module):
    """Residual network of seven convolutions, after David Page's ResNet-9.

    The first layer looks at blocks of 2 x 2 pixels, so nothing runs at the full resolution, where
    most of a ResNet-9's time goes (https://myrtle.ai/learn/how-to-train-your-resnet/).

    Parameters
    ----------
    num_classes : kinds of image that the class head tells apart
    width : channels of the first convolution; the last has four times as many
    instance_dims : dimensions of the instance part of the embedding
    class_weight : share of the class part, 0 to 1 (see `join_parts`)
    """

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
        # TorchScript sees no module globals.
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
        """Embed RGB images of any size.

        Parameters
        ----------
        images : (batch, 3, height, width) float32, 0 to 1; values outside are clamped, NaN is 0

        Returns
        -------
        (batch, embedding_dim) float32, unit length; the same for an image and its mirror image
        """
        probabilities, vectors = self.look_both_ways(self.prepare(images))
        return join_parts(probabilities, vectors, self.class_weight)

    def prepare(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) RGB -> (batch, 1, 28, 28) grey, 0 to 1."""
        images = torch.nan_to_num(images, nan=0.0).clamp(0.0, 1.0)
        grey = (self.luma * images).sum(dim=1, keepdim=True)
        # Leaves pixels as they are when the image has the right size already.
        return F.interpolate(
            grey, self.image_size, mode="bilinear", antialias=True, align_corners=False
        )

    def look_both_ways(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        """What both heads say of the mean of an image's features and its mirror image's.

        (batch, 1, 28, 28) grey, 0 to 1 -> class probabilities (batch, num_classes) and unit
        vectors (batch, instance_dims), as `join_parts` takes them
        """
        one_way, other_way = self.features(torch.cat([grey, grey.flip(3)])).chunk(2)
        features = (one_way + other_way) / 2
        return self.class_head(features).softmax(dim=1), self.describe(features)

    def features(self, grey: Tensor) -> Tensor:
        """(batch, 1, 28, 28) grey, 0 to 1 -> (batch, 8 * width), average and maximum over space."""
        maps = self.backbone((grey - self.pixel_mean) / self.pixel_std)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def describe(self, features: Tensor) -> Tensor:
        """Unit vectors (batch, instance_dims): near each other for copies of one image."""
        return F.normalize(self.instance_head(features))


def join_parts(probabilities: Tensor, vectors: Tensor, class_weight: float) -> Tensor:
    """Put class probabilities and instance vectors side by side, at unit length.

    The product of two class parts is about the probability that both images are of the same
    class. The less sure the class, the shorter its part, and the more the instance part says.

    Parameters
    ----------
    probabilities : (batch, num_classes)
    vectors : (batch, instance_dims), unit length
    class_weight : length of the class part where the class is certain, 0 to 1

    Returns
    -------
    (batch, num_classes + instance_dims), unit length
    """
    class_part = class_weight * probabilities
    rest = (1 - class_part.square().sum(dim=1, keepdim=True)).sqrt()
    return torch.cat([class_part, rest * vectors], dim=1)


class _CosineClassifier(nn.Module):
    """Logits are `scale` times the cosine to each class center ("normalised softmax",
    Zhai and Wu 2018, https://arxiv.org/abs/1811.12649). A low scale keeps probabilities soft.
    """

    def __init__(self, in_features: int, num_classes: int, dims: int = 64, scale: float = 6.0):
        super().__init__()
        self.scale = scale
        # The hidden layer raised mAP and R@1; one in the instance head as well lowered R@1.
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
        self.block = nn.Sequential(
            _convolution(channels, channels), _convolution(channels, channels)
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.block(maps)


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
