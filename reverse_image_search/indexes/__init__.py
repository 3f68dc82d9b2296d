"""What becomes `vector_similarity`. Adding an index is one file here and one line in `INDEXES`."""

from reverse_image_search.indexes.exact import ExactIndex
from reverse_image_search.indexes.ivf import build_inverted_file
from reverse_image_search.indexes.milvus import MILVUS
from reverse_image_search.indexes.spec import (
    IndexOptions,
    IndexSpec,
    VectorDatabase,
    VectorDatabaseError,
)

INDEXES = {
    "exact": IndexSpec(
        build=lambda embeddings, ids, options: ExactIndex(embeddings, ids, options.top_k)
    ),
    "ivf": IndexSpec(
        build=lambda embeddings, ids, options: build_inverted_file(
            embeddings, ids, options.top_k, options.recall
        ),
        is_exact=False,
    ),
    "milvus": MILVUS,
}

__all__ = ["INDEXES", "IndexOptions", "IndexSpec", "VectorDatabase", "VectorDatabaseError"]
