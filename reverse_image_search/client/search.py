"""Search a gallery: the served models must belong to it, or an id would show a wrong image."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from reverse_image_search import contract
from reverse_image_search.client.client import Client
from reverse_image_search.client.errors import RequestRejectedError, ServerNotReadyError
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import BUILD_COMMAND, START_COMMAND


class WrongAnswerError(Exception):
    """The server's answer does not belong to the gallery; nothing must be shown."""


class Answer(NamedTuple):
    """The nearest gallery images of one query, best first; fewer than K in a small gallery."""

    ids: np.ndarray  # (k,) int64, each in the gallery
    scores: np.ndarray  # (k,) float32, cosine similarity, falling
    embed_ms: float  # milliseconds of `image_encoder`, for all images of the search
    find_ms: float  # milliseconds of `vector_similarity`, likewise


class IndexIdentity(NamedTuple):
    """What `vector_similarity` was built from; empty where its configuration does not say."""

    encoder_id: str  # of the encoder that made its embeddings
    gallery_id: str  # of the gallery that its ids belong to


@dataclass(frozen=True)
class ServedIdentity:
    """What both served models are."""

    encoder_id: str
    index: IndexIdentity
    # The served versions of both models; empty where nothing names them.
    encoder_version: str = field(default="", compare=False)
    index_version: str = field(default="", compare=False)

    @property
    def is_one_build(self) -> bool:
        """Whether the index was made with the encoder that is served."""
        return self.encoder_id == self.index.encoder_id

    def __str__(self) -> str:
        return (
            f"encoder {self.encoder_id or 'unknown'}, index of gallery "
            f"{self.index.gallery_id or 'unknown'} by encoder {self.index.encoder_id or 'unknown'}"
        )


_PAUSE = 0.1  # seconds between two looks at a server that takes another build over

# The last identity that was read, by the server's address.
_known: dict[str, ServedIdentity] = {}


def search_gallery(
    client: Client,
    gallery: Gallery,
    image: Image.Image | np.ndarray,
    switch_timeout: float = 5.0,
) -> Answer:
    """Search `gallery` for one image (see `Client.embed` for its forms, and below)."""
    (answer,) = search_gallery_for_all(client, gallery, [image], switch_timeout)
    return answer


def search_gallery_for_all(
    client: Client,
    gallery: Gallery,
    images: Sequence[Image.Image | np.ndarray],
    switch_timeout: float = 5.0,
) -> list[Answer]:
    """Search `gallery` for each of `images`.

    Costs one request more than the searches: after the answers, the index is asked what it is. If
    that is what was known before, no other server or index was taken over in between; and the known
    versions of encoder and index were asked for, so that replicas of different builds cannot share
    a search. Else all is done again. A server takes over encoder and index one after the other, and
    replicas do so at different moments: that is waited for, for `switch_timeout` seconds.

    Raises
    ------
    WrongAnswerError : the served models and the gallery do not belong together
    TritonError : the server did not answer
    """
    with contextlib.suppress(WrongAnswerError, RequestRejectedError, ServerNotReadyError):
        return _search(client, gallery, images, _known.get(client.url) or served_identity(client))
    # Another build may have been published since the identity was read.
    deadline = time.monotonic() + switch_timeout
    while True:
        known = _settled_identity(client, deadline)
        try:
            return _search(client, gallery, images, known)
        except ServerNotReadyError:  # a replica that does not serve the known versions yet
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)


def served_identity(client: Client) -> ServedIdentity:
    """Read the identity of both served models."""
    encoder = client.model_config(contract.IMAGE_ENCODER.name)
    index = client.model_config(contract.VECTOR_SIMILARITY.name)
    (encoder_id,) = _parameters(encoder, contract.ENCODER_ID_PARAMETER)
    identity = _known[client.url] = ServedIdentity(
        encoder_id, _index_identity(index), _version(encoder), _version(index)
    )
    return identity


def check_identity(client: Client, gallery: Gallery) -> None:
    """Raise `WrongAnswerError` where the served models and the gallery do not belong together."""
    _compare(served_identity(client), gallery)


def _settled_identity(client: Client, deadline: float) -> ServedIdentity:
    """The identity of both models once they are of one build, or when it is `deadline`."""
    while True:
        identity = served_identity(client)
        if identity.is_one_build or time.monotonic() > deadline:
            return identity
        time.sleep(_PAUSE)


def _search(
    client: Client,
    gallery: Gallery,
    images: Sequence[Image.Image | np.ndarray],
    known: ServedIdentity,
) -> list[Answer]:
    _compare(known, gallery)
    start = time.perf_counter()
    embeddings = client.embed(images, version=known.encoder_version)
    embedded = time.perf_counter()
    neighbors = client.find_similar(embeddings, version=known.index_version)
    found = time.perf_counter()
    if _index_identity(client.model_config(contract.VECTOR_SIMILARITY.name)) != known.index:
        raise WrongAnswerError(
            "The models were replaced during the search, so results could be wrong. Search again"
        )
    milliseconds = 1e3 * (embedded - start), 1e3 * (found - embedded)
    return [
        Answer(*_checked(gallery, ids, scores), *milliseconds)
        for ids, scores in zip(*neighbors, strict=True)
    ]


def _checked(
    gallery: Gallery, ids: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbors of one query without padding, if they can be right."""
    is_neighbor = ids != contract.NO_NEIGHBOR
    ids, scores = ids[is_neighbor], scores[is_neighbor]
    if not (len(ids) and np.isfinite(scores).all()):
        raise WrongAnswerError(
            f"vector_similarity returned {len(ids)} neighbors, or scores that are not numbers. "
            f"Rebuild it with {BUILD_COMMAND}"
        )
    if missing := gallery.missing(ids):
        raise WrongAnswerError(
            f"vector_similarity returned ids that the gallery does not have, such as {missing[0]}. "
            f"Rebuild both with {BUILD_COMMAND}"
        )
    return ids, scores


def _compare(served: ServedIdentity, gallery: Gallery) -> None:
    index = IndexIdentity(gallery.encoder_id, gallery.gallery_id)
    expected = ServedIdentity(gallery.encoder_id, index)
    if not served.is_one_build:
        raise WrongAnswerError(
            f"The server is taking over another build ({served}). Search again in a few seconds. "
            f"If that does not help, stop it and start it again with {START_COMMAND}"
        )
    if served != expected:
        raise WrongAnswerError(
            "The server's models are of another build than the gallery, so results would show "
            f"wrong images (gallery: {expected}; server: {served}). It takes a new build over "
            f"within seconds; else stop it and start it again with {START_COMMAND}"
        )


def _index_identity(config: dict) -> IndexIdentity:
    names = contract.ENCODER_ID_PARAMETER, contract.GALLERY_ID_PARAMETER
    return IndexIdentity(*_parameters(config, *names))


def _version(config: dict) -> str:
    versions = config.get("version_policy", {}).get("specific", {}).get("versions", [""])
    return str(versions[0])


def _parameters(config: dict, *names: str) -> list[str]:
    parameters = config.get("parameters") or {}
    return [parameters.get(name, {}).get("string_value", "") for name in names]
