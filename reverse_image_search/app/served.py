"""The server and the gallery as they are now, looked at once for all sessions.

``start_app.sh`` sets two environment variables: `TRITON_URL`, the server, and `OUTPUT_DIR`, the
folder that holds ``gallery/``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from reverse_image_search import layout
from reverse_image_search.client import Client, TritonError
from reverse_image_search.client.search import served_identity
from reverse_image_search.contract import VECTOR_SIMILARITY
from reverse_image_search.gallery import Gallery, GalleryError

REQUEST_TIMEOUT = 5.0  # seconds, for one request of a search
WATCH_TIMEOUT = 2.0  # seconds, for one request of the watch and the side panel


@st.cache_resource(show_spinner=False)
def connect(timeout: float) -> Client:
    """The client, shared by all sessions."""
    return Client(os.environ.get("TRITON_URL") or "http://127.0.0.1:8000", timeout)


class GalleryVersion(NamedTuple):
    """The gallery on disk, as it was when it was opened."""

    stamp: tuple[int, ...]  # `gallery_stamp`
    gallery: Gallery
    last_id: int  # the highest; images that are added later have higher ones


@st.cache_resource(max_entries=2, show_spinner=False)
def open_gallery(stamp: tuple[int, ...]) -> GalleryVersion:
    """The gallery on disk, opened once for all sessions, and again when its stamp changes."""
    gallery = Gallery(layout.gallery_file(_output_dir()))
    return GalleryVersion(stamp, gallery, int(gallery.ids().max(initial=-1)))


def gallery_stamp() -> tuple[int, ...]:
    """Changes whenever a build or an update puts another gallery there."""
    try:
        status = layout.gallery_file(_output_dir()).stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


class Observation(NamedTuple):
    """What the page depends on."""

    server: str  # what it serves, or what is wrong with it
    stamp: tuple[int, ...]  # `gallery_stamp`
    is_switching: bool = False  # whether it does not serve the published index yet


@st.cache_resource(ttl=1, show_spinner=False)
def observe() -> Observation:
    """Look at the server and the gallery as they are now."""
    stamp = gallery_stamp()
    try:
        served = served_identity(connect(WATCH_TIMEOUT))
    except TritonError as error:
        return Observation(type(error).__name__, stamp)
    model_repo = _output_dir() / layout.MODEL_REPO
    config = layout.config_file(model_repo, VECTOR_SIMILARITY.name)
    published = layout.served_version(model_repo, VECTOR_SIMILARITY.name)
    is_switching = config.exists() and served.index_version != str(published)
    return Observation(str(served), stamp, is_switching)


def gallery_news(drawn: GalleryVersion, stamp: tuple[int, ...]) -> str | None:
    """What was added and removed since `drawn`; None if the page needs to be drawn again."""
    try:
        now = open_gallery(stamp)
    except GalleryError:
        return None
    ids = [(each.gallery.gallery_id, each.gallery.encoder_id) for each in (drawn, now)]
    if ids[0] != ids[1]:
        return None
    added = int((now.gallery.ids() > drawn.last_id).sum())
    removed = len(drawn.gallery) + added - len(now.gallery)
    counts = [f"{n:,} {what}" for n, what in ((added, "added"), (removed, "removed")) if n]
    return f"Images: {', '.join(counts)}" if counts else "Images have changed"


def _output_dir() -> Path:
    return Path(os.environ.get("OUTPUT_DIR") or layout.REPOSITORY_ROOT)
