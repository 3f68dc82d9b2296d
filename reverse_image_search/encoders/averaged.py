"""Several image encoders as one: what the `--quality` build serves."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverse_image_search.encoders.fashion import ImageEncoder, join_parts


class EncoderEnsemble(nn.Module):
    """Encoders that were trained alike from different seeds err on different images.

    Their class probabilities are averaged. Their instance vectors are joined and brought down to
    `instance_dims` dimensions, as several vocabularies of one image are in Jegou and Chum 2012,
    "Negative evidences and co-occurences in image retrieval".

    Parameters
    ----------
    encoders : of equal classes
    instance_dims : dimensions of the instance part of the embedding; with ten classes 128 in all
    class_weight : share of the class part, 0 to 1 (see `join_parts`)
    """

    def __init__(
        self, encoders: list[ImageEncoder], instance_dims: int = 118, class_weight: float = 0.9
    ):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.class_weight = class_weight
        self.embedding_dim = encoders[0].num_classes + instance_dims
        joined_dims = sum(encoder.instance_dims for encoder in encoders)
        self.projection = nn.Linear(joined_dims, instance_dims, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embed RGB images of any size, as `ImageEncoder.forward` does."""
        probabilities, vectors = self.look_both_ways(self.encoders[0].prepare(images))
        return join_parts(probabilities, F.normalize(self.projection(vectors)), self.class_weight)

    def look_both_ways(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the encoders' class probabilities, and their instance vectors side by side.

        (batch, 1, 28, 28) grey, 0 to 1 -> (batch, num_classes) and (batch, sum of the encoders'
        instance_dims), the latter not projected yet
        """
        probabilities: list[Tensor] = []  # TorchScript wants the type
        vectors: list[Tensor] = []
        for encoder in self.encoders:
            own_probabilities, own_vectors = encoder.look_both_ways(grey)
            probabilities.append(own_probabilities)
            vectors.append(own_vectors)
        return torch.stack(probabilities).mean(dim=0), torch.cat(vectors, dim=1)
