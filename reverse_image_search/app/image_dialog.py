"""One image of the gallery, large: its original, its files, and a search for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from reverse_image_search.app.image_grid import Line, Tile
from reverse_image_search.app.messages import plain
from reverse_image_search.app.originals import (
    NoOriginalError,
    as_jpeg,
    is_missing,
    read_original,
    shown_path,
)
from reverse_image_search.app.query import pick, tile_ratio
from reverse_image_search.app.results import name_of
from reverse_image_search.gallery import Gallery, GalleryImage, data_uri


def photo_tile(
    image: GalleryImage, paths: Sequence[Path], name: str, lines: Sequence[Line], badge: str = ""
) -> Tile:
    """The tile of an image that `open_image` is to show; `paths` are those of its files."""
    return Tile(
        value=f"gallery-{image.id}",
        name=f"{name}. Open it.",
        source=data_uri(image.thumbnail),
        lines=tuple(lines),
        badge="file is gone" if is_missing(paths) else badge,
        ratio=tile_ratio(image),
        path=shown_path(paths[0]) if paths else "",
        picked=None,
    )


def open_image(value: str) -> None:
    """Show the image that was clicked on, ``gallery-7``, from the next run on."""
    st.session_state.opened = value


def show_opened_image(gallery: Gallery) -> None:
    """The dialog, if an image is open. Called by every run: one that does not closes the dialog."""
    kind, _, number = st.session_state.get("opened", "").partition("-")
    if kind != "gallery" or not number.isdecimal() or len(number) > 12:
        return
    try:
        (image,) = gallery.images([int(number)])
    except KeyError:  # removed meanwhile
        return
    title = plain(name_of(image))
    st.dialog(title, width="medium", on_dismiss=_close)(_show)(gallery, image)


def _show(gallery: Gallery, image: GalleryImage) -> None:
    try:
        pixels, reason = read_original(gallery, image), ""
    except NoOriginalError as error:
        pixels, reason = None, str(error)
    file = image.thumbnail if pixels is None else as_jpeg(pixels)
    st.html(
        '<img data-testid="original" style="max-width:100%;max-height:65vh;display:block;'
        f'margin:auto;border-radius:.5rem" src="{data_uri(file)}" alt="">'
    )
    if reason:
        st.info(f"{reason} This is its thumbnail.", icon=":material/image_not_supported:")
    label = f"{plain(image.label)} · " if image.label else ""
    st.caption(f"{label}{image.width:,} x {image.height:,} pixels · id {image.id}")
    for path in gallery.paths(image.id):
        st.code(shown_path(path), language=None, wrap_lines=True)
    if st.button("Search for this image", icon=":material/search:"):
        pick(gallery, f"gallery-{image.id}")
        _close()
        st.rerun()


def _close() -> None:
    st.session_state.pop("opened", None)
