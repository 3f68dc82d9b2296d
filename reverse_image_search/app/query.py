"""The left side of the page: what to search with."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import streamlit as st

from reverse_image_search.app.image_grid import Tile, data_uri, image_grid
from reverse_image_search.app.query_image import as_encoder_sees, has_light_background, to_query
from reverse_image_search.app.results import title_of
from reverse_image_search.gallery import Gallery, GalleryImage, make_thumbnail, pixel_digest
from reverse_image_search.image_file import MAX_BYTES, ImageFileError, read_image

SOURCES = ("Test images", "Upload", "Camera")
ALL_CLASSES = "All classes"
EXAMPLES_PER_PAGE = 20


class Query(NamedTuple):
    """An image to search with."""

    name: str
    pixels: np.ndarray  # (height, width) or (height, width, 3) uint8, what is sent
    shown: dict[str, bytes]  # image files for the query card, by caption
    digests: set[bytes]  # SHA-256 digests that the same image would have in a gallery
    notes: tuple[str, ...] | None = None  # what was done to an uploaded image


def choose_query(gallery: Gallery) -> None:
    """Examples to click on, or an image of one's own."""
    source = st.segmented_control(
        "Search with", SOURCES, default=SOURCES[0], key="source", required=True, width="stretch"
    )
    if source == "Upload":
        label = f"An image of your own, at most {MAX_BYTES // 2**20} MB"
        st.file_uploader(label, key="upload", on_change=take_photo, args=("upload",))
    elif source == "Camera":
        label = "An object in front of a plain background"
        st.camera_input(label, key="camera", on_change=take_photo, args=("camera",))
    else:
        choose_example(gallery)


def choose_example(gallery: Gallery) -> None:
    """One page of the examples, by class, in order or shuffled."""
    class_name = ALL_CLASSES
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if gallery.metadata.class_names:
            class_name = st.selectbox(
                "Class",
                [ALL_CLASSES, *gallery.metadata.class_names],
                key="class",
                bind="query-params",
                on_change=st.query_params.update,
                args=({"page": "1"},),
            )
        st.button(
            "Shuffle",
            icon=":material/shuffle:",
            on_click=st.query_params.update,
            args=({"page": "1", "shuffle": str(np.random.default_rng().integers(1, 10_000))},),
        )
    kind, ids = example_ids(gallery, None if class_name == ALL_CLASSES else class_name)
    if seed := _number_in_address("shuffle"):
        ids = np.random.default_rng(seed).permutation(ids)
    pages = max(1, -(-len(ids) // EXAMPLES_PER_PAGE))
    page = min(_number_in_address("page", default=1), pages)
    shown = ids[(page - 1) * EXAMPLES_PER_PAGE : page * EXAMPLES_PER_PAGE]
    picked = _query_in_address(gallery)
    tiles = [
        Tile(value, _name(kind, image), data_uri(image.thumbnail), picked=value == picked)
        for image in (gallery.queries if kind == "test" else gallery.images)(shown)
        for value in [f"{kind}-{image.id}"]
    ]
    on_pick = partial(pick, gallery)
    image_grid("query", "Test images to search with", tiles, on_pick, adaptive=False)
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="center"):
        page_button("Previous", "left", page - 1, pages)
        st.markdown(f"{page:,} / {pages:,}", width="content")
        page_button("Next", "right", page + 1, pages)


def example_ids(gallery: Gallery, label: str | None) -> tuple[str, np.ndarray]:
    """Kind and ids of what a visitor may click on: gallery images where there is nothing else."""
    if gallery.query_count:
        return "test", gallery.query_ids(label)
    return "gallery", gallery.ids(label)


def page_button(label: str, side: Literal["left", "right"], page: int, pages: int) -> None:
    """A button to another page of examples."""
    st.button(
        label,
        icon=f":material/chevron_{side}:",
        icon_position=side,
        disabled=not 1 <= page <= pages,
        on_click=st.query_params.update,
        args=({"page": str(page)},),
    )


def pick(gallery: Gallery, value: str) -> None:
    """Search with the image of `gallery` that was clicked on."""
    # The address names the gallery: in another one, the id may be a different image.
    st.query_params.update({"query": value, "gallery": gallery.gallery_id})


def take_photo(widget: str) -> None:
    """Read the image that was uploaded or taken; what is wrong with it appears as a problem."""
    state, file = st.session_state, st.session_state[widget]
    state.pop("photo", None)
    if file is None:  # removed by the visitor
        if st.query_params.get("query") == "photo":
            del st.query_params["query"]
        return
    st.query_params["query"] = "photo"
    try:
        state.photo = read_image(file.getvalue())
    except ImageFileError as error:
        state.photo = f"{file.name}: {error}"
        return
    state.photo_name, state.photo_digest = file.name, hashlib.sha256(file.getvalue()).digest()
    state.crop, state.invert = True, has_light_background(state.photo.pixels)


def current_query(gallery: Gallery) -> Query:
    """The query that the page's address names; `LookupError` says why there is none."""
    value = _query_in_address(gallery)
    if value == "photo":
        return _photo_query(gallery)
    kind, _, number = value.partition("-")
    lookups = {"test": gallery.queries, "gallery": gallery.images}
    try:
        (image,) = lookups[kind]([int(number) if re.fullmatch(r"\d{1,12}", number) else -1])
    except KeyError:
        raise LookupError(
            "The address names an image that this gallery does not have. Pick another one."
        ) from None
    return Query(_name(kind, image), image.pixels, {"Query": image.thumbnail}, {image.sha256})


def _photo_query(gallery: Gallery) -> Query:
    state, metadata = st.session_state, gallery.metadata
    photo = state.get("photo", "A link cannot carry an uploaded image. Upload it again.")
    if isinstance(photo, str):
        raise LookupError(photo)
    pixels = photo.pixels
    if metadata.shows_objects_on_black:
        pixels = to_query(pixels, state.crop, state.invert)
    size = metadata.encoder_height, metadata.encoder_width
    seen = as_encoder_sees(pixels, size, metadata.encoder_is_grayscale)
    shown = {
        "Your image": make_thumbnail(photo.pixels),
        "As the encoder sees it": make_thumbnail(seen),
    }
    digests = {state.photo_digest, pixel_digest(pixels)}
    return Query(state.photo_name, pixels, shown, digests, photo.notes)


def _query_in_address(gallery: Gallery) -> str:
    """``test-0``, ``gallery-7`` or ``photo``; the first example where the address names none."""
    if "query" in st.query_params:
        return st.query_params["query"]
    kind, ids = example_ids(gallery, None)
    return f"{kind}-{ids[0]}"


def _name(kind: str, image: GalleryImage) -> str:
    return f"{kind.capitalize()} image {image.id}, {title_of(image)}"


def _number_in_address(key: str, default: int = 0) -> int:
    text = st.query_params.get(key, "")
    return int(text) if re.fullmatch(r"[1-9]\d{0,8}", text) else default
