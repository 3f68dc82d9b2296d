"""Class probabilities are averaged, instance embeddings concatenated and projected."""

import numpy as np
import pytest
import torch

from reverse_image_search.datasets import Dataset, LabeledImage
from reverse_image_search.encoders import TrainingOptions
from reverse_image_search.encoders.averaged import AveragedEncoder, train_averaged_encoder
from reverse_image_search.encoders.fashion import FashionEncoder, train_one
from reverse_image_search.serving.export import check_export, load_torchscript, write_model_files


@pytest.fixture(scope="module")
def averaged() -> AveragedEncoder:
    torch.manual_seed(0)
    encoders = [FashionEncoder(width=16), FashionEncoder(width=16)]
    with torch.no_grad():  # as after training: running statistics that are not 0 and 1
        for encoder in encoders:
            encoder.train().heads(encoder.features(torch.rand(64, 1, 28, 28)))
    return AveragedEncoder(encoders).eval().requires_grad_(False)


def test_any_size_becomes_a_unit_vector_of_at_most_128_dimensions(averaged):
    embeddings = averaged(torch.rand(3, 3, 7, 90))

    assert averaged.embedding_dim == 128
    assert embeddings.shape == (3, 128)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_class_part_is_the_weighted_mean_of_the_probabilities(averaged):
    images = torch.rand(3, 3, 28, 28)
    grayscale = averaged.encoders[0].preprocess(images)
    first, second = (encoder.flip_averaged_heads(grayscale)[0] for encoder in averaged.encoders)

    class_part = averaged(images)[:, :10]

    assert torch.allclose(class_part, averaged.class_weight * (first + second) / 2, atol=1e-6)


def test_instance_part_is_the_projected_concatenation(averaged):
    images = torch.rand(3, 3, 28, 28)
    grayscale = averaged.encoders[0].preprocess(images)
    heads = [encoder.flip_averaged_heads(grayscale) for encoder in averaged.encoders]
    joined = torch.cat([embeddings for _probabilities, embeddings in heads], dim=1)
    projected = joined @ averaged.projection.weight.T

    instance_part = averaged(images)[:, 10:]

    cosine = torch.nn.functional.cosine_similarity
    assert torch.allclose(
        cosine(instance_part[:1], instance_part), cosine(projected[:1], projected), atol=1e-5
    )


def test_a_mirror_image_has_the_same_embedding(averaged):
    images = torch.rand(4, 3, 28, 28)
    assert torch.allclose(averaged(images), averaged(images.flip(3)), atol=1e-6)


def test_exported_equals_eager(averaged, tmp_path):
    write_model_files({"model.pt": averaged}, tmp_path / "1", input_ndim=4)

    exported = load_torchscript(tmp_path / "1" / "model.pt")

    assert check_export(exported, averaged, torch.rand(5, 3, 40, 30)) < 1e-5


def test_encoders_are_trained_from_different_seeds():
    pixels = np.random.default_rng(0).integers(0, 256, (128, 28, 28), np.uint8)
    labels = ["stripes", "checks"]
    gallery = [LabeledImage(image, "noise", labels[i % 2]) for i, image in enumerate(pixels)]
    dataset = Dataset("noise", gallery, [], labels)

    averaged = train_averaged_encoder(dataset, TrainingOptions(epochs=1, seed=1))

    images, indices = torch.from_numpy(pixels), torch.arange(128) % 2
    grayscale = torch.rand(4, 1, 28, 28)
    assert len(averaged.encoders) == 3
    for encoder, seed in zip(averaged.encoders, (3, 4, 5), strict=True):
        alone = train_one(images, indices, epochs=1, seed=seed)
        expected = alone.flip_averaged_heads(grayscale)[0]
        assert torch.equal(encoder.flip_averaged_heads(grayscale)[0], expected)
