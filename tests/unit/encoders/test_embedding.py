import torch
from torch import nn

from reverse_image_search.encoders.embedding import embed_images, to_pixels


class MeanOfEachChannel(nn.Module):
    """Stand-in encoder whose answer can be read off the image."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def test_pixels_are_three_equal_channels_from_0_to_1():
    images = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)

    pixels = to_pixels(images)

    assert pixels.shape == (1, 3, 2, 2)
    assert pixels.dtype == torch.float32
    expected = torch.tensor([[0.0, 1.0], [0.2, 0.4]])
    for channel in pixels[0]:
        torch.testing.assert_close(channel, expected)


def test_embeddings_come_in_the_order_of_the_images_whatever_the_batch_size():
    images = torch.tensor([0, 51, 102, 153, 204], dtype=torch.uint8)[:, None, None].expand(-1, 4, 4)
    expected = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8])[:, None].expand(-1, 3)

    for batch_size in (1, 2, 5, 100):
        embeddings = embed_images(MeanOfEachChannel(), images, batch_size=batch_size)
        torch.testing.assert_close(embeddings, expected)
        assert not embeddings.requires_grad
