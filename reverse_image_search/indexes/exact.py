"""Exact cosine similarity search over a gallery that the model holds as buffers."""

from typing import Final

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 65536  # gallery rows that the constructor converts at a time, to save memory


class VectorSimilarity(nn.Module):
    """The `top_k` gallery vectors most similar to each query, by cosine, best first.

    A *scan* computes all scores at once, and leaves a few hundred candidates; a *ranking* scores
    these again, each by itself. The answer is exact: let the scan be off by at most ``e``, and
    ``t`` be a value that the scan gives to K vectors or more. These have scores of ``t - e`` or
    more, so the K-th best score is not less, and a vector that the scan puts below ``t - 2e``
    scores below ``t - e``: it is not among the best K. All others are candidates.

    *Layout.* The scan reads the gallery with dimensions as rows, ``columns`` (D, N): for one query
    that is half the time of vectors as rows, and less than FAISS takes. The ranking picks vectors,
    so it has them as rows: the gallery is held twice.

    *Scores* are rounded to steps of 2^-24, float32's own just below 1. Score and id then fit in one
    int64, which sorts by falling score and, where these are equal, by rising id. No score depends
    on the rest of the batch or on the vector's place in the gallery.

    Parameters
    ----------
    gallery_embeddings : (N, D) float32 tensor, of any length, normalised here
    top_k : neighbours per query; K = min(top_k, N)
    """

    GROUP_SIZE: Final[int] = 32
    # On a GPU, should the server allow TF32 there. A CPU's product is float32 unless a program asks
    # PyTorch for less (`set_float32_matmul_precision`), which neither of the backends does.
    GPU_SCAN_ERROR: Final[float] = 2.0**-7
    SCANNED_AT_ONCE: Final[int] = 2**25  # scores: 128 MiB
    RANKED_AT_ONCE: Final[int] = 2**12  # candidates: 2 MiB of D = 128, for the cache
    LOWEST: Final[float] = -2.0  # below every cosine
    ID_RANGE: Final[int] = 2**32
    STEPS_PER_UNIT: Final[float] = 2.0**24
    NO_CANDIDATE: Final[int] = -(2**62)

    def __init__(self, gallery_embeddings: Tensor, top_k: int = 100):
        super().__init__()
        self.size, dim = gallery_embeddings.shape
        self.top_k = min(top_k, self.size)
        self.group_size = min(self.GROUP_SIZE, self.size // self.top_k)
        # Galleries are often sorted by class. Shuffled, the best vectors fall into many groups.
        ids = torch.randperm(self.size, generator=torch.Generator().manual_seed(0))
        # Sums of D products of two unit vectors, in any order, are off by less than D * 2^-23
        # (Higham 2002, "Accuracy and Stability of Numerical Algorithms", 3.1); the rest is for
        # what the ranking rounds off.
        self.scan_error = dim * 2.0**-22
        padding = -self.size % self.group_size
        gallery = gallery_embeddings.new_zeros(self.size + padding, dim, dtype=torch.float32)
        for start in range(0, self.size, ROWS_AT_ONCE):
            part = ids[start : start + ROWS_AT_ONCE]
            gallery[start : start + len(part)] = unit_length(gallery_embeddings[part])
        self.register_buffer("ids", ids)
        self.register_buffer("gallery", gallery)
        self.register_buffer("columns", gallery.t().contiguous())

    def forward(self, query_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, D) float32 -> ids (batch, K) int64 and scores (batch, K) float32, best first.

        Numbers that are not finite count as 0. A query of zeros scores 0 with every vector, so
        its ids are 0 to K - 1.
        """
        ids: list[Tensor] = []
        scores: list[Tensor] = []
        batch_size = max(1, self.SCANNED_AT_ONCE // self.size)
        for queries in unit_length(query_embeddings).split(batch_size):
            row, position = self.find_candidates(queries)
            best_ids, best_scores = self.rank(queries, row, position)
            ids.append(best_ids)
            scores.append(best_scores)
        return torch.cat(ids), torch.cat(scores)

    def find_candidates(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of query row and gallery position that hold the best K of each row, rows rising."""
        scanned, error = self.scan(queries)
        groups = scanned.view(queries.size(0), -1, self.group_size)
        group_best = groups.amax(2)
        kth_best = group_best.topk(self.top_k, sorted=False).values.amin(1, keepdim=True)
        threshold = (kth_best - 2 * error).clamp_min(self.LOWEST + 0.5)  # (batch, 1)
        # The groups first: a look at each scanned value would take as long as the scan.
        group = (group_best >= threshold).flatten().nonzero().squeeze(1)
        row = group.div(groups.size(1), rounding_mode="floor")
        values = groups.flatten(0, 1).index_select(0, group)  # (groups, group_size)
        hit, member = (values >= threshold.index_select(0, row)).nonzero().unbind(1)
        row = row.index_select(0, hit)
        place = group.index_select(0, hit) * self.group_size + member
        return row, place - row * scanned.size(1)

    def scan(self, queries: Tensor) -> tuple[Tensor, float]:
        """Approximate scores (batch, padded N), and the most that they are off by."""
        scanned = torch.mm(queries, self.columns)
        scanned[:, self.size :] = self.LOWEST
        return scanned, self.GPU_SCAN_ERROR if queries.is_cuda else self.scan_error

    def rank(self, queries: Tensor, row: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and scores (batch, K) of the best candidates of each query row."""
        keys: list[Tensor] = []
        for start in range(0, row.size(0), self.RANKED_AT_ONCE):
            rows = row[start : start + self.RANKED_AT_ONCE]
            positions = position[start : start + self.RANKED_AT_ONCE]
            products = self.gallery.index_select(0, positions) * queries.index_select(0, rows)
            steps = (products.sum(1) * self.STEPS_PER_UNIT).round().to(torch.int64)
            keys.append(steps * self.ID_RANGE - self.ids.index_select(0, positions))
        count = row.bincount(minlength=queries.size(0))
        column = torch.arange(row.size(0), device=row.device)
        column = column - (count.cumsum(0) - count).index_select(0, row)
        table = torch.full(
            [queries.size(0), int(count.max())], self.NO_CANDIDATE, device=row.device
        )
        table[row, column] = torch.cat(keys)
        best = table.topk(self.top_k).values
        ids = -best & (self.ID_RANGE - 1)
        scores = (best + ids).div(self.ID_RANGE).div(self.STEPS_PER_UNIT)
        return ids, scores


def unit_length(embeddings: Tensor) -> Tensor:
    """Scale each row to length 1, in float32; what is not finite counts as 0.

    In float64 in between, where no float32 number is too large or too small to be squared.
    """
    finite = torch.nan_to_num(embeddings, nan=0.0, posinf=0.0, neginf=0.0).to(torch.float64)
    return nn.functional.normalize(finite, dim=1, eps=1e-60).to(torch.float32)
