"""Embeddings that need no training, to compare the search with."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from reverse_image_search.encoders.embedding import embed_images
from reverse_image_search.encoders.fashion import FashionEncoder
from reverse_image_search.gallery import GalleryMetadata

Embed = Callable[[np.ndarray], np.ndarray]  # (n, height, width[, 3]) uint8 -> (n, D), unit length

PCA_DIMS = 64
_LARGEST_SIDE = 32  # pixels; PCA takes a matrix of (pixels, pixels)


def make_baselines(gallery_pixels: np.ndarray) -> dict[str, Embed]:
    """One embedding function for each baseline, by name.

    Parameters
    ----------
    gallery_pixels : (N, height, width[, 3]) uint8; the principal components are theirs
    """
    return {
        "raw pixels": raw_pixels,
        "PCA-64": fit_pca(gallery_pixels),
        "untrained encoder": untrained_encoder(),
    }


def pixels_of_one_size(images: Sequence[np.ndarray], metadata: GalleryMetadata) -> np.ndarray:
    """Images as the encoder sees them, but at most `_LARGEST_SIDE` high and wide.

    Returns
    -------
    (n, height, width) uint8 for encoders that see grayscale, else (n, height, width, 3)
    """
    mode = "L" if metadata.encoder_is_grayscale else "RGB"
    size = tuple(
        min(side, _LARGEST_SIDE) for side in (metadata.encoder_width, metadata.encoder_height)
    )
    return np.array(
        [np.asarray(Image.fromarray(image).convert(mode).resize(size)) for image in images]
    )


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """The pixels themselves, (n, height * width[ * 3])."""
    return _unit_length(images.reshape(len(images), -1).astype(np.float32))


def fit_pca(gallery_pixels: np.ndarray) -> Embed:
    """The `PCA_DIMS` directions in which the gallery's pixels vary most."""
    pixels = gallery_pixels.reshape(len(gallery_pixels), -1).astype(np.float32)
    mean = pixels.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(pixels, rowvar=False))  # by rising variance
    directions = directions[:, -PCA_DIMS:].astype(np.float32)
    return lambda images: _unit_length(
        (images.reshape(len(images), -1).astype(np.float32) - mean) @ directions
    )


def untrained_encoder(seed: int = 0) -> Embed:
    """The `fashion` encoder with the random weights that its training starts from."""
    torch.manual_seed(seed)
    encoder = FashionEncoder().eval()
    return lambda images: embed_images(encoder, images)


def _unit_length(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
