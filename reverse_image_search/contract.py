"""The tensor contract: what both served models take and give.

The model configurations, the export check, the client and the tests read it from here.
Whoever answers it can replace either model.

Triton's libtorch backend binds tensors by position: ``INPUT__0`` is the first argument of
``forward``, ``OUTPUT__1`` the second element of the tuple that it returns
(https://github.com/triton-inference-server/pytorch_backend).
"""

from dataclasses import dataclass

# Stand-ins in `TensorSpec.shape`, resolved when a build fixes them.
ANY = -1
EMBEDDING_DIM = "D"
TOP_K = "K"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model; `shape` leaves out the batch dimension, which comes first."""

    name: str
    datatype: str  # of the inference protocol: FP32, INT64
    shape: tuple[int | str, ...]

    def dims(self, **sizes: int) -> tuple[int, ...]:
        """Shape without the batch dimension, with ``D`` and ``K`` replaced by `sizes`."""
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True)
class ModelSpec:
    """One served model."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


# RGB, 0 to 1, any size: resizing, grey conversion and normalising happen inside the model.
IMAGES = TensorSpec("INPUT__0", "FP32", (3, ANY, ANY))  # (batch, 3, height, width)
EMBEDDINGS = TensorSpec("OUTPUT__0", "FP32", (EMBEDDING_DIM,))  # (batch, D), unit length

QUERY_EMBEDDINGS = TensorSpec("INPUT__0", "FP32", (EMBEDDING_DIM,))  # normalised again inside
NEIGHBOR_IDS = TensorSpec("OUTPUT__0", "INT64", (TOP_K,))  # gallery ids, best first
SCORES = TensorSpec("OUTPUT__1", "FP32", (TOP_K,))  # cosine similarity of the same ids

IMAGE_ENCODER = ModelSpec("image_encoder", (IMAGES,), (EMBEDDINGS,))
VECTOR_SIMILARITY = ModelSpec("vector_similarity", (QUERY_EMBEDDINGS,), (NEIGHBOR_IDS, SCORES))
MODELS = (IMAGE_ENCODER, VECTOR_SIMILARITY)

# Both models as one, in a model repository of its own that a server may be started with as well.
IMAGE_SEARCH = ModelSpec("image_search", (IMAGES,), (NEIGHBOR_IDS, SCORES))

MAX_BATCH_SIZE = 64

# In OUTPUT__0 of `vector_similarity`, where a gallery holds fewer than K images (as in FAISS).
NO_NEIGHBOR = -1

# Keys of `parameters` in config.pbtxt. Both models name the encoder that made the embeddings;
# `vector_similarity` also names the gallery that its ids belong to.
ENCODER_ID_PARAMETER = "encoder_id"
GALLERY_ID_PARAMETER = "gallery_id"
