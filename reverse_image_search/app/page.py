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
from typing import NamedTuple

import numpy as np
import streamlit as st

from reverse_image_search import layout
from reverse_image_search.app.address import put_in_address, restore_address
from reverse_image_search.app.duplicates import show_duplicates
from reverse_image_search.app.image_dialog import open_image, photo_tile, show_opened_image
from reverse_image_search.app.image_grid import Line, Tile, image_grid
from reverse_image_search.app.messages import plain, show_problem
from reverse_image_search.app.query import Query, choose_query, current_query, pick, pick_region
from reverse_image_search.app.query_card import histogram, query_card
from reverse_image_search.app.region_box import region_box
from reverse_image_search.app.results import majority, name_of, narrow, results_csv, title_of
from reverse_image_search.app.score_scale import score_scale
from reverse_image_search.app.server_panel import show_how_it_works
from reverse_image_search.client import Client, TritonError
from reverse_image_search.client.search import WrongAnswerError, search_gallery, served_identity
from reverse_image_search.contract import VECTOR_SIMILARITY
from reverse_image_search.gallery import (
    Gallery,
    GalleryError,
    GalleryImage,
    data_uri,
    make_thumbnail,
)
from reverse_image_search.image_file import MAX_SIDE

TRITON_URL = os.environ.get("TRITON_URL") or "http://127.0.0.1:8000"
OUTPUT_DIR = Path(os.environ.get("OUTPUT_DIR") or layout.REPOSITORY_ROOT)

VIEWS = ("Search", "Near-duplicates")
DEFAULT_RESULTS = 20
REQUEST_TIMEOUT = 5.0  # seconds, for one request of a search
WATCH_TIMEOUT = 2.0  # seconds, for one request of the watch and the side panel
WATCH_INTERVAL = 2.0  # seconds

