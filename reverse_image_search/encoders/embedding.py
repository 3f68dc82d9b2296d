"""Embed many images with an encoder."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

_PIXELS_AT_ONCE = 500 * 28 * 28  # in a batch; more take memory, but no less time
Item = TypeVar("Item")


def embed_images(
    encoder: nn.Module,
    images: Sequence[np.ndarray] | np.ndarray,
    input_size: tuple[int, int] = (28, 28),
) -> np.ndarray:
    """Embed images of any size.

    N images, each (height, width) or (height, width, 3) uint8 -> (N, D) float32
    """
    return np.stack([row for _image, row in embed_each(encoder, images, np.asarray, input_size)])


def embed_each(
    encoder: nn.Module,
    items: Iterable[Item],
    pixels_of: Callable[[Item], np.ndarray],
    input_size: tuple[int, int] = (28, 28),
) -> Iterator[tuple[Item, np.ndarray]]:
    """Embed items as they come, with one batch on each processor.

    Parameters
    ----------
    pixels_of : gives the image of an item, (height, width) or (height, width, 3) uint8
    input_size : (height, width) in pixels that the encoder resizes to, which takes memory

    Yields each item and its embedding, (D,) float32, in the same order.
    """

    def embed(batch: list[Item]) -> np.ndarray:
        with torch.inference_mode():
            return encoder(to_pixels(np.stack([pixels_of(item) for item in batch]))).numpy()

    processors = torch.get_num_threads()
    ahead: deque = deque()
    try:
        # One thread on each of several batches is faster than all threads on one.
        with ThreadPoolExecutor(
            processors, initializer=torch.set_num_threads, initargs=(1,)
        ) as threads:
            for batch in _batches(items, pixels_of, input_size):
                ahead.append((batch, threads.submit(embed, batch)))
                if len(ahead) > processors:
                    yield from _finished(ahead)
            while ahead:
                yield from _finished(ahead)
    finally:
        torch.set_num_threads(processors)


def _finished(ahead: deque) -> Iterator[tuple]:
    batch, embeddings = ahead.popleft()
    yield from zip(batch, embeddings.result(), strict=True)


def _batches(
    items: Iterable[Item], pixels_of: Callable[[Item], np.ndarray], input_size: tuple[int, int]
) -> Iterator[list[Item]]:
    """Consecutive items whose images have the same shape, a few at a time."""
    for shape, same_shape in groupby(items, key=lambda item: pixels_of(item).shape):
        pixels = max(shape[0] * shape[1], input_size[0] * input_size[1])
        while batch := list(islice(same_shape, max(1, _PIXELS_AT_ONCE // pixels))):
            yield batch


def to_pixels(images: np.ndarray) -> Tensor:
    """(N, height, width) or (N, height, width, 3) uint8 -> `contract.IMAGES`."""
    pixels = torch.from_numpy(np.array(images)).to(torch.float32) / 255
    if images.ndim == 3:
        return pixels[:, None].expand(-1, 3, -1, -1)
    return pixels.permute(0, 3, 1, 2)
