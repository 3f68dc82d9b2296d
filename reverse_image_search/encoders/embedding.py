"""Embed many images with an encoder."""

from collections.abc import Sequence
from itertools import groupby, islice

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm


def embed_images(
    encoder: nn.Module,
    images: Sequence[np.ndarray] | np.ndarray,
    batch_size: int = 500,
    progress: bool = False,
) -> np.ndarray:
    """Embed images of any size; consecutive images of the same size share a batch.

    N images, each (height, width) or (height, width, 3) uint8 -> (N, D) float32
    """
    bar = tqdm(total=len(images), desc="embed", unit=" images", disable=not progress, leave=False)
    embeddings = []
    with torch.inference_mode(), bar:
        for _shape, same_shape in groupby(images, key=np.shape):
            while batch := list(islice(same_shape, batch_size)):
                embeddings.append(encoder(to_pixels(np.stack(batch))).numpy())
                bar.update(len(batch))
    return np.concatenate(embeddings)


def to_pixels(images: np.ndarray) -> Tensor:
    """(N, height, width) or (N, height, width, 3) uint8 -> `contract.IMAGES`."""
    pixels = torch.from_numpy(np.array(images)).to(torch.float32) / 255
    if images.ndim == 3:
        return pixels[:, None].expand(-1, 3, -1, -1)
    return pixels.permute(0, 3, 1, 2)
