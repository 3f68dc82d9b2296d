"""Training learns and is repeatable; its parts, against values known by hand."""

import pytest
import torch

from reverse_image_search.encoders.fashion import FashionEncoder
from reverse_image_search.training.muon import Muon, orthogonalize
from reverse_image_search.training.train import (
    encoder_loss,
    fold_batch_norms,
    half_whitening,
    instance_loss,
    train_two_heads,
)

STRIPES, CHECKS = 0, 1


def _make_patterns(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes that any encoder can tell apart: stripes and checkerboards, with noise."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.meshgrid(torch.arange(28), torch.arange(28), indexing="ij")
    patterns = torch.stack([columns // 4 % 2, (rows // 4 + columns // 4) % 2]) * 150
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 100, (count, 28, 28), generator=generator)
    return (patterns[labels] + noise).to(torch.uint8), labels


def train(images, labels, epochs: int, seed: int) -> FashionEncoder:
    return train_two_heads(lambda: FashionEncoder(num_classes=2), images, labels, epochs, seed)


@pytest.fixture(scope="module")
def trained() -> FashionEncoder:
    images, labels = _make_patterns(256)
    return train(images, labels, 8, 0)


def test_trained_encoder_is_ready_to_export(trained: FashionEncoder):
    assert not trained.training
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    assert not any(isinstance(layer, norms) for layer in trained.modules())
    assert trained.embedding_dim == 2 + 64


def test_training_tells_two_patterns_apart(trained: FashionEncoder):
    images, labels = _make_patterns(300)
    with torch.inference_mode():
        embeddings = trained(images[256:, None].expand(-1, 3, -1, -1) / 255)
    similarity = embeddings @ embeddings.T
    same = labels[256:, None] == labels[None, 256:]
    assert similarity[same].mean() > similarity[~same].mean() + 0.2


def test_the_same_seed_gives_the_same_encoder():
    images, labels = _make_patterns(128)
    first, second, other = (train(images, labels, 2, seed) for seed in (3, 3, 4))
    pixels = torch.rand(4, 3, 28, 28)
    assert torch.equal(first(pixels), second(pixels))
    assert not torch.allclose(first(pixels), other(pixels), atol=1e-3)


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_bfloat16_only_where_the_processor_has_it(monkeypatch, has_bfloat16):
    """Without it, oneDNN emulates: a build of minutes takes hours."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bfloat16)
    encoder = FashionEncoder(num_classes=2).train()
    seen = []
    encoder.backbone.register_forward_hook(lambda _module, _inputs, maps: seen.append(maps.dtype))

    encoder_loss(encoder, torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 0, 1]))

    assert seen == [torch.bfloat16 if has_bfloat16 else torch.float32]


def test_fewer_images_than_a_batch_are_enough():
    images, labels = _make_patterns(10)
    encoder = train(images, labels, 1, 0)
    assert encoder(torch.rand(2, 3, 28, 28)).isfinite().all()


def test_folding_batch_norms_changes_nothing_but_rounding():
    torch.manual_seed(0)
    encoder = FashionEncoder().train()
    with torch.no_grad():
        for _ in range(3):
            encoder.features(torch.rand(32, 1, 28, 28))
        encoder.eval()
        pixels = torch.rand(4, 3, 28, 28)
        before = encoder(pixels)
        assert torch.allclose(fold_batch_norms(encoder)(pixels), before, atol=1e-5)


def test_half_whitening_keeps_the_strongest_directions_and_halves_their_spread():
    # One vector along each axis: second moments of 3, 1/300 and 1/48.
    vectors = torch.diag(torch.tensor([3.0, 0.1, 0.25]))

    whitening = half_whitening(vectors, dims=2)

    # To the power of -1/4: 1/48 and 3, the strongest last; signs are arbitrary.
    expected = torch.tensor([[0.0, 0.0, 48**0.25], [3**-0.25, 0.0, 0.0]])
    assert torch.allclose(whitening.abs(), expected, atol=1e-5)


def test_instance_loss_is_low_only_for_the_right_pairs():
    vectors = torch.eye(4)
    assert instance_loss(vectors, vectors).item() == pytest.approx(3 * 4.54e-5, rel=0.01)  # 3/e^10
    assert instance_loss(vectors, vectors.roll(1, dims=0)) > 9


def test_instance_loss_of_equal_vectors_is_that_of_guessing():
    vectors = torch.tensor([[1.0, 0.0]]).expand(8, -1)
    assert instance_loss(vectors, vectors).item() == pytest.approx(torch.tensor(8.0).log().item())


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
def test_orthogonalize_brings_all_singular_values_near_one(shape: tuple[int, int]):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    before = torch.linalg.svdvals(matrix)
    after = torch.linalg.svdvals(orthogonalize(matrix, iterations=5))
    assert before.max() / before.median() > 1.3
    assert after.median() > 0.5
    assert after.max() < 1.4
    # The direction stays: the nearest orthogonal matrix of a matrix has the same singular vectors.
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    agreement = (orthogonalize(matrix, iterations=5) * (left @ right)).sum() / min(shape)
    assert agreement > 0.6


def test_muon_reduces_the_loss():
    torch.manual_seed(0)
    target = torch.nn.functional.normalize(torch.randn(8, 4, 3, 3), dim=0)
    weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    optimizer = Muon([weight], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (weight - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
