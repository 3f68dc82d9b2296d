"""The fashion encoder: shapes of the contract, unit length, preprocessing, TorchScript."""

import io
import warnings

import numpy as np
import pytest
import torch

from reverse_image_search.datasets import Dataset, LabeledImage
from reverse_image_search.encoders import EncoderError, TrainingOptions
from reverse_image_search.encoders.fashion import (
    FashionEncoder,
    join_parts,
    train_fashion_encoder,
    train_one,
)


@pytest.fixture(scope="module")
def encoder() -> FashionEncoder:
    torch.manual_seed(0)
    encoder = FashionEncoder()
    with torch.no_grad():  # as after training: running statistics that are not 0 and 1
        encoder.train().features(torch.rand(64, 1, 28, 28))
    return encoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def exported(encoder: FashionEncoder) -> torch.jit.ScriptModule:
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
def test_any_size_becomes_a_unit_vector(encoder: FashionEncoder, shape: tuple[int, ...]):
    embeddings = encoder(torch.rand(shape))
    assert embeddings.shape == (shape[0], encoder.embedding_dim)
    assert embeddings.dtype == torch.float32
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1.0] * shape[0], abs=1e-5)


def test_embedding_has_at_most_128_dimensions(encoder: FashionEncoder):
    assert encoder.embedding_dim == 10 + 64


def test_gray_pixels_of_the_right_size_are_unchanged(encoder: FashionEncoder):
    images = _grey(3, 28, 28)
    assert (encoder.preprocess(images) - images[:, :1]).abs().max() < 2e-7  # rounding


def test_colors_become_gray_by_their_luma(encoder: FashionEncoder):
    colors = torch.eye(3).view(3, 3, 1, 1).expand(-1, -1, 28, 28)  # red, green, blue
    assert encoder.preprocess(colors).mean(dim=(1, 2, 3)).tolist() == pytest.approx(
        [0.299, 0.587, 0.114]
    )


def test_shrinking_averages_instead_of_skipping(encoder: FashionEncoder):
    stripes = torch.zeros(1, 3, 56, 56)
    stripes[..., ::2] = 1.0
    prepared = encoder.preprocess(stripes)
    assert prepared.std() < 0.05
    assert prepared.mean().item() == pytest.approx(0.5, abs=0.01)


def test_a_mirror_image_has_the_same_embedding(encoder: FashionEncoder):
    images = torch.rand(4, 3, 28, 28)
    assert torch.allclose(encoder(images), encoder(images.flip(3)), atol=1e-6)


def test_an_image_has_the_same_embedding_alone_and_in_a_batch(encoder: FashionEncoder):
    images = torch.rand(8, 3, 28, 28)
    alone = torch.cat([encoder(image[None]) for image in images])
    assert torch.allclose(encoder(images), alone, atol=1e-6)


def test_values_outside_0_to_1_are_clamped(encoder: FashionEncoder):
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


def test_embedding_is_weighted_probabilities_and_instance_embedding(encoder: FashionEncoder):
    images = torch.rand(6, 3, 28, 28)
    grayscale = encoder.preprocess(images)
    features = (encoder.features(grayscale) + encoder.features(grayscale.flip(3))) / 2
    probabilities = encoder.class_head(features).softmax(dim=1)

    embeddings = encoder(images)

    assert torch.allclose(embeddings[:, :10], encoder.class_weight * probabilities, atol=1e-6)
    directions = torch.nn.functional.normalize(embeddings[:, 10:])
    assert torch.allclose(directions, encoder.heads(features)[1], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (33, 3, 28, 28), (2, 3, 50, 41)])
def test_exported_equals_eager(encoder, exported, shape: tuple[int, ...]):
    images = torch.rand(shape)
    assert torch.allclose(exported(images), encoder(images), atol=1e-5)


def test_no_device_is_baked_in(encoder: FashionEncoder):
    on_meta = FashionEncoder().to("meta")
    tensors = [*on_meta.parameters(), *on_meta.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert on_meta(torch.empty(2, 3, 28, 28, device="meta")).shape == (2, encoder.embedding_dim)


def _noise(count: int, shape: tuple[int, ...] = (28, 28), label: str | None = "noise") -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    gallery = [LabeledImage(image, f"noise {i}", label) for i, image in enumerate(pixels)]
    return Dataset("noise", gallery, [], ["noise"] if label else [])


def test_whitening_changes_only_the_instance_part():
    dataset = _noise(256)
    images = torch.from_numpy(np.stack([image.pixels for image in dataset.gallery]))
    plain = train_one(images, torch.zeros(256, dtype=torch.int64), epochs=1, seed=0)
    whitened = train_fashion_encoder(dataset, TrainingOptions(epochs=1, seed=0))

    def spread_of_variances(encoder: FashionEncoder) -> torch.Tensor:
        vectors = encoder.heads(encoder.features(images[:, None] / 255))[1]
        log_variances = torch.linalg.eigvalsh(vectors.T @ vectors / len(vectors)).log()
        return log_variances.max() - log_variances.min()

    with torch.no_grad():
        assert spread_of_variances(whitened) < 0.7 * spread_of_variances(plain)
        for ours, expected in zip(
            whitened.class_head.parameters(), plain.class_head.parameters(), strict=True
        ):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize(
    "dataset", [_noise(4, (28, 30)), _noise(4, (28, 28, 3)), _noise(4, label=None), _noise(0)]
)
def test_unsuitable_training_images_are_refused(dataset):
    with pytest.raises(EncoderError, match="labeled 28 x 28 grayscale images"):
        train_fashion_encoder(dataset, TrainingOptions(epochs=1))
