"""An ensemble averages what its encoders say of the class and joins what they say of the image."""

import pytest
import torch

from reverse_image_search.encoders.averaged import EncoderEnsemble
from reverse_image_search.encoders.fashion import ImageEncoder
from reverse_image_search.serving.export import check_export, export_torchscript, load_torchscript


@pytest.fixture(scope="module")
def ensemble() -> EncoderEnsemble:
    torch.manual_seed(0)
    encoders = [ImageEncoder(width=16), ImageEncoder(width=16)]
    with torch.no_grad():  # as after training: running statistics that are not 0 and 1
        for encoder in encoders:
            encoder.train().describe(encoder.features(torch.rand(64, 1, 28, 28)))
    return EncoderEnsemble(encoders).eval().requires_grad_(False)


def test_any_size_becomes_a_unit_vector_of_at_most_128_dimensions(ensemble):
    embeddings = ensemble(torch.rand(3, 3, 7, 90))

    assert ensemble.embedding_dim == 128
    assert embeddings.shape == (3, 128)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_class_part_is_the_weighted_mean_of_the_probabilities(ensemble):
    images = torch.rand(3, 3, 28, 28)
    grey = ensemble.encoders[0].prepare(images)
    first, second = (encoder.look_both_ways(grey)[0] for encoder in ensemble.encoders)

    class_part = ensemble(images)[:, :10]

    assert torch.allclose(class_part, ensemble.class_weight * (first + second) / 2, atol=1e-6)


def test_instance_part_has_the_cosines_of_the_projected_joined_vectors(ensemble):
    images = torch.rand(3, 3, 28, 28)
    grey = ensemble.encoders[0].prepare(images)
    joined = torch.cat([encoder.look_both_ways(grey)[1] for encoder in ensemble.encoders], dim=1)
    projected = joined @ ensemble.projection.weight.T

    instance_part = ensemble(images)[:, 10:]

    cosine = torch.nn.functional.cosine_similarity
    assert torch.allclose(
        cosine(instance_part[:1], instance_part), cosine(projected[:1], projected), atol=1e-5
    )


def test_a_mirror_image_has_the_same_embedding(ensemble):
    images = torch.rand(4, 3, 28, 28)
    assert torch.allclose(ensemble(images), ensemble(images.flip(3)), atol=1e-6)


def test_exported_equals_eager(ensemble, tmp_path):
    export_torchscript(ensemble, tmp_path / "1" / "model.pt")

    exported = load_torchscript(tmp_path / "1" / "model.pt")

    assert check_export(exported, ensemble, torch.rand(5, 3, 40, 30)) < 1e-5
