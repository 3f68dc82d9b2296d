"""Approximate cosine similarity search with an inverted file: only the nearest lists are read.

K-means divides the gallery into lists; a query is compared with all centers, then with the vectors
of the lists whose centers are nearest (Sivic and Zisserman 2003, "Video Google"; FAISS calls it
`IndexIVFFlat`).
"""

import torch
from torch import Tensor, nn

from reverse_image_search import contract
from reverse_image_search.indexes.exact import unit_length, unit_length_gallery

_ITERATIONS = 10  # of K-means
_POINTS_PER_LIST = 100  # that K-means looks at
_SAMPLE = 1000  # embeddings that the number of probed lists is chosen on
_RECALL_AT = 20
_SCORES_AT_ONCE = 2**26  # 256 MiB


class InvertedFileIndex(nn.Module):
    """The `top_k` most similar of the gallery embeddings in the `probes` lists nearest to a query.

    `embeddings` (N, D) float32 have any length; `ids` (N,) int64 ascend; `centers` (lists, D) have
    length 1, and `assignment` (N,) int64 names the list of each embedding.
    """

    centers: Tensor  # (lists, D)
    vectors: Tensor  # (N, D), list by list
    ids: Tensor  # (N,), of `vectors`
    starts: list[int]  # of each list in `vectors`; ends with N

    def __init__(
        self,
        embeddings: Tensor,
        ids: Tensor,
        top_k: int,
        centers: Tensor,
        assignment: Tensor,
        probes: int,
    ):
        super().__init__()
        order = assignment.argsort(stable=True)
        sizes = assignment.bincount(minlength=len(centers))
        self.register_buffer("centers", centers)
        self.register_buffer("vectors", unit_length_gallery(embeddings)[order])
        self.register_buffer("ids", ids[order])
        self.starts = [0, *sizes.cumsum(0).tolist()]
        self.top_k, self.probes = top_k, probes
        # Enough lists for K neighbors, even if they are the smallest ones.
        enough = int((sizes.sort().values.cumsum(0) < min(top_k, len(ids))).sum()) + 1
        self.ranked_lists = min(len(centers), max(probes, enough))
        self.padding = contract.NO_NEIGHBOR
        self.lowest = torch.finfo(torch.float32).min

    def forward(self, query_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """As `ExactIndex.forward`, but for neighbors in lists that are not read."""
        queries = unit_length(query_embeddings)
        ranked = torch.mm(queries, self.centers.t()).topk(self.ranked_lists).indices
        nearest: list[list[int]] = ranked.tolist()
        shape = [queries.size(0), self.top_k]
        ids = torch.full(shape, self.padding, dtype=torch.int64, device=queries.device)
        scores = torch.full(shape, self.lowest, device=queries.device)
        for row in range(queries.size(0)):
            found_ids: list[Tensor] = []
            found_scores: list[Tensor] = []
            read, count = 0, 0
            for each in nearest[row]:
                if read >= self.probes and count >= self.top_k:
                    break
                start, end = self.starts[each], self.starts[each + 1]
                found_ids.append(self.ids[start:end])
                found_scores.append(torch.mv(self.vectors[start:end], queries[row]))
                read, count = read + 1, count + end - start
            best, places = torch.cat(found_scores).topk(min(self.top_k, count))
            # Best first, ties by ascending id.
            best_ids, order = torch.cat(found_ids)[places].sort()
            best, by_score = best[order].sort(descending=True, stable=True)
            ids[row, : best.size(0)] = best_ids[by_score]
            scores[row, : best.size(0)] = best
        return ids, scores


def build_inverted_file(
    embeddings: Tensor, ids: Tensor, top_k: int, recall: float, seed: int = 0
) -> InvertedFileIndex:
    """Divide the gallery into about √N lists and probe as many as `recall` at 20 needs.

    The number is chosen by `recall_by_probes` and printed.

    Parameters
    ----------
    embeddings, ids : (N, D) float32 and (N,) int64, ascending
    recall : share of the 20 nearest neighbors that must be found, 0 to 1
    """
    vectors = unit_length_gallery(embeddings)
    generator = torch.Generator().manual_seed(seed)
    centers = spherical_kmeans(vectors, max(1, round(len(vectors) ** 0.5)), generator)
    assignment = torch.cat([(part @ centers.t()).argmax(1) for part in vectors.split(65_536)])
    used, assignment = assignment.unique(return_inverse=True)  # without empty lists
    centers = centers[used]
    recalls = recall_by_probes(vectors, centers, assignment, generator)
    probes = min(int((recalls < recall).sum()) + 1, len(centers))
    print(
        f"  inverted file: {len(centers)} lists, {probes} of them probed for a recall@{_RECALL_AT} "
        f"of {recalls[probes - 1]:.4f}",
        flush=True,
    )
    return InvertedFileIndex(vectors, ids, top_k, centers, assignment, probes)


def spherical_kmeans(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` centers (count, D) of length 1 of unit-length `vectors` (N, D)."""
    sample = torch.randperm(len(vectors), generator=generator)[: count * _POINTS_PER_LIST]
    points = vectors[sample]
    centers = points[:count].clone()
    for _ in range(_ITERATIONS):
        nearest = torch.cat([(part @ centers.t()).argmax(1) for part in points.split(65_536)])
        sums = torch.zeros_like(centers).index_add_(0, nearest, points)
        is_empty = nearest.bincount(minlength=count) == 0
        centers = torch.where(is_empty[:, None], centers, unit_length(sums))
    return centers


def recall_by_probes(
    vectors: Tensor, centers: Tensor, assignment: Tensor, generator: torch.Generator
) -> Tensor:
    """Recall at 20 for 1, 2, ... probed lists: (lists,) float64.

    Measured with a random sample of `vectors`, each moved in a random direction by the distance to
    its N/1000th neighbor, the 20th at least. Unmoved they would be easier than new images: K-means
    has seen them. Moved by less, too, where a gallery has many near-copies
    (doc/log/approximate_search.md).
    """
    sample = vectors[torch.randperm(len(vectors), generator=generator)[:_SAMPLE]]
    recall_at = min(_RECALL_AT, len(vectors))
    distant = max(recall_at, len(vectors) // 1000)
    counts = torch.zeros(len(centers), dtype=torch.float64)
    for queries in sample.split(max(1, _SCORES_AT_ONCE // len(vectors))):
        cosine = (queries @ vectors.t()).topk(distant).values[:, -1:]
        direction = unit_length(torch.randn(queries.shape, generator=generator))
        queries = unit_length(queries + (2 - 2 * cosine).clamp(min=0).sqrt() * direction)
        neighbors = (queries @ vectors.t()).topk(recall_at).indices
        # The place of each list in a query's order, and so the probes that a neighbor needs.
        places = (queries @ centers.t()).argsort(1, descending=True).argsort(1)
        needed = places.gather(1, assignment[neighbors])
        counts += needed.flatten().bincount(minlength=len(centers))
    return counts.cumsum(0) / counts.sum()
