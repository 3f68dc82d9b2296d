"""What becomes `vector_similarity`. Adding an index is one file here and one line in `INDEXES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from reverse_image_search.indexes.exact import ExactIndex
from reverse_image_search.indexes.ivf import build_inverted_file
from reverse_image_search.layout import MODEL_FILENAME


@dataclass(frozen=True)
class IndexOptions:
    """Options of the command line for building an index."""

    top_k: int  # neighbors that it returns
    # Share of the 20 nearest that an approximate one must find on its sample, so 0.99 on others.
    recall: float = 0.995


def _torchscript_file(index: nn.Module) -> Mapping[str, nn.Module | bytes]:
    return {MODEL_FILENAME: index}


@dataclass(frozen=True)
class IndexSpec:
    """An entry of the registry.

    ``build(embeddings, ids, options)`` of (N, D) float32 and (N,) int64, ascending, returns a
    module that answers as `contract.VECTOR_SIMILARITY`. `files` gives the content of its version
    folder by file name; modules become TorchScript.
    """

    build: Callable[[Tensor, Tensor, IndexOptions], nn.Module]
    files: Callable[[nn.Module], Mapping[str, nn.Module | bytes]] = _torchscript_file
    platform: str = "pytorch_libtorch"  # of Triton's configuration: what serves these files
    is_exact: bool = True  # whether it always finds the K best


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
}
