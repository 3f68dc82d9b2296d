"""Learn what the head of a pretrained encoder does with its features. Closed forms, and seconds."""

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRINCIPAL_DIMS = 768  # of the features that are kept before anything is learned
EMBEDDING_DIMS = 512
RIDGE = 7.0  # of the pairs' scatter: more keeps the embedding closer to the features
CLASS_SCATTER = 0.3  # how much the scatter within classes counts besides that of the pairs
LABELED_RIDGE = 1.0  # instead of RIDGE, where classes count as well
LOGIT_SCALE = 10.0  # of the unit-length embedding, for the classifier
CLASSIFIER_DECAY = 2e-4
LABEL_SMOOTHING = 0.1
FEWEST_IMAGES = 200  # with less there is too little to learn from, and to choose by
HELD_OUT = 5  # one image of so many takes no part in training


def is_held_out(source: str) -> bool:
    """Whether the image of this source takes no part in training: a fifth of all, always the same.

    They choose between heads, and are the queries of an honest measurement.
    """
    return zlib.crc32(source.encode()) % HELD_OUT == 0


def learn_projection(
    originals: Tensor, copies: Tensor, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean (F,) and linear map (F, D) under which an image and its copy lie close together.

    The learned whitening of Mikolajczyk and Matas 2007 ("Improving descriptors for fast tree
    matching by optimal linear projection"), as Radenovic et al. 2018 use it: directions in which
    copies differ from their originals shrink, and of the rest those remain that tell images apart.
    With labels, directions in which images of one class differ shrink a little, too.

    `originals`, `copies` : (N, F), of which row i is of the same image; `labels` : (N,) int64
    """
    mean = originals.mean(dim=0)
    centered = originals - mean
    dims = min(PRINCIPAL_DIMS, len(originals), originals.shape[1])
    basis = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -dims:]  # rising variance
    points = centered @ basis
    scatter = _share((copies - originals) @ basis)
    ridge = RIDGE
    if labels is not None:
        sums = torch.zeros(int(labels.max()) + 1, dims).index_add_(0, labels, points)
        class_means = sums / labels.bincount().clamp(min=1)[:, None]
        scatter += CLASS_SCATTER * _share(points - class_means[labels])
        ridge = LABELED_RIDGE
    scatter = scatter / scatter.trace() + ridge / dims * torch.eye(dims)
    variances, directions = torch.linalg.eigh(scatter)
    whitening = directions * variances**-0.5
    whitened = points @ whitening
    strongest = torch.linalg.eigh(whitened.T @ whitened).eigenvectors[:, -EMBEDDING_DIMS:]
    return mean, basis @ whitening @ strongest


def _share(differences: Tensor) -> Tensor:
    scatter = differences.T @ differences
    return scatter / scatter.trace()


def learn_classifier(embeddings: Tensor, labels: Tensor) -> nn.Linear:
    """Logistic regression on embeddings (N, D) of unit length, times `LOGIT_SCALE`."""
    inputs = LOGIT_SCALE * embeddings
    classifier = nn.Linear(inputs.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.LBFGS(
        classifier.parameters(), max_iter=50, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = classifier(inputs)
        value = F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
        value = value + CLASSIFIER_DECAY * classifier.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return classifier.requires_grad_(False)


def same_item_recall(originals: Tensor, copies: Tensor, queries: Tensor) -> float:
    """R@1: the share of `queries` (n,) whose copy is nearest to its own original, of all (N, D)."""
    return (nearest(copies[queries], originals) == queries).float().mean().item()


def same_kind_precision(originals: Tensor, labels: Tensor, queries: Tensor) -> float:
    """P@1: the share of `queries` (n,) whose nearest other original has their label."""
    found = nearest(originals[queries], originals, exclude=queries)
    return (labels[found] == labels[queries]).float().mean().item()


def nearest(points: Tensor, gallery: Tensor, exclude: Tensor | None = None) -> Tensor:
    """Position in `gallery` (N, D) of the nearest to each of `points` (n, D), but not `exclude`."""
    scores = points @ gallery.T
    if exclude is not None:
        scores[torch.arange(len(points)), exclude] = -torch.inf
    return scores.argmax(dim=1)
