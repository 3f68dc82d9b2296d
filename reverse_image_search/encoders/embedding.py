"""Images into embeddings, many at a time."""

import torch
from torch import Tensor, nn
from tqdm import tqdm


def embed_images(
    encoder: nn.Module, images: Tensor, batch_size: int = 500, progress: bool = False
) -> Tensor:
    """Embed grey images with an image encoder of the tensor contract.

    Parameters
    ----------
    encoder : (batch, 3, height, width) float32 -> (batch, D) float32
    images : (N, height, width) uint8

    Returns
    -------
    (N, D) float32 embeddings of unit length
    """
    batches = tqdm(
        images.split(batch_size), "embed", unit=" batches", disable=not progress, leave=False
    )
    with torch.inference_mode():
        return torch.cat([encoder(to_pixels(batch)) for batch in batches])


def to_pixels(images: Tensor) -> Tensor:
    """Grey uint8 images (N, height, width) as the contract's (N, 3, height, width), 0 to 1."""
    return images[:, None].expand(-1, 3, -1, -1).to(torch.float32) / 255
