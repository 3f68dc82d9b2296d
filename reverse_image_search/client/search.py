"""A search whose pictures are right: served models and gallery must be of one build.

The server answers with ids, the gallery knows the pictures behind them. If one of the two is of
another build, every picture shown would be a wrong one, and nothing would look amiss.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from reverse_image_search.client import Client
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import BUILD_COMMAND, START_COMMAND


class WrongAnswerError(Exception):
    """What the server answers does not belong to the gallery; nothing must be shown."""


class Answer(NamedTuple):
    """The nearest gallery images of one query, best first."""

    ids: np.ndarray  # (K,) int64, each within the gallery
    scores: np.ndarray  # (K,) float32, cosine similarity, falling
    embed_ms: float  # milliseconds of the call to `image_encoder`
    find_ms: float  # milliseconds of the call to `vector_similarity`


def search_gallery(client: Client, gallery: Gallery, image: Image.Image | np.ndarray) -> Answer:
    """Search `gallery` for one image (see `Client.embed` for its forms).

    Raises
    ------
    WrongAnswerError : the served models are of another build, or the ids are not the gallery's
    TritonError : the server did not answer
    """
    require_same_build(client, gallery)
    start = time.perf_counter()
    embeddings = client.embed([image])
    embedded = time.perf_counter()
    neighbors = client.find_similar(embeddings)
    found = time.perf_counter()
    # Again, for the server may have been restarted with other models between the two calls.
    require_same_build(client, gallery)
    ids, scores = neighbors.ids[0], neighbors.scores[0]
    if len(ids) and (ids.min() < 0 or ids.max() >= len(gallery)):
        raise WrongAnswerError(
            f"vector_similarity answers ids from {ids.min()} to {ids.max()}, but the gallery has "
            f"{len(gallery)} images. Build both again with {BUILD_COMMAND}"
        )
    if not (len(ids) and np.isfinite(scores).all()):
        raise WrongAnswerError(
            f"vector_similarity answers {len(ids)} neighbours, and scores that are no numbers. "
            f"Build it again with {BUILD_COMMAND}"
        )
    return Answer(ids, scores, 1e3 * (embedded - start), 1e3 * (found - embedded))


def require_same_build(client: Client, gallery: Gallery) -> None:
    """Compare the `build_id` of both served models with the gallery's.

    Raises
    ------
    WrongAnswerError : they differ
    TritonError : the server did not answer
    """
    foreign = {
        model: build_id
        for model, build_id in client.build_ids().items()
        if build_id != gallery.build_id
    }
    if foreign:
        served = ", ".join(f"{model} {build_id or 'none'}" for model, build_id in foreign.items())
        raise WrongAnswerError(
            f"The server's models are of another build than the gallery, so results would show "
            f"wrong pictures (gallery {gallery.build_id}; {served}). Stop the server and start it "
            f"again with {START_COMMAND}"
        )
