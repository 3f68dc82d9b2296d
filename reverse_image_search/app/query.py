"""The left side of the page: what to search with."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import streamlit as st
from PIL import Image

from reverse_image_search.app.address import number_in_address, put_in_address
from reverse_image_search.app.browse import browsed_ids, short_names
from reverse_image_search.app.image_grid import Look, Tile, image_grid
from reverse_image_search.app.originals import DETAILED_SIDE, query_pixels
from reverse_image_search.app.paste import accept_pasted_images
from reverse_image_search.app.query_image import as_encoder_sees, has_light_background, to_query
from reverse_image_search.app.region_box import Region, parse_region
from reverse_image_search.app.results import name_of, title_of
from reverse_image_search.gallery import (
    Gallery,
    GalleryImage,
    data_uri,
    make_thumbnail,
    pixel_digest,
)
from reverse_image_search.image_file import MAX_BYTES, MAX_SIDE, ImageFileError, read_image, to_rgb

ALL_CLASSES = "All classes"
EVERYTHING = "All"
EXAMPLES_PER_PAGE = 20


class Query(NamedTuple):
    """An image to search with."""

    name: str
    pixels: np.ndarray  # (height, width) or (height, width, 3) uint8, what is sent
    shown: dict[str, bytes]  # image files for the query card, by caption
    digests: set[bytes]  # SHA-256 digests that the same image would have in a gallery
    notes: tuple[str, ...] | None = None  # what was done to an uploaded image
    region: Region | None = None  # the part of the image that is sent
    whole: np.ndarray | None = None  # pixels that a region can be cut from


def choose_query(gallery: Gallery) -> None:
    """Images to click on, or one of the visitor's own."""
    is_photos = gallery.metadata.is_photos
    sources = ("Browse" if is_photos else "Test images", "Upload", "Camera")
    source = st.segmented_control(
        "Search with", sources, default=sources[0], key="source", required=True, width="stretch"
    )
    if source == "Upload":
        label = f"An image of your own, at most {MAX_BYTES // 2**20} MB; or paste one (Ctrl+V)"
        st.file_uploader(label, key="upload", on_change=take_photo, args=("upload", gallery))
        accept_pasted_images()
    elif source == "Camera":
        label = "A photo" if is_photos else "An object in front of a plain background"
        st.camera_input(label, key="camera", on_change=take_photo, args=("camera", gallery))
    elif is_photos:
        browse(gallery)
    else:
        choose_example(gallery)


def browse(gallery: Gallery) -> None:
    """The gallery's own images, by label, folder and text in the path, in order or shuffled."""
    label = folder = None
    first_page = partial(put_in_address, page="1")
    if len(gallery.metadata.class_names) > 1:
        counts = gallery.label_counts()
        options = [EVERYTHING, *counts]
        names = {each: f"{each} ({counts[each]:,})" for each in counts}
        label = choose("Label", "label", options, names)
    folders = gallery.folders()
    if len(folders) > max(1, len(gallery.metadata.class_names)):
        folder = choose("Folder", "folder", [EVERYTHING, *folders], short_names(folders))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input(
            "Text in the path",
            key="text",
            type="search",
            bind="query-params",
            on_change=first_page,
            placeholder="holiday/2024",
        )
        shuffle_button()
    ids = browsed_ids(gallery, label, folder, text)
    if not len(ids):
        st.caption("No image matches.")
    show_examples(gallery, "gallery", ids)


def choose(
    title: str, key: str, options: list[str], names: dict[str, str] | None = None
) -> str | None:
    """A choice that the address keeps; None if it is the first, which is for all images."""
    chosen = st.selectbox(
        title,
        options,
        key=key,
        format_func=lambda option: (names or {}).get(option, option),
        bind="query-params",
        on_change=put_in_address,
        kwargs={"page": "1"},
    )
    return None if chosen == options[0] else chosen


def choose_example(gallery: Gallery) -> None:
    """The examples, by class, in order or shuffled."""
    label = None
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if gallery.metadata.class_names:
            label = choose("Class", "class", [ALL_CLASSES, *gallery.metadata.class_names])
        shuffle_button()
    kind, ids = example_ids(gallery, label)
    show_examples(gallery, kind, ids)


def shuffle_button() -> None:
    """A button that shows the images in another random order."""
    st.button(
        "Shuffle",
        icon=":material/shuffle:",
        on_click=put_in_address,
        kwargs={"page": "1", "shuffle": str(np.random.default_rng().integers(1, 10_000))},
    )


