"""A build with an encoder of a few lines, for tests of folders of images.

    python -m tests.integration.toy_build KILL_AT [options of build_models.sh]

KILL_AT images are added before the process is killed; 0 is never.
"""

import os
import signal
import sys

import torch
from torch import Tensor, nn

from reverse_image_search import build_models, gallery_writer
from reverse_image_search.encoders import ENCODERS, EncoderSpec


class Grid(nn.Module):
    """Colors of a grid of 8 x 8 cells, without their mean."""

    def forward(self, images: Tensor) -> Tensor:
        cells = nn.functional.interpolate(images, [8, 8], mode="bilinear", antialias=True)
        return nn.functional.normalize((cells - cells.mean(dim=(2, 3), keepdim=True)).flatten(1))


GRID = EncoderSpec(
    make=lambda _dataset, _options: Grid(),
    input_size=(64, 64),
    is_grayscale=False,
    license="CC0-1.0",
)


def main() -> int:
    """Build; the exit code."""
    torch.set_num_threads(1)
    ENCODERS["grid"] = GRID
    add, left = gallery_writer.GalleryWriter.add, int(sys.argv[1])

    def add_or_die(writer, *arguments):
        nonlocal left
        add(writer, *arguments)
        writer.commit()
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    gallery_writer.GalleryWriter.add = add_or_die
    return build_models.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
