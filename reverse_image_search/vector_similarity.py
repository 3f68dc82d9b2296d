"""Exact cosine similarity search over a gallery that the model holds as a buffer."""

import torch
from torch import Tensor, nn


class VectorSimilarity(nn.Module):
    """Find the `top_k` gallery vectors most similar to each query, by cosine, exactly.

    Parameters
    ----------
    gallery_embeddings : (N, D) float32 tensor, normalised here.
    top_k : neighbours per query; K = min(top_k, N).
    """

    def __init__(self, gallery_embeddings: Tensor, top_k: int = 100):
        super().__init__()
        self.top_k = min(top_k, gallery_embeddings.shape[0])
        self.register_buffer("gallery", unit_length(gallery_embeddings.to(torch.float32)))

    def forward(self, query_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, D) float32 -> ids (batch, K) int64 and scores (batch, K) float32, best first.

        Equal scores: the lower id first. A query that is not finite counts as zero there; a zero
        query scores 0 with everything, so its ids are 0..K-1.
        """
        scores = torch.mm(unit_length(query_embeddings), self.gallery.t())  # (batch, N)
        ranked = torch.sort(scores, dim=1, descending=True, stable=True)
        return ranked.indices[:, : self.top_k], ranked.values[:, : self.top_k]


def unit_length(embeddings: Tensor) -> Tensor:
    """Scale each row to length 1; what is not finite counts as 0, and a zero row stays zero."""
    finite = torch.nan_to_num(embeddings, nan=0.0, posinf=0.0, neginf=0.0)
    return nn.functional.normalize(finite, dim=1)
