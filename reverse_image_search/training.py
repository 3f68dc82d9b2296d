"""Train the image encoder: one network, a loss for each head."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from reverse_image_search.augmentation import mild_view, strong_view
from reverse_image_search.image_encoder import ImageEncoder

DEFAULT_EPOCHS = 10
QUALITY_EPOCHS = 40
BATCH_SIZE = 256
PEAK_LEARNING_RATE = 0.2
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
TEMPERATURE = 0.1  # of the instance loss: lower looks harder at the nearest wrong images


def train_encoder(
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int,
    progress: bool = True,
    quality: bool = False,
) -> ImageEncoder:
    """Train on labelled images; the same seed on the same machine gives the same encoder.

    Parameters
    ----------
    images : (N, 28, 28) uint8
    labels : (N,) int64
    epochs : passes over the images
    quality : the larger network of the `--quality` build

    Returns
    -------
    ImageEncoder in evaluation mode, float32, its batch norms folded into the convolutions.
    """
    torch.manual_seed(seed)
    encoder = ImageEncoder(num_classes=int(labels.max()) + 1, width=24 if quality else 16)
    encoder = encoder.train().to(memory_format=torch.channels_last)
    batch_size = min(BATCH_SIZE, len(images))
    steps_per_epoch = len(images) // batch_size
    steps = epochs * steps_per_epoch
    optimizer = torch.optim.SGD(
        encoder.parameters(),
        lr=PEAK_LEARNING_RATE,
        momentum=0.9,
        weight_decay=WEIGHT_DECAY,
        nesterov=True,
    )
    warm_up = max(1, steps // 5)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1))
    )
    with tqdm(total=steps, desc="training", unit="batch", disable=not progress) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for batch in order.split(batch_size)[:steps_per_epoch]:
                pixels = images[batch][:, None].float() / 255  # (batch, 1, 28, 28)
                loss = encoder_loss(encoder, pixels, labels[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return fold_batch_norms(encoder.eval())


def encoder_loss(encoder: ImageEncoder, pixels: Tensor, labels: Tensor) -> Tensor:
    """Class loss on the mild view plus instance loss between the mild and the strong view.

    Only the mild view feels the class loss: strongly turned images cost class accuracy.
    """
    views = torch.cat([mild_view(pixels), strong_view(pixels)])
    views = views.contiguous(memory_format=torch.channels_last)
    with torch.autocast(views.device.type, torch.bfloat16):
        features = encoder.features(views)
    features = features.float()
    logits = encoder.class_logits(encoder.classify(features[: len(pixels)]))
    class_loss = F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
    mild, strong = encoder.describe(features).chunk(2)
    return class_loss + instance_loss(mild, strong)


def instance_loss(views: Tensor, other_views: Tensor) -> Tensor:
    """InfoNCE (van den Oord 2018): each view must pick its own other view out of the batch.

    Parameters
    ----------
    views, other_views : (batch, D) unit vectors; row i of both shows the same image
    """
    similarity = views @ other_views.T / TEMPERATURE
    target = torch.arange(len(views), device=views.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def fold_batch_norms(encoder: ImageEncoder) -> ImageEncoder:
    """Put each batch norm into the convolution before it: same function, fewer operations."""
    for block in encoder.modules():
        if isinstance(block, torch.nn.Sequential) and len(block) == 3:
            convolution, norm, _ = block
            if isinstance(norm, torch.nn.BatchNorm2d):
                block[0] = fuse_conv_bn_eval(convolution, norm)
                block[1] = torch.nn.Identity()
    return encoder
