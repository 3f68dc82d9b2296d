"""The page: pick or upload an image and see the most similar ones of the gallery.

    python -m reverse_image_search.app

Reads two environment variables, which ``start_app.sh`` sets: `TRITON_URL`, the server, and
`OUTPUT_DIR`, the folder that holds ``gallery/``. The page's address holds its whole state, except
for uploaded images: a link shows the same page, and the browser's back button goes back.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import streamlit as st

from reverse_image_search import layout
from reverse_image_search.app.image_grid import Line, Tile, data_uri, image_grid
from reverse_image_search.app.messages import plain, show_problem
from reverse_image_search.app.query import Query, choose_query, current_query, pick
from reverse_image_search.app.query_card import query_card
from reverse_image_search.app.results import majority, results_csv, title_of
from reverse_image_search.app.server_panel import show_how_it_works
from reverse_image_search.client import Client, TritonError
from reverse_image_search.client.search import WrongAnswerError, search_gallery, served_identity
from reverse_image_search.gallery import Gallery, GalleryError, GalleryImage

TRITON_URL = os.environ.get("TRITON_URL") or "http://127.0.0.1:8000"
OUTPUT_DIR = Path(os.environ.get("OUTPUT_DIR") or layout.REPOSITORY_ROOT)

DEFAULT_RESULTS = 20
REQUEST_TIMEOUT = 5.0  # seconds, for one request of a search
WATCH_TIMEOUT = 2.0  # seconds, for one request of the watch and the side panel
WATCH_INTERVAL = 2.0  # seconds

_STYLE = """<style>
.stMainBlockContainer { padding-top: 3.6rem; padding-bottom: 2rem; }
.stMainBlockContainer h1 { padding: 0; font-size: 2.1rem; }
[data-testid="stExpandSidebarButton"]::after { content: "How it works"; padding-left: .4rem; }
.served { margin: 0; font-size: .72rem; line-height: 1.5; overflow-x: auto; }
</style>"""


def main() -> None:
    """Draw the page."""
    started = time.perf_counter()
    st.set_page_config(
        page_title="Reverse image search",
        page_icon="🔎",
        layout="wide",
        initial_sidebar_state="collapsed",
    )
    st.html(_STYLE)
    st.session_state.seen = observe()
    st.title("Reverse image search", anchor=False)
    show_how_it_works(connect(WATCH_TIMEOUT), st.session_state.seen)
    # Not a fragment: interrupting a fragment that has shown a grid before breaks Streamlit's page
    # ("Bad delta path index").
    show_search(started)
    st.session_state.just_drawn = True
    watch()


def show_search(started: float) -> None:
    """Queries on the left, results on the right."""
    try:
        gallery = open_gallery(gallery_stamp())
        st.caption(
            f"{plain(gallery.metadata.dataset)} · {len(gallery):,} images · "
            "click an image to find the ones most like it"
        )
        queries, results = st.columns([4, 7], gap="large")
        with queries:
            choose_query(gallery)
        with results:
            show_results(gallery, started)
    except GalleryError as error:
        show_problem(error)


def show_results(gallery: Gallery, started: float) -> None:
    """The query and its most similar gallery images, or why there are none."""
    try:
        query = current_query(gallery)
        answer = search_gallery(connect(REQUEST_TIMEOUT), gallery, query.pixels)
    except (LookupError, TritonError, WrongAnswerError) as error:
        if isinstance(error, TritonError):
            # What the search met counts: the server may be back before the watch sees it gone.
            st.session_state.seen = f"{type(error).__name__} {gallery_stamp()}"
        show_problem(error)
        return
    warn_of_other_gallery(gallery)
    card = st.container()  # filled last: it shows how long everything took
    if query.notes is not None:
        show_photo_settings(query.notes, gallery)
    images, scores, details = show_controls(gallery, answer.ids, answer.scores)
    st.subheader(f"Top {len(images)} similar images out of {len(gallery):,}", anchor=False)
    tiles = result_tiles(images, scores, query, details)
    image_grid("result", "Similar images, best first", tiles, partial(pick, gallery))
    timing = (
        f"encoder {answer.embed_ms:.1f} ms · search {answer.find_ms:.1f} ms · "
        f"all with page {1e3 * (time.perf_counter() - started):.0f} ms"
    )
    with card:
        query_card(query, majority(images), scores, timing)


def warn_of_other_gallery(gallery: Gallery) -> None:
    """Say so when the address was made for another gallery."""
    gallery_id = st.query_params.get("gallery", gallery.gallery_id)
    if st.query_params.get("query") != "photo" and gallery_id != gallery.gallery_id:
        st.warning(
            f"This address was made for gallery {plain(gallery_id)}, this is gallery "
            f"{plain(gallery.gallery_id)}: the query may be a different image.",
            icon=":material/warning:",
        )


def show_photo_settings(notes: tuple[str, ...], gallery: Gallery) -> None:
    """What was done to a photo, and switches for what makes it look like the gallery's images."""
    for note in notes:
        st.caption(note)
    if gallery.metadata.shows_objects_on_black:
        with st.container(horizontal=True):
            st.toggle("Crop to the object", key="crop", persist_state="session")
            st.toggle("Invert: light background to black", key="invert", persist_state="session")


