"""The `fashion_averaged` encoder: the average of several `fashion` encoders, for `--quality`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverse_image_search.datasets import Dataset
from reverse_image_search.encoders.fashion import (
    FashionEncoder,
    join_parts,
    train_one,
    training_tensors,
    whitening_of,
)
from reverse_image_search.encoders.spec import TrainingOptions

NUM_ENCODERS = 3


class AveragedEncoder(nn.Module):
    """Average encoders that were trained from different seeds, because their errors differ.

    Class probabilities are averaged. Instance embeddings are concatenated and reduced to
    `instance_dims` dimensions, as Jegou and Chum 2012 do with several vocabularies ("Negative
    evidences and co-occurences in image retrieval"). `class_weight` : see `join_parts`
    """

    def __init__(
        self, encoders: list[FashionEncoder], instance_dims: int = 118, class_weight: float = 0.9
    ):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.class_weight = class_weight
        self.embedding_dim = encoders[0].num_classes + instance_dims
        concatenated_dims = sum(encoder.instance_dims for encoder in encoders)
        self.projection = nn.Linear(concatenated_dims, instance_dims, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images of any size, like `FashionEncoder.forward`."""
        probabilities, embeddings = self.flip_averaged_heads(self.encoders[0].preprocess(images))
        embeddings = F.normalize(self.projection(embeddings))
        return join_parts(probabilities, embeddings, self.class_weight)

    def flip_averaged_heads(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean class probabilities and concatenated instance embeddings, before projection.

        (batch, 1, 28, 28) -> (batch, num_classes), (batch, sum of the encoders' instance_dims)
        """
        probabilities: list[Tensor] = []  # TorchScript needs the type
        embeddings: list[Tensor] = []
        for encoder in self.encoders:
            own_probabilities, own_embeddings = encoder.flip_averaged_heads(images)
            probabilities.append(own_probabilities)
            embeddings.append(own_embeddings)
        return torch.stack(probabilities).mean(dim=0), torch.cat(embeddings, dim=1)


def train_averaged_encoder(dataset: Dataset, options: TrainingOptions) -> AveragedEncoder:
    """Train several encoders from different seeds, like `train_fashion_encoder`; half whitened."""
    images, labels = training_tensors(dataset)
    encoders = []
    for member in range(NUM_ENCODERS):
        seed = options.seed * NUM_ENCODERS + member
        description = f"training {member + 1} of {NUM_ENCODERS}"
        encoders.append(train_one(images, labels, options.epochs, seed, description))
    averaged = AveragedEncoder(encoders).eval().to(images.device)
    dims = averaged.projection.out_features
    with torch.no_grad():
        averaged.projection.weight.copy_(
            whitening_of(lambda part: averaged.flip_averaged_heads(part)[1], images, dims)
        )
    return averaged.to("cpu")
