"""The tensor contract: inputs and outputs of both served models.

Model configurations, export check, client, and tests read it from here. A model that fulfills it
can replace either one.

Triton's libtorch backend binds tensors by position: ``INPUT__0`` is the first argument of
``forward``, ``OUTPUT__1`` the second element of the tuple that it returns
(https://github.com/triton-inference-server/pytorch_backend).
"""

from dataclasses import dataclass

# Placeholders in `TensorSpec.shape` for sizes that a build sets.
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


# RGB, 0 to 1, any size: resizing, grayscale conversion, and normalization are part of the model.
IMAGES = TensorSpec("INPUT__0", "FP32", (3, ANY, ANY))  # (batch, 3, height, width)
EMBEDDINGS = TensorSpec("OUTPUT__0", "FP32", (EMBEDDING_DIM,))  # (batch, D), unit length

QUERY_EMBEDDINGS = TensorSpec("INPUT__0", "FP32", (EMBEDDING_DIM,))  # normalized again inside
NEIGHBOR_IDS = TensorSpec("OUTPUT__0", "INT64", (TOP_K,))  # gallery ids, best first
SCORES = TensorSpec("OUTPUT__1", "FP32", (TOP_K,))  # cosine similarity of the same ids

IMAGE_ENCODER = ModelSpec("image_encoder", (IMAGES,), (EMBEDDINGS,))
VECTOR_SIMILARITY = ModelSpec("vector_similarity", (QUERY_EMBEDDINGS,), (NEIGHBOR_IDS, SCORES))
MODELS = (IMAGE_ENCODER, VECTOR_SIMILARITY)

# The ensemble of both models, in an optional model repository of its own.
IMAGE_SEARCH = ModelSpec("image_search", (IMAGES,), (NEIGHBOR_IDS, SCORES))

MAX_BATCH_SIZE = 64

# Pads the ids if a gallery has fewer than K images, as in FAISS.
NO_NEIGHBOR = -1

# Keys of `parameters` in config.pbtxt: the encoder that made the embeddings (both models), and the
# gallery that the ids belong to (`vector_similarity`).
ENCODER_ID_PARAMETER = "encoder_id"
GALLERY_ID_PARAMETER = "gallery_id"
# Where the vectors are in a database: its collection, and the requirements file of its client.
COLLECTION_PARAMETER = "collection"
REQUIREMENTS_PARAMETER = "requirements"

# Lines of config.pbtxt that name what serves the files of a model.
LIBTORCH_BACKEND = 'platform: "pytorch_libtorch"'
PYTHON_BACKEND = 'backend: "python"'
