"""What the registry says about an index."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from reverse_image_search import contract
from reverse_image_search.layout import MODEL_FILENAME


@dataclass(frozen=True)
class IndexOptions:
    """What an index is built with, beside embeddings and ids."""

    top_k: int  # neighbors that it returns
    # Share of the 20 nearest that an approximate one must find on its sample, so 0.99 on others.
    recall: float = 0.995
    # Of this gallery, encoder and version, for an index in a database; letters, digits and _.
    name: str = "vectors"


class VectorDatabaseError(Exception):
    """A vector database does not do what it was asked; the message says why."""


@dataclass(frozen=True)
class VectorDatabase:
    """A database that holds the vectors of an index, which then change in place.

    All functions take the `name` of `IndexOptions` first and raise VectorDatabaseError. They may be
    repeated, after having been interrupted for one.
    """

    has: Callable[[str], bool]
    # ``update(name, ids, embeddings, removed)`` adds or replaces the vectors of `ids` and removes
    # those of `removed`; when it returns, searches see that.
    update: Callable[[str, Tensor, Tensor, Tensor], None]
    # ``set_alias(name, alias)`` lets other programs find the index that is published.
    set_alias: Callable[[str, str], None]
    drop: Callable[[str], None]


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
    backend: str = contract.LIBTORCH_BACKEND  # what serves these files
    warms_up_itself: bool = False  # instead of Triton
    is_exact: bool = True  # whether it always finds the K best
    requirements: str = ""  # requirements file of what builds and serves it
    database: VectorDatabase | None = None

    def parameters(self, name: str) -> dict[str, str]:
        """What the configuration of its model says about an index with this name."""
        collection = {contract.COLLECTION_PARAMETER: name} if name else {}
        needed = {contract.REQUIREMENTS_PARAMETER: self.requirements} if self.requirements else {}
        return collection | needed