_STYLE = """<style>
.stMainBlockContainer { padding-top: 3.6rem; padding-bottom: 2rem; }
.stMainBlockContainer h1 { padding: 0; font-size: 2.1rem; }
[data-testid="stExpandSidebarButton"]::after { content: "How it works"; padding-left: .4rem; }
[data-testid="stLayoutWrapper"]:has(> .st-key-news):not(:has(p)) { display: none; }
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
    restore_address()
    st.session_state.seen = observe()
    st.session_state.pop("version", None)
    st.title("Reverse image search", anchor=False)
    news = st.container(key="news")
    show_how_it_works(connect(WATCH_TIMEOUT), st.session_state.seen.server)
    # Not a fragment: interrupting a fragment that has shown a grid before breaks Streamlit's page
    # ("Bad delta path index").
    show_gallery(started)
    st.session_state.just_drawn = True
    with news:
        watch()


def show_gallery(started: float) -> None:
    """Search the gallery or, if it is one of photos, look through its near-duplicates."""
    try:
        version = st.session_state.version = open_gallery(gallery_stamp())
        gallery, view = version.gallery, VIEWS[0]
        facts = f"{plain(gallery.metadata.dataset)} · {len(gallery):,} images"
        if gallery.metadata.is_photos:
            st.caption(facts)
            view = choose_view()
        else:
            st.caption(f"{facts} · click an image to find the ones most like it")
        if view == VIEWS[0]:
            show_search(gallery, started)
        else:
            show_duplicates(connect(REQUEST_TIMEOUT), gallery, version.stamp)
        show_opened_image(gallery)
    except (GalleryError, TritonError, WrongAnswerError) as error:
        show_problem(error)


def choose_view() -> str:
    """Search or near-duplicates."""
    return st.segmented_control(
        "View",
        VIEWS,
        default=VIEWS[0],
        key="view",
        required=True,
        bind="query-params",
        label_visibility="collapsed",
        on_change=put_in_address,
        kwargs={"page": "1"},
    )


def show_search(gallery: Gallery, started: float) -> None:
    """Queries on the left, results on the right."""
    queries, results = st.columns([4, 7], gap="large")
    with queries:
        choose_query(gallery)
    with results:
        show_results(gallery, started)


def show_results(gallery: Gallery, started: float) -> None:
    """The query and its most similar gallery images, or why there are none."""
    try:
        query = current_query(gallery)
        answer = search_gallery(connect(REQUEST_TIMEOUT), gallery, query.pixels)
    except (LookupError, TritonError, WrongAnswerError) as error:
        if gallery_stamp() != st.session_state.version.stamp:
            st.rerun()  # it was updated after it was opened
        if isinstance(error, TritonError):
            # What the search met counts: the server may be back before the watch sees it gone.
            st.session_state.seen = Observation(type(error).__name__, gallery_stamp())
        show_problem(error)
        return
    warn_of_other_gallery(gallery)
    card = st.container()  # filled last: it shows how long everything took
    if query.notes is not None:
        show_photo_settings(query.notes, gallery)
    if query.whole is not None:
        show_region(query, query.whole)
    shown = show_controls(gallery, query, answer.ids, answer.scores)
    images, scores = shown.images, shown.scores
    st.subheader(f"Top {len(images)} similar images out of {len(gallery):,}", anchor=False)
    if gallery.metadata.is_photos:
        tiles = photo_tiles(gallery, images, scores, query, shown.details)
        image_grid("result", "Similar images, best first", tiles, open_image, "rows")
    else:
        tiles = result_tiles(images, scores, query, shown.details)
        image_grid("result", "Similar images, best first", tiles, partial(pick, gallery))
    chart = histogram(scores)
    if gallery.metadata.is_photos and gallery.metadata.score_scale:
        others = [image.sha256 not in query.digests for image in images]
        chart = score_scale(gallery.metadata.score_scale, scores[others], shown.lowest)
    timing = (
        f"encoder {answer.embed_ms:.1f} ms · search {answer.find_ms:.1f} ms · "
        f"all with page {1e3 * (time.perf_counter() - started):.0f} ms"
    )
    with card:
        query_card(query, majority(images), chart, timing, gallery.metadata.is_photos)


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


def show_region(query: Query, pixels: np.ndarray) -> None:
    """A box to draw on the query image, to search for what is in it."""
    part = st.expander(
        "Search for a part of it",
        expanded=query.region is not None,
        icon=":material/crop:",
        key="part",
        on_change="rerun",
    )
    if not part.open:
        return
    with part:
        st.caption("Drag a box. Keys: arrows move it, Shift and arrows resize it, Esc removes it.")
        file = make_thumbnail(pixels, longest_side=MAX_SIDE)
        region_box("region_box", f"Part of {query.name}", file, query.region, pick_region)


class Shown(NamedTuple):
    """The results that the visitor wants to see."""

    images: list[GalleryImage]
    scores: np.ndarray  # (k,) float32
    details: bool  # whether with ids and sources
    lowest: float | None  # score of the worst that is wanted


def show_controls(gallery: Gallery, query: Query, ids: np.ndarray, scores: np.ndarray) -> Shown:
    """Choose which of the results that were served are shown."""
    count, served = len(ids), len(ids)
    is_photos, lowest, left_out = gallery.metadata.is_photos, None, set[bytes]()
    sliders = switches = st.container(horizontal=True, vertical_alignment="bottom")
    if is_photos:
        switches = st.container(horizontal=True, vertical_alignment="center")
    with sliders:
        if served > 1:
            count = st.slider(
                "Results", 1, served, min(DEFAULT_RESULTS, served), key="k", bind="query-params"
            )
        if is_photos:
            lowest = st.slider(
                "Lowest score", 0.0, 1.0, 0.0, 0.01, key="lowest", bind="query-params"
            )
    with switches:
        if is_photos and st.toggle("Leave out the query", key="without_query"):
            left_out = query.digests
        # One more, as the query itself may be among them.
        images, scores = gallery.images(ids[: count + 1]), scores[: count + 1]
        images, scores = narrow(images, scores, count, lowest or None, left_out)
        details = st.toggle("Ids and sources", key="details")
        st.download_button(
            "CSV",
            partial(results_csv, images, scores),
            file_name="similar_images.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
        )
    return Shown(images, scores, details, lowest or None)


def photo_tiles(
    gallery: Gallery, images: list[GalleryImage], scores: np.ndarray, query: Query, details: bool
) -> list[Tile]:
    """Each result with its own score, file name and label."""
    tiles = []
    for rank, (image, score) in enumerate(zip(images, scores.tolist(), strict=True), start=1):
        paths = gallery.paths(image.id)
        lines = [Line(f"{score:.4f}", "strong"), Line(name_of(image))]
        lines += [Line(image.label)] if image.label else []
        lines += [Line(f"id {image.id} · {image.source}", "faint")] if details else []
        badge = "same image" if image.sha256 in query.digests else ""
        name = f"Result {rank}: {name_of(image)}, score {score:.4f}"
        tiles.append(photo_tile(image, paths, name, lines, badge))
    return tiles


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


class GalleryVersion(NamedTuple):
    """The gallery on disk, as it was when it was opened."""

    stamp: tuple[int, ...]  # `gallery_stamp`
    gallery: Gallery
    last_id: int  # the highest; images that are added later have higher ones


@st.cache_resource(max_entries=2, show_spinner=False)
def open_gallery(stamp: tuple[int, ...]) -> GalleryVersion:
    """The gallery on disk, opened once for all sessions, and again when its stamp changes."""
    gallery = Gallery(layout.gallery_file(OUTPUT_DIR))
    return GalleryVersion(stamp, gallery, int(gallery.ids().max(initial=-1)))


def gallery_stamp() -> tuple[int, ...]:
    """Changes whenever a build or an update puts another gallery there."""
    try:
        status = layout.gallery_file(OUTPUT_DIR).stat()
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
    config = layout.config_file(OUTPUT_DIR / layout.MODEL_REPO, VECTOR_SIMILARITY.name)
    published = layout.served_version(OUTPUT_DIR / layout.MODEL_REPO, VECTOR_SIMILARITY.name)
    is_switching = config.exists() and served.index_version != str(published)
    return Observation(str(served), stamp, is_switching)


@st.fragment(run_every=WATCH_INTERVAL)
def watch() -> None:
    """Draw the page again as soon as the server or the gallery has changed.

    If images were added to the gallery or removed, say so instead, once the server finds them: what
    the visitor looks at stays until the next click.
    """
    if st.session_state.pop("just_drawn", False):
        return  # `main` made this call, not the timer: a rerun here would never end
    seen, now = st.session_state.seen, observe()
    if seen.server == now.server and (seen.stamp == now.stamp or now.is_switching):
        return
    news = gallery_news(now.stamp) if seen.server == now.server else None
    if news is None:
        st.rerun()
    st.caption(f"{news}. Your next click searches the gallery as it is now.")


def gallery_news(stamp: tuple[int, ...]) -> str | None:
    """What was added and removed since the page was drawn; None if it needs to be drawn again."""
    try:
        drawn, now = st.session_state.version, open_gallery(stamp)
    except (AttributeError, GalleryError):
        return None
    ids = [(each.gallery.gallery_id, each.gallery.encoder_id) for each in (drawn, now)]
    if ids[0] != ids[1]:
        return None
    added = int((now.gallery.ids() > drawn.last_id).sum())
    removed = len(drawn.gallery) + added - len(now.gallery)
    counts = [f"{n:,} {what}" for n, what in ((added, "added"), (removed, "removed")) if n]
    return f"Images: {', '.join(counts)}" if counts else "Images have changed"


if __name__ == "__main__":
    main()
