"""A search whose pictures are right: served models and gallery must be of one build.

The server answers with ids, the gallery knows the pictures behind them. If one of the two is of
another build, every picture shown would be a wrong one, and nothing would look amiss.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from reverse_image_search import contract
from reverse_image_search.client.client import Client
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
    check_identity(client, gallery)
    start = time.perf_counter()
    embeddings = client.embed([image])
    embedded = time.perf_counter()
    neighbors = client.find_similar(embeddings)
    found = time.perf_counter()
    # Again, for the server may have been restarted with other models between the two calls.
    check_identity(client, gallery)
    ids, scores = neighbors.ids[0], neighbors.scores[0]
    scores, ids = scores[ids >= 0], ids[ids >= 0]
    if len(ids) and ids.max() >= len(gallery):
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


def served_ids(client: Client) -> dict[str, dict[str, str]]:
    """`encoder_id` and `gallery_id` of each served model, by model name."""
    found = {}
    for model in contract.MODELS:
        parameters = client.model_config(model.name).get("parameters", {})
        found[model.name] = {
            key: parameters[key]["string_value"]
            for key in (contract.ENCODER_ID_PARAMETER, contract.GALLERY_ID_PARAMETER)
            if key in parameters
        }
    return found


def check_identity(client: Client, gallery: Gallery) -> None:
    """Compare the served models' ids with the gallery's."""
    encoder_id = {"encoder_id": gallery.encoder_id}
    expected = {
        contract.IMAGE_ENCODER.name: encoder_id,
        contract.VECTOR_SIMILARITY.name: {**encoder_id, "gallery_id": gallery.gallery_id},
    }
    served = served_ids(client)
    if served != expected:
        raise WrongAnswerError(
            f"The server's models are of another build than the gallery, so results would show "
            f"wrong images (gallery {expected}; served {served}). Stop the server and start it "
            f"again with {START_COMMAND}"
        )
