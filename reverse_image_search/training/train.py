"""Train an encoder with two heads: one backbone, a loss for each head."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from reverse_image_search.training.augmentation import random_horizontal_flip, strong_view
from reverse_image_search.training.muon import Muon

BATCH_SIZE = 384  # also the number of negatives of the instance loss: more is better
CONVOLUTION_LEARNING_RATE = 0.1
HEAD_LEARNING_RATE = 0.2
WEIGHT_DECAY = 5e-4
WARM_UP = 0.2  # share of the steps
LABEL_SMOOTHING = 0.1
TEMPERATURE = 0.1  # of the instance loss: lower weighs the hardest negatives more
STRONG_CLASS_WEIGHT = 0.3  # of the class loss on strongly augmented views


class TwoHeadedEncoder(nn.Module):
    """What `train_two_heads` trains: a backbone, a class head, and an instance head."""

    def features(self, images: Tensor) -> Tensor:
        """(batch, 1, height, width), 0 to 1 -> (batch, F)."""
        raise NotImplementedError

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, F) -> class logits (batch, C), instance embeddings (batch, D), unit length."""
        raise NotImplementedError


Encoder = TypeVar("Encoder", bound=TwoHeadedEncoder)


def train_two_heads(
    new_encoder: Callable[[], Encoder],
    images: Tensor,
    labels: Tensor,
    epochs: int,
    seed: int,
    description: str | None = None,
    instance_loss_weight: float = 1.0,
) -> Encoder:
    """Train an encoder; the same seed on the same machine gives the same encoder.

    `images` are (N, height, width) uint8, `labels` (N,) int64. `description` stands before the
    progress bar; None shows no bar. `instance_loss_weight` : see `encoder_loss`

    Returns
    -------
    the encoder in evaluation mode, float32, batch norms folded into the layers before them
    """
    torch.manual_seed(seed)
    encoder = new_encoder().to(images.device)
    encoder.train()
    # PyTorch's type hints lack this overload.
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch_size = min(BATCH_SIZE, len(images))
    steps_per_epoch = len(images) // batch_size
    steps = epochs * steps_per_epoch
    optimizers = _optimizers(encoder)

    def rise_and_fall(step: int) -> float:
        return min((step + 1) / (WARM_UP * steps), (1 - step / steps) / (1 - WARM_UP))

    schedules = [LambdaLR(optimizer, rise_and_fall) for optimizer in optimizers]
    with tqdm(total=steps, desc=description, unit="batch", disable=description is None) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for batch in order.split(batch_size)[:steps_per_epoch]:
                pixels = images[batch].unsqueeze(1) / 255  # (batch, 1, 28, 28)
                encoder.zero_grad()
                loss = encoder_loss(encoder, pixels, labels[batch], instance_loss_weight)
                loss.backward()
                for optimizer, schedule in zip(optimizers, schedules, strict=True):
                    optimizer.step()
                    schedule.step()
                bar.update()
    return fold_batch_norms(encoder.eval())


def encoder_loss(
    encoder: TwoHeadedEncoder, pixels: Tensor, labels: Tensor, instance_loss_weight: float = 1.0
) -> Tensor:
    """Class loss of both views plus weighted instance loss between them.

    The class loss counts less on the strong view: category-level queries are upright, and a small
    network that must also classify rotated images gets worse at upright ones.
    """
    views = torch.cat([random_horizontal_flip(pixels), strong_view(pixels)])
    with _fast_arithmetic(views.device):
        features = encoder.features(views.contiguous(memory_format=torch.channels_last))
    logits, embeddings = encoder.heads(features.float())
    weak_loss, strong_loss = (
        F.cross_entropy(part, labels, label_smoothing=LABEL_SMOOTHING) for part in logits.chunk(2)
    )
    class_loss = weak_loss + STRONG_CLASS_WEIGHT * strong_loss
    return class_loss + instance_loss_weight * instance_loss(*embeddings.chunk(2))


def _fast_arithmetic(device: torch.device) -> torch.autocast:
    """bfloat16 if the processor has it; otherwise it would be emulated, ten times slower."""
    has_bfloat16 = device.type != "cpu" or (
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16)


def instance_loss(embeddings: Tensor, other_embeddings: Tensor) -> Tensor:
    """InfoNCE (van den Oord 2018): find the other view of the same image within the batch.

    Row i of both, (batch, D) unit length, shows the same image.
    """
    similarity = embeddings @ other_embeddings.T / TEMPERATURE
    own = torch.arange(len(embeddings), device=embeddings.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2


def _optimizers(encoder: nn.Module) -> list[torch.optim.Optimizer]:
    convolutions = [p for p in encoder.parameters() if p.ndim == 4]
    others = [p for p in encoder.parameters() if p.ndim != 4]
    return [
        Muon(convolutions, lr=CONVOLUTION_LEARNING_RATE),
        torch.optim.SGD(
            others, lr=HEAD_LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
        ),
    ]


def fold_batch_norms(encoder: Encoder) -> Encoder:
    """Fold each batch norm into the layer before it: same function, fewer operations."""
    fuse: dict[type[nn.Module], Callable[..., nn.Module]] = {
        nn.BatchNorm2d: fuse_conv_bn_eval,
        nn.BatchNorm1d: fuse_linear_bn_eval,
    }
    for block in encoder.modules():
        if isinstance(block, nn.Sequential):
            for position, layer in enumerate(block):
                if type(layer) in fuse:
                    block[position - 1] = fuse[type(layer)](block[position - 1], layer)
                    block[position] = nn.Identity()
    return encoder


def half_whitening(embeddings: Tensor, dims: int) -> Tensor:
    """Linear map (dims, D) of embeddings (N, D) to their strongest directions, half whitened.

    Directions that many images share count less afterwards (whitening: Jegou and Chum 2012,
    "Negative evidences and co-occurences in image retrieval"). Full whitening amplifies noise.
    """
    # About zero, not the mean: what all embeddings have in common should shrink as well.
    variances, directions = torch.linalg.eigh(embeddings.T @ embeddings / len(embeddings))
    variances.clamp_(min=1e-3 * variances.mean())  # noise is not amplified without bound
    # The power -1/2 would make all variances equal; -1/4 goes halfway.
    return (directions * variances**-0.25).T[-dims:]  # eigh sorts by rising variance
