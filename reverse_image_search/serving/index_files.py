"""The index's files: built, exported and checked."""

from pathlib import Path

import numpy as np
import torch

from reverse_image_search import layout
from reverse_image_search.indexes import IndexOptions, IndexSpec
from reverse_image_search.serving.export import check_export, load_torchscript, write_model_files

_CHECKED_EMBEDDINGS = 64  # on which the exported file and its module must agree


def write_index(
    spec: IndexSpec, ids: np.ndarray, embeddings: np.ndarray, options: IndexOptions, folder: Path
) -> None:
    """Build an index and write its files into a new version `folder`.

    Parameters
    ----------
    ids, embeddings : (N,) int64, ascending, and (N, D) float32
    """
    vectors = torch.from_numpy(embeddings)
    index = spec.build(vectors, torch.from_numpy(ids), options).eval()
    write_model_files(spec.files(index), folder, vectors.ndim)
    exported = folder / layout.MODEL_FILENAME
    if exported.exists():
        check_export(load_torchscript(exported), index, vectors[:_CHECKED_EMBEDDINGS])
