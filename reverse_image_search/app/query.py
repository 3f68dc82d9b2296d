"""The left side of the page: what to search with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import streamlit as st

from reverse_image_search.app.image_grid import Tile, data_uri, image_grid
from reverse_image_search.app.query_image import as_encoder_sees, has_light_background, to_query
from reverse_image_search.app.results import title_of
from reverse_image_search.client.image_file import MAX_BYTES, ImageFileError, Photo, read_image
from reverse_image_search.gallery import Gallery, GalleryImage, make_thumbnail, pixel_digest

ALL_CLASSES = "All classes"
EXAMPLES_PER_PAGE = 20


@dataclass(frozen=True)
class Query:
    """An image to search with.

    Attributes
    ----------
    pixels : (height, width) or (height, width, 3) uint8, what is sent
    shown : image files for the query card, by caption
    digests : SHA-256 digests that the same image would have in a gallery
    photo : the uploaded image, if it is one
    """

    name: str
    pixels: np.ndarray
    shown: dict[str, bytes]
    digests: set[bytes]
    photo: Photo | None = None


def choose_query(gallery: Gallery) -> None:
    """Examples to click on, or an image of one's own."""
    source = st.segmented_control(
        "Search with",
        ["Test images", "Upload", "Camera"],
        default="Test images",
        key="source",
        required=True,
        width="stretch",
    )
    if source == "Upload":
        st.file_uploader(
            f"An image of your own, at most {MAX_BYTES // 2**20} MB",
            key="upload",
            on_change=take_photo,
            args=("upload",),
        )
    elif source == "Camera":
        st.camera_input(
            "An object in front of a plain background",
            key="camera",
            on_change=take_photo,
            args=("camera",),
        )
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
                on_change=lambda: st.query_params.pop("page", None),
            )
        st.button("Shuffle", icon=":material/shuffle:", on_click=shuffle)
    kind, ids = example_ids(gallery, None if class_name == ALL_CLASSES else class_name)
    if seed := _number_in_address("shuffle"):
        ids = np.random.default_rng(seed).permutation(ids)
    pages = max(1, -(-len(ids) // EXAMPLES_PER_PAGE))
    page = min(_number_in_address("page", default=1), pages)
    shown = ids[(page - 1) * EXAMPLES_PER_PAGE : page * EXAMPLES_PER_PAGE]
    picked = _query_in_address(gallery)
    tiles = [
        Tile(
            value=f"{kind}-{image.id}",
            name=_name(kind, image),
            source=data_uri(image.thumbnail),
            picked=picked == f"{kind}-{image.id}",
        )
        for image in (gallery.queries if kind == "test" else gallery.images)(shown)
    ]
    image_grid("query", "Test images to search with", tiles, pick(gallery), adaptive=False)
    turn_pages(page, pages)


def example_ids(gallery: Gallery, label: str | None) -> tuple[str, np.ndarray]:
    """Kind and ids of what a visitor may click on: gallery images where there is nothing else."""
    if gallery.query_count:
        return "test", gallery.query_ids(label)
    return "gallery", gallery.ids(label)


def turn_pages(page: int, pages: int) -> None:
    """Buttons to the previous and the next page of examples."""

    def button(label: str, arrow: str, to: int, position: str = "left") -> None:
        st.button(
            label,
            icon=f":material/chevron_{arrow}:",
            icon_position=position,
            disabled=not 1 <= to <= pages,
            on_click=st.query_params.update,
            args=({"page": str(to)},),
        )

    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="center"):
        button("Previous", "left", page - 1)
        st.markdown(f"{page:,} / {pages:,}", width="content")
        button("Next", "right", page + 1, "right")


def shuffle() -> None:
    """Show other examples."""
    st.query_params.pop("page", None)
    st.query_params["shuffle"] = str(np.random.default_rng().integers(1, 10_000))


def pick(gallery: Gallery) -> Callable[[str], None]:
    """What a click on an image of `gallery` does."""

    def search_with(value: str) -> None:
        # The address names the gallery: in another one, the id may be a different image.
        st.query_params.update({"query": value, "gallery": gallery.gallery_id})

    return search_with


def take_photo(widget: str) -> None:
    """Read the image that was uploaded or taken; what is wrong with it appears as a problem."""
    file = st.session_state[widget]
    for key in ("photo", "photo_problem"):
        st.session_state.pop(key, None)
    if file is None:  # removed by the visitor
        if st.query_params.get("query") == "photo":
            del st.query_params["query"]
        return
    st.query_params["query"] = "photo"
    data = file.getvalue()
    try:
        photo = read_image(data)
    except ImageFileError as error:
        st.session_state.photo_problem = f"{file.name}: {error}"
        return
    st.session_state.photo = photo
    st.session_state.photo_name = file.name
    st.session_state.photo_digest = hashlib.sha256(data).digest()
    st.session_state.crop = True
    st.session_state.invert = has_light_background(photo.pixels)


def current_query(gallery: Gallery) -> Query:
    """The query that the page's address names.

    Raises
    ------
    LookupError : there is none, or it cannot be read
    """
    value = _query_in_address(gallery)
    if value == "photo":
        return _photo_query(gallery)
    kind, _, number = value.partition("-")
    lookups = {"test": gallery.queries, "gallery": gallery.images}
    try:
        if kind not in lookups or not re.fullmatch(r"\d{1,12}", number):
            raise KeyError(value)
        (image,) = lookups[kind]([int(number)])
    except KeyError:
        raise LookupError(
            "The address names an image that this gallery does not have. Pick another one."
        ) from None
    return Query(_name(kind, image), image.pixels, {"Query": image.thumbnail}, {image.sha256})


def _photo_query(gallery: Gallery) -> Query:
    state, metadata = st.session_state, gallery.metadata
    if "photo_problem" in state:
        raise LookupError(state.photo_problem)
    if "photo" not in state:
        raise LookupError("A link cannot carry an uploaded image. Upload it again.")
    pixels = state.photo.pixels
    if metadata.shows_objects_on_black:
        pixels = to_query(pixels, state.crop, state.invert)
    seen = as_encoder_sees(
        pixels, (metadata.encoder_height, metadata.encoder_width), metadata.encoder_is_grayscale
    )
    return Query(
        state.photo_name,
        pixels,
        {
            "Your image": make_thumbnail(state.photo.pixels),
            "As the encoder sees it": make_thumbnail(seen),
        },
        {state.photo_digest, pixel_digest(pixels)},
        state.photo,
    )


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
