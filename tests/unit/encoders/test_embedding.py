import numpy as np
import torch
from torch import nn

from reverse_image_search.encoders.embedding import embed_images, to_pixels


class MeanOfEachChannel(nn.Module):
    """Stub encoder whose embedding can be read off the image."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def test_grayscale_pixels_are_three_equal_channels_from_0_to_1():
    pixels = to_pixels(np.array([[[0, 255], [51, 102]]], np.uint8))

    assert pixels.shape == (1, 3, 2, 2)
    assert pixels.dtype == torch.float32
    for channel in pixels[0]:
        torch.testing.assert_close(channel, torch.tensor([[0.0, 1.0], [0.2, 0.4]]))


def test_rgb_pixels_keep_the_order_of_their_channels():
    orange = np.full((1, 4, 5, 3), (255, 102, 0), np.uint8)

    pixels = to_pixels(orange)

    assert pixels.shape == (1, 3, 4, 5)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, 0.4, 0.0]))


def test_embeddings_come_in_the_order_of_the_images_whatever_their_sizes():
    shades = (0, 51, 102, 153, 204)
    shapes = ((4, 4), (4, 4), (2, 6), (4, 4, 3), (4, 4, 3))
    images = [np.full(shape, shade, np.uint8) for shade, shape in zip(shades, shapes, strict=True)]
    expected = np.repeat(np.array([[0.0], [0.2], [0.4], [0.6], [0.8]], np.float32), 3, axis=1)

    for side in (28, 300, 1000):  # in large batches, in small ones, one by one
        embeddings = embed_images(MeanOfEachChannel(), images, input_size=(side, side))
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(embeddings, expected, atol=1e-6)
