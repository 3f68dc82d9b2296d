"""Exact cosine similarity search over a gallery that the model holds as buffers."""

from typing import Final

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 65536  # gallery rows that the constructor converts at a time, to save memory


class VectorSimilarity(nn.Module):
    """The `top_k` gallery vectors most similar to each query, by cosine, best first.

    Reading the gallery takes most of the time of a search, so a *scan* reads a copy of one byte a
    number and leaves a few hundred candidates, and a *ranking* scores these in float32. The answer
    is exact all the same. Let the scan be off by at most ``e``, and ``t`` be a value that the scan
    gives to K vectors or more. These have scores of ``t - e`` or more, so the K-th best score is
    not less, and a vector that the scan puts below ``t - 2e`` scores below ``t - e``: it is not
    among the best K. All others are candidates.

    *Codes.* In each dimension ``d`` the gallery is ``center[d] + code_unit[d] * code + rest``, with
    codes from -79 to 79; `scan_error` holds the longest rest. What the query makes of the center
    is the same for all vectors and left out. The query, multiplied by ``code_unit``, is rounded to
    whole multiples of ``unit``, written as two such digits in base 128. The sum of the products is
    whole and exact; what it lacks is at most ``longest rest`` (Cauchy-Schwarz) plus ``unit / 2``
    times the sum of the codes.

    *Scores* are rounded to steps of 2^-24, float32's own just below 1. Score and id then fit in one
    int64, which sorts by falling score and, where these are equal, by rising id. No score depends
    on the rest of the batch or on the vector's place in the gallery.

    Parameters
    ----------
    gallery_embeddings : (N, D) float32 tensor, of any length, normalised here
    top_k : neighbours per query; K = min(top_k, N)
    """

    # oneDNN adds pairs of 8-bit products in 16 bits on processors without VNNI, after moving one
    # factor up by 128. 79 is the largest limit that cannot overflow: (79 + 128) * 79 * 2 < 2^15.
    MAX_CODE: Final[int] = 79
    BASE: Final[int] = 128
    MIN_CODED_DIM: Final[int] = 2  # `torch._int_mm` of torch 2.12 gives rubbish for one
    MAX_CODED_DIM: Final[int] = 2688  # 79 * 128 * 79 * D must stay below 2^31
    GROUP_SIZE: Final[int] = 32
    # Covers TF32 and bfloat16, should the server allow them in a float32 product.
    FLOAT_SCAN_ERROR: Final[float] = 2.0**-7
    SCANNED_AT_ONCE: Final[int] = 2**23  # scores: 32 MiB, about what a cache holds
    RANKED_AT_ONCE: Final[int] = 2**12  # candidates: 2 MiB of D = 128, for the cache
    LOWEST: Final[int] = -(2**31)  # below every scanned value
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
        chunks = [unit_length(gallery_embeddings[part]) for part in ids.split(ROWS_AT_ONCE)]
        highest = torch.stack([chunk.amax(0) for chunk in chunks]).amax(0)
        lowest = torch.stack([chunk.amin(0) for chunk in chunks]).amin(0)
        center = (highest + lowest) / 2
        code_unit = ((highest - lowest) / 2 / self.MAX_CODE).clamp_min(1e-30)
        codes = [((chunk - center) / code_unit).round().to(torch.int8) for chunk in chunks]
        longest_rest = max(
            (chunk.double() - center.double() - code.double() * code_unit.double())
            .norm(dim=1)
            .max()
            .item()
            for chunk, code in zip(chunks, codes, strict=True)
        )
        self.scan_error = longest_rest + dim * 2.0**-22  # and what float32 rounds off in ranking
        self.code_sum = max(code.float().abs().sum(1).max().item() for code in codes)
        padding = chunks[0].new_zeros(-self.size % self.group_size, dim)
        self.register_buffer("ids", ids)
        self.register_buffer("gallery", torch.cat([*chunks, padding]))
        self.register_buffer("codes", torch.cat([*codes, padding.to(torch.int8)]))
        self.register_buffer("code_unit", code_unit)

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
        threshold = (kth_best - 2 * error).clamp_min(self.LOWEST + 1)  # (batch, 1)
        # The groups first: a look at each scanned value would take as long as the scan.
        group = (group_best >= threshold).flatten().nonzero().squeeze(1)
        row = group.div(groups.size(1), rounding_mode="floor")
        values = groups.flatten(0, 1).index_select(0, group)  # (groups, group_size)
        hit, member = (values >= threshold.index_select(0, row)).nonzero().unbind(1)
        row = row.index_select(0, hit)
        place = group.index_select(0, hit) * self.group_size + member
        return row, place - row * scanned.size(1)

    def scan(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Approximate scores (batch, padded N), in a unit of each row's own, and their error."""
        dim = queries.size(1)
        if queries.is_cuda or dim < self.MIN_CODED_DIM or dim > self.MAX_CODED_DIM:
            scanned = torch.mm(queries, self.gallery.t())
            error = torch.full([1, 1], self.FLOAT_SCAN_ERROR, device=queries.device)
        else:
            scaled = queries * self.code_unit
            unit = scaled.abs().amax(1, keepdim=True) / (self.MAX_CODE * self.BASE)
            unit = unit.clamp_min(1e-30)
            number = (scaled / unit).round()
            high = (number / self.BASE).round()
            digits = torch.cat([high, number - high * self.BASE]).to(torch.int8)
            codes = self.codes.t()
            if queries.size(0) == 1:  # oneDNN takes half the time for two single rows
                high_sum = torch._int_mm(digits[:1], codes)
                low_sum = torch._int_mm(digits[1:], codes)
            else:
                high_sum, low_sum = torch._int_mm(digits, codes).chunk(2)
            scanned = torch.add(low_sum, high_sum, alpha=self.BASE)
            # 0.51, not 0.5, for what float32 rounds off above
            error = self.scan_error / unit.to(torch.float64) + 0.51 * self.code_sum
        scanned[:, self.size :] = self.LOWEST
        return scanned, error

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
