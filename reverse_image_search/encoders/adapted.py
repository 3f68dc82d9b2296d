"""Adapt a pretrained encoder to the images of a gallery: learn its head, keep its network."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from reverse_image_search.datasets import Dataset
from reverse_image_search.encoders.embedding import embed_each
from reverse_image_search.encoders.fashion import join_parts
from reverse_image_search.encoders.pretrained import PretrainedEncoder
from reverse_image_search.encoders.spec import TrainingOptions
from reverse_image_search.first_frame import ImageFileError
from reverse_image_search.training import adaptation
from reverse_image_search.training.augmentation import photo_view

SAMPLED_IMAGES = 4_000  # at most; each takes two or three passes through the network
MOST_CLASSES = 100  # each takes a dimension of the embedding
CLASS_WEIGHT = 0.5  # see `join_parts`; more finds more of the same kind, and fewer copies


class InstanceHead(nn.Module):
    """Linear map of centered features."""

    mean: Tensor
    projection: Tensor

    def __init__(self, mean: Tensor, projection: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, F) -> (batch, D), unit length."""
        return F.normalize((features - self.mean) @ self.projection)


class TwoPartHead(nn.Module):
    """Class probabilities beside the instance embedding, as the `fashion` encoder joins them."""

    def __init__(self, instance_head: InstanceHead, classifier: nn.Linear):
        super().__init__()
        self.instance_head, self.classifier = instance_head, classifier
        self.scale, self.class_weight = adaptation.LOGIT_SCALE, CLASS_WEIGHT

    def forward(self, features: Tensor) -> Tensor:
        """(batch, F) -> (batch, number of classes + D), unit length."""
        embeddings = self.instance_head(features)
        probabilities = self.classifier(self.scale * embeddings).softmax(dim=1)
        return join_parts(probabilities, embeddings, self.class_weight)


class Features(NamedTuple):
    """What the network makes of N images and of one perturbed copy of each."""

    originals: Tensor  # (N, F)
    copies: Tensor  # (N, F)
    labels: Tensor | None  # (N,) int64; None unless all have one of a few
    is_held_out: Tensor  # (N,) bool


class Score(NamedTuple):
    """Of held-out images: both halves of the search quality."""

    same_item: float  # R@1 of perturbed copies
    same_kind: float  # P@1; 0 without labels


@torch.no_grad()
def adapt(
    encoder: PretrainedEncoder,
    dataset: Dataset,
    input_size: tuple[int, int],
    options: TrainingOptions,
) -> PretrainedEncoder:
    """Give `encoder` the best head that can be learned from a sample of the gallery.

    Unless `options` say that it is not to be adapted.

    Held-out images choose: the head stays as it is unless another is at least as good on both
    halves of the search quality.
    """
    if not options.adapt:
        return encoder
    if len(dataset.gallery) < adaptation.FEWEST_IMAGES:
        print(
            f"The encoder is not adapted: that takes {adaptation.FEWEST_IMAGES} images.", flush=True
        )
        return encoder
    raw_head = encoder.head
    encoder.head = nn.Identity()
    features = extract_features(encoder, dataset, input_size, options.seed)
    encoder.head = raw_head
    if len(features.originals) < adaptation.FEWEST_IMAGES / 2 or not features.is_held_out.any():
        print("The encoder is not adapted: few of the images can be read.", flush=True)
        return encoder
    raw = best = score_head(raw_head, features)
    for head in learn_heads(features):
        score = score_head(head, features)
        is_no_worse = score.same_item >= raw.same_item and score.same_kind >= raw.same_kind
        if is_no_worse and sum(score) > sum(best):
            best, encoder.head = score, head
    if encoder.head is raw_head:
        print("The encoder is not adapted: no learned head is better on held-out images.")
        return encoder
    figures = f"same item R@1 {raw.same_item:.3f} -> {best.same_item:.3f}"
    if features.labels is not None:
        figures += f", same kind P@1 {raw.same_kind:.3f} -> {best.same_kind:.3f}"
    print(f"The encoder is adapted to the images. On held-out ones: {figures}.", flush=True)
    return encoder


def learn_heads(features: Features) -> Iterator[nn.Module]:
    """Learn the heads to choose from, of all but the held-out images."""
    rows = (~features.is_held_out).nonzero().squeeze(1)
    originals, copies = features.originals[rows], features.copies[rows]
    yield InstanceHead(*adaptation.learn_projection(originals, copies))
    if features.labels is not None:
        labels = features.labels[rows]
        head = InstanceHead(*adaptation.learn_projection(originals, copies, labels))
        embeddings = head(torch.cat([originals, copies]))
        with torch.enable_grad():
            classifier = adaptation.learn_classifier(embeddings, labels.repeat(2))
        yield TwoPartHead(head, classifier)


def score_head(head: nn.Module, features: Features) -> Score:
    """Search for the held-out images among all."""
    queries = features.is_held_out.nonzero().squeeze(1)
    originals, copies = head(features.originals), head(features.copies)
    same_kind = 0.0
    if features.labels is not None:
        same_kind = adaptation.same_kind_precision(originals, features.labels, queries)
    return Score(adaptation.same_item_recall(originals, copies, queries), same_kind)


def extract_features(
    network: nn.Module, dataset: Dataset, input_size: tuple[int, int], seed: int
) -> Features:
    """Run the network on images of the gallery, drawn at random, and on a copy of each."""
    generator = np.random.default_rng(seed)
    positions = generator.permutation(len(dataset.gallery))[:SAMPLED_IMAGES]
    facts: list[tuple[str, str | None]] = []

    def views() -> Iterator[np.ndarray]:
        for position in tqdm(positions, desc="adapt", unit=" images", leave=False):
            try:
                image = dataset.gallery[int(position)]
            except ImageFileError:
                continue
            facts.append((image.source, image.label))
            yield image.pixels
            yield photo_view(image.pixels, generator)

    rows = [row for _, row in embed_each(network, views(), np.asarray, input_size)]
    features = torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 1)
    names = {label: i for i, label in enumerate(sorted({str(label) for _, label in facts}))}
    has_labels = 1 < len(names) <= MOST_CLASSES and all(label is not None for _, label in facts)
    labels = torch.tensor([names[str(label)] for _, label in facts]) if has_labels else None
    held_out = torch.tensor(
        [adaptation.is_held_out(source) for source, _ in facts], dtype=torch.bool
    )
    return Features(features[0::2], features[1::2], labels, held_out)
