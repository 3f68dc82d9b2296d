"""What the search is compared with: embeddings that anyone could have without training."""

from collections.abc import Callable

import numpy as np
import torch

from reverse_image_search.encoders.embedding import embed_images
from reverse_image_search.encoders.fashion import ImageEncoder

Embed = Callable[[np.ndarray], np.ndarray]  # (n, height, width) uint8 -> (n, D), unit length

PCA_DIMS = 64


def make_baselines(gallery_images: np.ndarray) -> dict[str, Embed]:
    """One embedding function for each baseline, by name.

    Parameters
    ----------
    gallery_images : (N, height, width) uint8; the principal components are theirs
    """
    return {
        "raw pixels": raw_pixels,
        "PCA-64": fit_pca(gallery_images),
        "untrained encoder": untrained_encoder(),
    }


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """The pixels themselves, (n, height * width)."""
    return _unit_length(images.reshape(len(images), -1).astype(np.float32))


def fit_pca(gallery_images: np.ndarray) -> Embed:
    """The `PCA_DIMS` directions in which the gallery's pixels vary most."""
    pixels = gallery_images.reshape(len(gallery_images), -1).astype(np.float32)
    mean = pixels.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(pixels, rowvar=False))  # by rising variance
    directions = directions[:, -PCA_DIMS:].astype(np.float32)
    return lambda images: _unit_length(
        (images.reshape(len(images), -1).astype(np.float32) - mean) @ directions
    )


def untrained_encoder(seed: int = 0) -> Embed:
    """Our encoder with the random weights that its training starts from."""
    torch.manual_seed(seed)
    encoder = ImageEncoder().eval()
    return lambda images: embed_images(encoder, torch.from_numpy(np.array(images))).numpy()


def _unit_length(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
