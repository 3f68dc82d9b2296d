"""Exact cosine similarity search: a matrix product and a top-k."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverse_image_search import contract

_GROUP_SIZE = 64  # gallery embeddings; the fastest of 16, 32, 64 and 128
_SCORES_AT_ONCE = 2**26  # 256 MiB
_ROWS_AT_ONCE = 65_536  # of the gallery, normalized at a time to save memory


class ExactIndex(nn.Module):
    """The `top_k` gallery embeddings most similar to each query, by cosine, best first.

    ``torch.topk`` over the whole gallery takes as long as the product. Over the maximum of each
    group of 64 scores it finds the same: the groups of the K highest maxima hold the K best.

    `embeddings` (N, D) float32 have any length; `ids` (N,) int64 ascend.
    """

    columns: Tensor  # (D, padded N)
    ids: Tensor  # (padded N,)

    def __init__(self, embeddings: Tensor, ids: Tensor, top_k: int):
        super().__init__()
        self.size, self.top_k = len(ids), top_k
        padding = -max(self.size, top_k) % _GROUP_SIZE + max(0, top_k - self.size)
        normalized = unit_length_gallery(embeddings)
        # Dimensions as rows: for one query, half the time of embeddings as rows.
        self.register_buffer("columns", F.pad(normalized, (0, 0, 0, padding)).t().contiguous())
        self.register_buffer("ids", F.pad(ids, (0, padding), value=contract.NO_NEIGHBOR))
        # TorchScript cannot read module globals.
        self.group_size = _GROUP_SIZE
        self.lowest = torch.finfo(torch.float32).min
        self.queries_at_once = max(1, _SCORES_AT_ONCE // len(self.ids))

    def forward(self, query_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Search for embeddings (batch, D) of any length; non-finite values count as 0.

        Returns
        -------
        ids (batch, K) int64 and cosine similarities (batch, K) float32, descending, ties by
        ascending id; padded with -1 and the lowest float32 if the gallery has fewer than K
        """
        ids: list[Tensor] = []
        scores: list[Tensor] = []
        for queries in unit_length(query_embeddings).split(self.queries_at_once):
            positions, best = self.search(queries)
            ids.append(self.ids[positions])
            scores.append(best)
        return torch.cat(ids), torch.cat(scores)

    def search(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the gallery and scores, (batch, K) each, for unit-length queries."""
        cosines = torch.mm(queries, self.columns)
        cosines[:, self.size :] = self.lowest
        groups = cosines.view(queries.size(0), -1, self.group_size)
        best_groups = groups.amax(2).topk(min(self.top_k, groups.size(1)), sorted=False).indices
        rows = torch.arange(queries.size(0), device=queries.device).unsqueeze(1)
        scores, places = groups[rows, best_groups].flatten(1).topk(self.top_k)
        group = best_groups.gather(1, places.div(self.group_size, rounding_mode="floor"))
        positions, order = (group * self.group_size + places % self.group_size).sort(dim=1)
        scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        return positions.gather(1, order), scores


def unit_length(embeddings: Tensor) -> Tensor:
    """Scale each row to length 1; non-finite values count as 0.

    Computes in float64, where the square of a float32 number neither overflows nor underflows.
    """
    finite = torch.nan_to_num(embeddings, nan=0.0, posinf=0.0, neginf=0.0).to(torch.float64)
    return F.normalize(finite, dim=1, eps=1e-60).to(torch.float32)


def unit_length_gallery(embeddings: Tensor) -> Tensor:
    """`unit_length` of many rows, with little memory beside them."""
    return torch.cat([unit_length(part) for part in embeddings.split(_ROWS_AT_ONCE)])
