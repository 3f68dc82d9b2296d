"""The encoder's promises: the contract's shapes, unit length, pixels as they are, TorchScript."""

import io
import warnings

import pytest
import torch

from reverse_image_search.encoders.fashion import ImageEncoder, join_parts


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    torch.manual_seed(0)
    encoder = ImageEncoder()
    with torch.no_grad():  # as after training: running statistics that are not 0 and 1
        encoder.train().features(torch.rand(64, 1, 28, 28))
    return encoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def exported(encoder: ImageEncoder) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.freeze(torch.jit.script(encoder)), file)
        file.seek(0)
        return torch.jit.load(file)


def _grey(*shape: int) -> torch.Tensor:
    """The same random values in red, green and blue."""
    batch, height, width = shape
    return torch.rand(batch, 1, height, width).expand(-1, 3, -1, -1).contiguous()


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (5, 3, 28, 28), (2, 3, 7, 90), (1, 3, 1, 1)])
def test_any_size_becomes_a_unit_vector(encoder: ImageEncoder, shape: tuple[int, ...]):
    embeddings = encoder(torch.rand(shape))
    assert embeddings.shape == (shape[0], encoder.embedding_dim)
    assert embeddings.dtype == torch.float32
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1.0] * shape[0], abs=1e-5)


def test_embedding_has_at_most_128_dimensions(encoder: ImageEncoder):
    assert encoder.embedding_dim == 10 + 64


def test_grey_pixels_of_the_right_size_stay_as_they_are(encoder: ImageEncoder):
    images = _grey(3, 28, 28)
    assert (encoder.prepare(images) - images[:, :1]).abs().max() < 2e-7  # rounding


def test_colors_become_grey_by_their_luma(encoder: ImageEncoder):
    colors = torch.eye(3).view(3, 3, 1, 1).expand(-1, -1, 28, 28)  # red, green, blue
    assert encoder.prepare(colors).mean(dim=(1, 2, 3)).tolist() == pytest.approx(
        [0.299, 0.587, 0.114]
    )


def test_shrinking_averages_instead_of_skipping(encoder: ImageEncoder):
    stripes = torch.zeros(1, 3, 56, 56)
    stripes[..., ::2] = 1.0
    prepared = encoder.prepare(stripes)
    assert prepared.std() < 0.05
    assert prepared.mean().item() == pytest.approx(0.5, abs=0.01)


def test_a_mirror_image_has_the_same_embedding(encoder: ImageEncoder):
    images = torch.rand(4, 3, 28, 28)
    assert torch.allclose(encoder(images), encoder(images.flip(3)), atol=1e-6)


def test_an_image_has_the_same_embedding_alone_and_in_a_batch(encoder: ImageEncoder):
    images = torch.rand(8, 3, 28, 28)
    alone = torch.cat([encoder(image[None]) for image in images])
    assert torch.allclose(encoder(images), alone, atol=1e-6)


def test_values_that_are_no_pixels_are_clamped(encoder: ImageEncoder):
    image = torch.rand(1, 3, 28, 28)
    strange, pixels = image.clone(), image.clone()
    replacements = {float("nan"): 0.0, float("inf"): 1.0, float("-inf"): 0.0, 7.0: 1.0, -7.0: 0.0}
    for row, (value, meaning) in enumerate(replacements.items()):
        strange[:, :, row], pixels[:, :, row] = value, meaning
    assert torch.equal(encoder(strange), encoder(pixels))


def test_parts_are_joined_at_unit_length():
    probabilities = torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    vectors = torch.tensor([[1.0, 0.0], [0.6, -0.8]])

    embeddings = join_parts(probabilities, vectors, class_weight=0.5)

    expected = torch.tensor([[0.3, 0.4, 0.75**0.5, 0.0], [0.0, 0.0, 0.6, -0.8]])
    assert torch.allclose(embeddings, expected)


def test_embedding_is_the_weighted_probabilities_and_the_instance_vector(encoder: ImageEncoder):
    images = torch.rand(6, 3, 28, 28)
    grey = encoder.prepare(images)
    features = (encoder.features(grey) + encoder.features(grey.flip(3))) / 2
    probabilities = encoder.class_head(features).softmax(dim=1)

    embeddings = encoder(images)

    assert torch.allclose(embeddings[:, :10], encoder.class_weight * probabilities, atol=1e-6)
    directions = torch.nn.functional.normalize(embeddings[:, 10:])
    assert torch.allclose(directions, encoder.describe(features), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (33, 3, 28, 28), (2, 3, 50, 41)])
def test_exported_equals_eager(encoder, exported, shape: tuple[int, ...]):
    images = torch.rand(shape)
    assert torch.allclose(exported(images), encoder(images), atol=1e-5)


def test_no_device_is_baked_in(encoder: ImageEncoder):
    on_meta = ImageEncoder().to("meta")
    tensors = [*on_meta.parameters(), *on_meta.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert on_meta(torch.empty(2, 3, 28, 28, device="meta")).shape == (2, encoder.embedding_dim)