def show_examples(gallery: Gallery, kind: str, ids: np.ndarray) -> None:
    """One page of images to click on, and buttons to the others."""
    is_photos = gallery.metadata.is_photos
    if seed := number_in_address("shuffle"):
        ids = np.random.default_rng(seed).permutation(ids)
    pages = max(1, -(-len(ids) // EXAMPLES_PER_PAGE))
    page = min(number_in_address("page", default=1), pages)
    shown = ids[(page - 1) * EXAMPLES_PER_PAGE : page * EXAMPLES_PER_PAGE]
    picked = _query_in_address(gallery)
    tiles = [
        Tile(
            value,
            _name(kind, image),
            data_uri(image.thumbnail),
            picked=value == picked,
            ratio=tile_ratio(image) if is_photos else 1.0,
        )
        for image in (gallery.queries if kind == "test" else gallery.images)(shown)
        for value in [f"{kind}-{image.id}"]
    ]
    label = "Images to search with" if is_photos else "Test images to search with"
    look: Look = "rows compact" if is_photos else "squares"
    image_grid("query", label, tiles, partial(pick, gallery), look)
    page_buttons(page, pages)


def example_ids(gallery: Gallery, label: str | None) -> tuple[str, np.ndarray]:
    """Kind and ids of what a visitor may click on: gallery images where there is nothing else."""
    if gallery.query_count and not gallery.metadata.is_photos:
        return "test", gallery.query_ids(label)
    return "gallery", gallery.ids(label)


def page_buttons(page: int, pages: int) -> None:
    """Buttons to the previous and next page, and which one this is."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="center"):
        page_button("Previous", "left", page - 1, pages)
        st.markdown(f"{page:,} / {pages:,}", width="content")
        page_button("Next", "right", page + 1, pages)


def page_button(label: str, side: Literal["left", "right"], page: int, pages: int) -> None:
    """A button to another page of examples."""
    st.button(
        label,
        icon=f":material/chevron_{side}:",
        icon_position=side,
        disabled=not 1 <= page <= pages,
        on_click=put_in_address,
        kwargs={"page": str(page)},
    )


def pick(gallery: Gallery, value: str) -> None:
    """Search with the image of `gallery` that was clicked on."""
    # The address names the gallery: in another one, the id may be a different image.
    put_in_address(query=value, gallery=gallery.gallery_id, region=None)


def pick_region(region: str) -> None:
    """Search with part of the query image; all of it if `region` is empty."""
    put_in_address(region=region or None)


def take_photo(widget: str, gallery: Gallery) -> None:
    """Read the image that was uploaded or taken; what is wrong with it appears as a problem."""
    state, file = st.session_state, st.session_state[widget]
    state.pop("photo", None)
    if file is None:  # removed by the visitor
        if st.query_params.get("query") == "photo":
            put_in_address(query=None)
        return
    try:
        state.photo = read_image(file.getvalue())
        if gallery.metadata.is_photos:
            state.photo_in_detail = read_image(file.getvalue(), DETAILED_SIDE).pixels
        state.photo_name, state.photo_digest = file.name, hashlib.sha256(file.getvalue()).digest()
        state.crop, state.invert = True, has_light_background(state.photo.pixels)
    except ImageFileError as error:
        state.photo = f"{file.name}: {error}"
    put_in_address(query="photo", region=None)


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
    digests, shown = {image.sha256}, {"Query": image.thumbnail}
    if not gallery.metadata.is_photos:
        return Query(_name(kind, image), image.pixels, shown, digests)
    region = parse_region(st.query_params.get("region", ""))
    whole = query_pixels(gallery, image, DETAILED_SIDE if region else MAX_SIDE)
    name = f"Gallery image {image.id}, {name_of(image)}"
    return _query_for_part(name, whole, region, shown, digests)


def _query_for_part(
    name: str,
    whole: np.ndarray,
    region: Region | None,
    shown: dict[str, bytes],
    digests: set[bytes],
    notes: tuple[str, ...] | None = None,
) -> Query:
    pixels = whole
    if region:
        pixels = np.asarray(to_rgb(Image.fromarray(region.cut(whole))))
        shown = shown | {"Searched for": make_thumbnail(pixels)}
    return Query(name, pixels, shown, digests, notes, region, whole)


def _photo_query(gallery: Gallery) -> Query:
    state, metadata = st.session_state, gallery.metadata
    photo = state.get("photo", "A link cannot carry an uploaded image. Upload it again.")
    if isinstance(photo, str):
        raise LookupError(photo)
    pixels = photo.pixels
    if metadata.is_photos:
        region = parse_region(st.query_params.get("region", ""))
        whole = state.photo_in_detail if region else pixels
        shown = {"Your image": make_thumbnail(pixels)}
        digests = {state.photo_digest}
        return _query_for_part(state.photo_name, whole, region, shown, digests, photo.notes)
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


def tile_ratio(image: GalleryImage) -> float:
    """Width by height, but no tile is a narrow strip."""
    return min(max(image.width / image.height, 0.5), 2.5)


def _query_in_address(gallery: Gallery) -> str:
    """``test-0``, ``gallery-7`` or ``photo``; the first example where the address names none."""
    if "query" in st.query_params:
        return st.query_params["query"]
    kind, ids = example_ids(gallery, None)
    return f"{kind}-{ids[0]}"


def _name(kind: str, image: GalleryImage) -> str:
    return f"{kind.capitalize()} image {image.id}, {title_of(image)}"