def show_controls(
    gallery: Gallery, ids: np.ndarray, scores: np.ndarray
) -> tuple[list[GalleryImage], np.ndarray, bool]:
    """The results that the visitor wants to see, and whether with ids and sources."""
    count = served = len(ids)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if served > 1:
            count = st.slider(
                "Results", 1, served, min(DEFAULT_RESULTS, served), key="k", bind="query-params"
            )
        images, scores = gallery.images(ids[:count]), scores[:count]
        details = st.toggle("Ids and sources", key="details")
        st.download_button(
            "CSV",
            partial(results_csv, images, scores),
            file_name="similar_images.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
        )
    return images, scores, details


def result_tiles(
    images: list[GalleryImage], scores: np.ndarray, query: Query, details: bool
) -> list[Tile]:
    """Each result with its own score and label, set off where it is not the most frequent label."""
    common = majority(images)
    tiles = []
    for rank, (image, score) in enumerate(zip(images, scores.tolist(), strict=True), start=1):
        title = title_of(image)
        is_odd = common is not None and image.label != common[0]
        lines = [Line(f"{score:.4f}", "strong"), Line(title, "odd" if is_odd else "")]
        if details:
            lines.append(Line(f"id {image.id} · {image.source}", "faint"))
        tiles.append(
            Tile(
                value=f"gallery-{image.id}",
                name=f"Result {rank}: {title}, score {score:.4f}. Search with it.",
                source=data_uri(image.thumbnail),
                lines=tuple(lines),
                badge="same image" if image.sha256 in query.digests else "",
            )
        )
    return tiles


@st.cache_resource(show_spinner=False)
def connect(timeout: float) -> Client:
    """The client, shared by all sessions."""
    return Client(TRITON_URL, timeout)


@st.cache_resource(max_entries=2, show_spinner=False)
def open_gallery(stamp: tuple[int, ...]) -> Gallery:
    """The gallery on disk, opened once for all sessions, and again when its stamp changes."""
    return Gallery(layout.gallery_file(OUTPUT_DIR))


def gallery_stamp() -> tuple[int, ...]:
    """Changes whenever a build puts another gallery there."""
    try:
        status = layout.gallery_file(OUTPUT_DIR).stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


@st.cache_data(ttl=1, show_spinner=False)
def observe() -> str:
    """What the server serves, or what is wrong with it, and which gallery is there."""
    try:
        server = str(served_identity(connect(WATCH_TIMEOUT)))
    except TritonError as error:
        server = type(error).__name__
    return f"{server} {gallery_stamp()}"


@st.fragment(run_every=WATCH_INTERVAL)
def watch() -> None:
    """Draw the page again as soon as the server or the gallery has changed."""
    if st.session_state.pop("just_drawn", False):
        return  # `main` made this call, not the timer: a rerun here would never end
    if observe() != st.session_state.seen:
        st.rerun()


if __name__ == "__main__":
    main()
