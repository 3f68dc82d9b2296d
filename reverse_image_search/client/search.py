"""Search a gallery: the served models must belong to it.

The server answers with ids, the gallery knows the images behind them. If one of the two were of
another build, every image shown would be a wrong one, and nothing would look amiss.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from reverse_image_search import contract
from reverse_image_search.client import Client
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import BUILD_COMMAND, START_COMMAND


class WrongAnswerError(Exception):
    """What the server answers does not belong to the gallery; nothing must be shown."""


class Answer(NamedTuple):
    """The nearest gallery images of one query, best first."""

    ids: np.ndarray  # (n,) int64, n at most K, each in the gallery
    scores: np.ndarray  # (n,) float32, cosine similarity, falling
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
    ids, scores = ids[ids != contract.NO_NEIGHBOR], scores[ids != contract.NO_NEIGHBOR]
    try:
        gallery.images(ids)
    except KeyError as error:
        raise WrongAnswerError(
            f"vector_similarity answers id {error}, which the gallery does not have. "
            f"Build both again with {BUILD_COMMAND}"
        ) from None
    if not (len(ids) and np.isfinite(scores).all()):
        raise WrongAnswerError(
            f"vector_similarity answers {len(ids)} neighbors, or scores that are not numbers. "
            f"Build it again with {BUILD_COMMAND}"
        )
    return Answer(ids, scores, 1e3 * (embedded - start), 1e3 * (found - embedded))


def served_ids(client: Client) -> dict[str, dict[str, str]]:
    """`encoder_id` and `gallery_id` that each served model carries, by model name.

    Raises
    ------
    TritonError : the server did not answer
    """
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
    """Check that both served models belong to the gallery, by their ids.

    Raises
    ------
    WrongAnswerError : they do not
    TritonError : the server did not answer
    """
    encoder_id = {contract.ENCODER_ID_PARAMETER: gallery.encoder_id}
    identity = {**encoder_id, contract.GALLERY_ID_PARAMETER: gallery.gallery_id}
    expected = {contract.IMAGE_ENCODER.name: encoder_id, contract.VECTOR_SIMILARITY.name: identity}
    served = served_ids(client)
    if served != expected:
        raise WrongAnswerError(
            "The server's models are of another build than the gallery, so results would show "
            f"wrong images (gallery: {_as_text(identity)}; "
            f"{'; '.join(f'{model}: {_as_text(ids)}' for model, ids in served.items())}). "
            f"Stop the server and start it again with {START_COMMAND}"
        )


def _as_text(ids: dict[str, str]) -> str:
    return ", ".join(f"{key} {value or 'none'}" for key, value in ids.items()) or "no ids"
