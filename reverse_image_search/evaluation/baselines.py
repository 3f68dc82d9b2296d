"""Embeddings that need no training, to compare the search with."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from reverse_image_search.encoders.embedding import embed_images
from reverse_image_search.encoders.fashion import FashionEncoder
from reverse_image_search.gallery import GalleryMetadata

Embed = Callable[[np.ndarray], np.ndarray]  # (n, height, width[, 3]) uint8 -> (n, D), unit length

_PCA_DIMS = 64
_LARGEST_SIDE = 32  # pixels; PCA takes a matrix of (pixels, pixels)


def make_baselines(gallery_pixels: np.ndarray, is_photos: bool = False) -> dict[str, Embed]:
    """One embedding function for each baseline, by name: the pixels themselves and a perceptual
    hash; but for photos, also the `_PCA_DIMS` directions in which the gallery's pixels vary most,
    and the `fashion` encoder with random weights.

    Parameters
    ----------
    gallery_pixels : (N, height, width[, 3]) uint8
    """
    baselines: dict[str, Embed] = {
        "raw pixels": lambda images: _unit_length(_flat(images)),
        "perceptual hash": _perceptual_hashes,
    }
    if is_photos:
        return baselines
    pixels = _flat(gallery_pixels)
    mean = pixels.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(pixels, rowvar=False))  # by rising variance
    directions = directions[:, -_PCA_DIMS:].astype(np.float32)
    torch.manual_seed(0)
    encoder = FashionEncoder().eval()
    return baselines | {
        "PCA-64": lambda images: _unit_length((_flat(images) - mean) @ directions),
        "untrained encoder": lambda images: embed_images(encoder, images),
    }


def pixels_of_one_size(images: Sequence[np.ndarray], metadata: GalleryMetadata) -> np.ndarray:
    """Images as the encoder sees them, but at most `_LARGEST_SIDE` high and wide.

    Returns
    -------
    (n, height, width) uint8 for encoders that see grayscale, else (n, height, width, 3)
    """
    mode = "L" if metadata.encoder_is_grayscale else "RGB"
    width = min(metadata.encoder_width, _LARGEST_SIDE)
    height = min(metadata.encoder_height, _LARGEST_SIDE)
    resized = (Image.fromarray(image).convert(mode).resize((width, height)) for image in images)
    return np.array([np.asarray(image) for image in resized])


def _perceptual_hashes(images: np.ndarray) -> np.ndarray:
    """pHash, 64 bits as 1 or -1: cosine similarity ranks as the Hamming distance does."""
    import imagehash  # of requirements-evaluate.txt

    bits = np.array([imagehash.phash(Image.fromarray(image)).hash.ravel() for image in images])
    return _unit_length(np.where(bits, 1, -1).astype(np.float32))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)


def _unit_length(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
