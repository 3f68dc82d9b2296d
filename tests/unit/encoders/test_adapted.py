"""Heads that are learned on frozen features; the network is a made-up one."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reverse_image_search.datasets import Dataset, LabeledImage
from reverse_image_search.encoders import adapted
from reverse_image_search.encoders.pretrained import PretrainedEncoder
from reverse_image_search.encoders.spec import TrainingOptions
from reverse_image_search.serving.export import load_torchscript, write_model_files
from reverse_image_search.training.adaptation import is_held_out

KINDS = 4


def adapt(encoder: PretrainedEncoder, dataset: Dataset) -> PretrainedEncoder:
    return adapted.adapt(encoder, dataset, (16, 32), TrainingOptions())


def noisy_photos(count: int, with_labels: bool) -> Dataset:
    """Photos of 8 colored tiles each. The kind is the hue of the first tile."""
    generator = np.random.default_rng(0)
    images = []
    for i in range(count):
        tiles = generator.integers(60, 196, (8, 3))
        hue = 8 * (i % KINDS)
        tiles[0] = np.array([110 + hue, 110, 110 - hue]) + generator.integers(-4, 5, 3)
        pixels = tiles.reshape(2, 4, 3).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
        label = f"kind {i % KINDS}" if with_labels else None
        images.append(LabeledImage(pixels, f"photo {i}", label))
    names = [f"kind {i}" for i in range(KINDS)] if with_labels else []
    return Dataset("noisy", images, [], names)


class TilesAndBrightness(nn.Module):
    """Features are the colors of the tiles, and twelve times the brightness, which differs between
    copies, so that raw features find few originals.
    """

    def forward(self, images: Tensor) -> Tensor:
        tiles = nn.functional.adaptive_avg_pool2d(images, [2, 4]).flatten(1)
        return torch.cat([tiles, 12 * (tiles.mean(dim=1, keepdim=True) - 0.5)], dim=1)


def recolored(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A copy that is brighter or darker."""
    return (pixels.astype(int) + generator.integers(-40, 41)).astype(np.uint8)


@pytest.fixture(autouse=True)
def copies_are_recolored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapted, "photo_view", recolored)


def new_encoder() -> PretrainedEncoder:
    return PretrainedEncoder(nn.Identity(), TilesAndBrightness()).eval()


def precision_of_held_out(encoder: nn.Module, dataset: Dataset) -> float:
    """P@1 by a plain loop, over images that took no part in training."""
    pixels = np.stack([image.pixels for image in dataset.gallery]).transpose(0, 3, 1, 2)
    embeddings = encoder(torch.from_numpy(pixels / np.float32(255))).numpy()
    hits = []
    for i, image in enumerate(dataset.gallery):
        if is_held_out(image.source):
            scores = embeddings @ embeddings[i]
            scores[i] = -np.inf
            hits.append(dataset.gallery[scores.argmax()].label == image.label)
    return float(np.mean(hits))


def recall_at_1(encoder: nn.Module, originals: np.ndarray, copies: np.ndarray) -> float:
    known, queries = (
        encoder(torch.from_numpy(part.transpose(0, 3, 1, 2) / np.float32(255))).numpy()
        for part in (originals, copies)
    )
    return float(((queries @ known.T).argmax(axis=1) == np.arange(len(originals))).mean())


@torch.no_grad()
def test_it_finds_more_copies_and_more_of_the_same_kind(tmp_path, capsys):
    dataset = noisy_photos(400, with_labels=True)
    raw, encoder = new_encoder(), adapt(new_encoder(), dataset)
    assert precision_of_held_out(encoder, dataset) > precision_of_held_out(raw, dataset) + 0.2

    generator = np.random.default_rng(1)
    originals = np.stack([image.pixels for image in dataset.gallery])
    copies = np.stack([recolored(pixels, generator) for pixels in originals])
    raw_recall, recall = (recall_at_1(model, originals, copies) for model in (raw, encoder))
    assert recall > max(0.95, raw_recall + 0.2)
    assert "On held-out ones: same item R@1" in capsys.readouterr().out

    # It exports, and batches do not matter.
    write_model_files({"model.pt": encoder}, tmp_path / "1", input_ndim=4)
    exported = load_torchscript(tmp_path / "1" / "model.pt")
    images = torch.rand(3, 3, 20, 24)
    assert torch.allclose(exported(images[:, None]), encoder(images), atol=1e-6)
    assert torch.allclose(encoder(images[:1]), encoder(images)[:1], atol=1e-6)
    assert encoder(images).norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


@torch.no_grad()
def test_without_labels_it_learns_from_copies_alone():
    dataset = noisy_photos(400, with_labels=False)
    encoder = adapt(new_encoder(), dataset)
    assert isinstance(encoder.head, adapted.InstanceHead)


@torch.no_grad()
def test_a_head_that_is_worse_is_not_taken(monkeypatch: pytest.MonkeyPatch, capsys):
    class Useless(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return torch.ones_like(features) / features.shape[1] ** 0.5

    monkeypatch.setattr(adapted, "learn_heads", lambda _features: [Useless()])
    encoder = new_encoder()
    raw_head = encoder.head
    assert adapt(encoder, noisy_photos(250, False)).head is raw_head
    assert "no learned head is better" in capsys.readouterr().out


def test_few_images_leave_it_as_it_is(capsys):
    encoder = new_encoder()
    raw_head = encoder.head
    assert adapt(encoder, noisy_photos(20, True)).head is raw_head
    assert "not adapted" in capsys.readouterr().out
