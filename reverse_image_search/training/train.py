"""Train the image encoder: one network, a loss for each head; or several such encoders."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from tqdm import tqdm

from reverse_image_search.encoders.averaged import EncoderEnsemble
from reverse_image_search.encoders.fashion import ImageEncoder
from reverse_image_search.training.augmentation import mirror_half, strong_view
from reverse_image_search.training.muon import Muon

DEFAULT_EPOCHS = 9
ENSEMBLE_SIZE = 3  # encoders of the `--quality` build
BATCH_SIZE = 384  # also how many images the instance loss tells apart: more is better
CONVOLUTION_LEARNING_RATE = 0.1
HEAD_LEARNING_RATE = 0.2
WEIGHT_DECAY = 5e-4
WARM_UP = 0.2  # share of the steps
LABEL_SMOOTHING = 0.1
TEMPERATURE = 0.1  # of the instance loss: lower looks harder at the nearest wrong image
STRONG_CLASS_WEIGHT = 0.3  # of the class loss on strong views
WHITENING_IMAGES = 6_000  # whose instance vectors tell how much each direction varies


def train_encoder(
    images: Tensor, labels: Tensor, *, epochs: int, seed: int, progress: bool = True
) -> ImageEncoder:
    """Train on labelled images; the same seed on the same machine gives the same encoder.

    Parameters
    ----------
    images : (N, 28, 28) uint8
    labels : (N,) int64
    epochs : passes over the images

    Returns
    -------
    ImageEncoder in evaluation mode, float32, its batch norms folded into the layers before them
    and its instance vectors half whitened.
    """
    encoder = _train(images, labels, epochs, seed, "training" if progress else None)
    half_whiten(encoder, images[:WHITENING_IMAGES].unsqueeze(1) / 255)
    return encoder


def train_ensemble(
    images: Tensor, labels: Tensor, *, epochs: int, seed: int, progress: bool = True
) -> EncoderEnsemble:
    """Train several encoders, each as `train_encoder` does, into one; no two seeds share any.

    Returns
    -------
    EncoderEnsemble in evaluation mode, its joined instance vectors half whitened.
    """
    encoders = [
        _train(
            images,
            labels,
            epochs,
            seed * ENSEMBLE_SIZE + member,
            f"training {member + 1} of {ENSEMBLE_SIZE}" if progress else None,
        )
        for member in range(ENSEMBLE_SIZE)
    ]
    ensemble = EncoderEnsemble(encoders).eval().to(images.device)
    half_whiten_together(ensemble, images[:WHITENING_IMAGES].unsqueeze(1) / 255)
    return ensemble


def _train(
    images: Tensor, labels: Tensor, epochs: int, seed: int, description: str | None
) -> ImageEncoder:
    """One encoder, its batch norms folded; `description` stands before the progress bar."""
    torch.manual_seed(seed)
    encoder = ImageEncoder(num_classes=int(labels.max()) + 1)
    encoder.train().to(memory_format=torch.channels_last)
    batch_size = min(BATCH_SIZE, len(images))
    steps_per_epoch = len(images) // batch_size
    steps = epochs * steps_per_epoch
    optimizers = _optimizers(encoder)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / (WARM_UP * steps), (1 - step / steps) / (1 - WARM_UP)),
        )
        for optimizer in optimizers
    ]
    with tqdm(total=steps, desc=description, unit="batch", disable=description is None) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for batch in order.split(batch_size)[:steps_per_epoch]:
                pixels = images[batch].unsqueeze(1) / 255  # (batch, 1, 28, 28)
                encoder.zero_grad()
                encoder_loss(encoder, pixels, labels[batch]).backward()
                for optimizer, schedule in zip(optimizers, schedules, strict=True):
                    optimizer.step()
                    schedule.step()
                bar.update()
    return fold_batch_norms(encoder.eval())


def encoder_loss(encoder: ImageEncoder, pixels: Tensor, labels: Tensor) -> Tensor:
    """Class loss of both views plus instance loss between them.

    The class loss counts less on the strong view: a query for the same kind comes upright, and
    a small network that must also classify turned images gets worse at upright ones.
    """
    views = torch.cat([mirror_half(pixels), strong_view(pixels)])
    with _fast_arithmetic(views.device):
        features = encoder.features(views.contiguous(memory_format=torch.channels_last))
    features = features.float()
    logits, strong_logits = encoder.class_head(features).chunk(2)
    vectors, strong_vectors = encoder.describe(features).chunk(2)
    return (
        F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
        + STRONG_CLASS_WEIGHT
        * F.cross_entropy(strong_logits, labels, label_smoothing=LABEL_SMOOTHING)
        + instance_loss(vectors, strong_vectors)
    )


def _fast_arithmetic(device: torch.device) -> torch.autocast:
    """bfloat16 where the processor has it; elsewhere it is emulated, ten times slower."""
    has_bfloat16 = device.type != "cpu" or (
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16)


def instance_loss(vectors: Tensor, other_vectors: Tensor) -> Tensor:
    """InfoNCE (van den Oord 2018): each view must pick its own other view out of the batch.

    Parameters
    ----------
    vectors, other_vectors : (batch, D) unit length; row i of both shows the same image
    """
    similarity = vectors @ other_vectors.T / TEMPERATURE
    own = torch.arange(len(vectors), device=vectors.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def _optimizers(encoder: ImageEncoder) -> list[torch.optim.Optimizer]:
    convolutions = [p for p in encoder.parameters() if p.ndim == 4]
    others = [p for p in encoder.parameters() if p.ndim != 4]
    return [
        Muon(convolutions, lr=CONVOLUTION_LEARNING_RATE),
        torch.optim.SGD(
            others, lr=HEAD_LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
        ),
    ]


def fold_batch_norms(encoder: ImageEncoder) -> ImageEncoder:
    """Put each batch norm into the layer before it: same function, fewer operations."""
    fuse = {nn.BatchNorm2d: fuse_conv_bn_eval, nn.BatchNorm1d: fuse_linear_bn_eval}
    for block in encoder.modules():
        if isinstance(block, nn.Sequential):
            for position, layer in enumerate(block):
                if type(layer) in fuse:
                    block[position - 1] = fuse[type(layer)](block[position - 1], layer)
                    block[position] = nn.Identity()
    return encoder


@torch.no_grad()
def half_whiten(encoder: ImageEncoder, pixels: Tensor) -> None:
    """Bring the directions of the instance vectors halfway to equal variance.

    Parameters
    ----------
    encoder : trained, its batch norms folded
    pixels : (N, 1, 28, 28) float32, 0 to 1
    """
    linear, _folded_norm = encoder.instance_head
    vectors = torch.cat([encoder.describe(encoder.features(part)) for part in pixels.split(500)])
    whitening = half_whitening(vectors, encoder.instance_dims)
    linear.weight.copy_(whitening @ linear.weight)
    linear.bias.copy_(whitening @ linear.bias)


@torch.no_grad()
def half_whiten_together(ensemble: EncoderEnsemble, pixels: Tensor) -> None:
    """The same for an ensemble, over the joined instance vectors, which lose dimensions there.

    Parameters
    ----------
    ensemble : of trained encoders, their batch norms folded
    pixels : (N, 1, 28, 28) float32, 0 to 1
    """
    vectors = torch.cat([ensemble.look_both_ways(part)[1] for part in pixels.split(500)])
    ensemble.projection.weight.copy_(half_whitening(vectors, ensemble.projection.out_features))


def half_whitening(vectors: Tensor, dims: int) -> Tensor:
    """Linear map, (dims, D), to the `dims` strongest directions of vectors (N, D), half whitened.

    What is common to many images counts less then (whitening: Jegou and Chum 2012, "Negative
    evidences and co-occurences in image retrieval"). All the way raises noise as well.
    """
    # About zero, not about the mean: what all vectors have in common is to be lowered, too.
    variances, directions = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
    variances.clamp_(min=1e-3 * variances.mean())  # noise alone is not raised without end
    # To the power of -1/2 they would become equal; -1/4 goes halfway.
    return (directions * variances**-0.25).T[-dims:]  # eigh sorts by rising variance
