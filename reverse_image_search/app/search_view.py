"""The page's main view: what to search with on the left, the most similar images on the right."""

from __future__ import annotations

import time
from functools import partial
from typing import NamedTuple

import numpy as np
import streamlit as st

from reverse_image_search.app.image_dialog import open_image, photo_tile
from reverse_image_search.app.image_grid import Line, Tile, image_grid
from reverse_image_search.app.messages import plain, show_problem
from reverse_image_search.app.query import Query, choose_query, current_query, pick, pick_region
from reverse_image_search.app.query_card import histogram, query_card
from reverse_image_search.app.region_box import region_box
from reverse_image_search.app.results import majority, name_of, narrow, results_csv, title_of
from reverse_image_search.app.score_scale import score_scale
from reverse_image_search.app.served import REQUEST_TIMEOUT, Observation, connect, gallery_stamp
from reverse_image_search.client import TritonError
from reverse_image_search.client.search import WrongAnswerError, search_gallery
from reverse_image_search.gallery import Gallery, GalleryImage, data_uri, make_thumbnail
from reverse_image_search.image_file import MAX_SIDE

DEFAULT_RESULTS = 20


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
