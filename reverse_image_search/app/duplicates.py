"""The view of near-duplicates: groups of images, side by side. It deletes nothing."""

from __future__ import annotations

from functools import partial

import streamlit as st

from reverse_image_search.app.address import number_in_address, put_in_address
from reverse_image_search.app.image_dialog import open_image, photo_tile
from reverse_image_search.app.image_grid import Line, Tile, image_grid
from reverse_image_search.app.query import page_buttons
from reverse_image_search.app.results import name_of
from reverse_image_search.client import Client
from reverse_image_search.client.duplicates import DuplicateGroup, find_duplicates
from reverse_image_search.client.same_photo import (
    REQUIREMENTS,
    SamePhotoCheck,
    can_check,
    is_installed,
)
from reverse_image_search.gallery import Gallery

GROUPS_PER_PAGE = 10
DEFAULT_THRESHOLD = 0.95  # where the build measured none


def show_duplicates(client: Client, gallery: Gallery, stamp: tuple[int, ...]) -> None:
    """Choose a threshold, find the groups, and look through them."""
    measured = gallery.metadata.duplicate_threshold
    with st.container(horizontal=True, vertical_alignment="bottom"):
        threshold = st.slider(
            "Lowest score of a near-duplicate",
            0.5,
            1.0,
            round(measured or DEFAULT_THRESHOLD, 3),
            0.005,
            format="%.3f",
            key="duplicates_from",
        )
        start = st.button("Find near-duplicates", icon=":material/search:")
    st.caption(
        "Compares each image with all others. The largest image of a group comes first. "
        "Nothing is deleted: copy the paths of what you want to remove."
    )
    is_checked = can_check(gallery) and is_installed()
    if is_checked:
        st.caption("Similar photos of lower scores are checked: cropped copies are found, too.")
    elif can_check(gallery):
        st.caption(
            "By scores alone, so cropped copies are missed: OpenCV is not installed "
            f"({REQUIREMENTS})."
        )
    if start:
        bar = st.empty()

        def progress(what: str, done: int, total: int) -> None:
            bar.progress(done / total, f"{done:,} of {total:,} {what}")

        groups = find_duplicates(
            client,
            gallery,
            threshold,
            partial(progress, "images compared"),
            SamePhotoCheck(gallery, partial(progress, "pairs checked")) if is_checked else None,
        )
        bar.empty()
        st.session_state.duplicates = threshold, stamp, groups
        put_in_address(page="1")
    if "duplicates" in st.session_state:
        found_threshold, found_stamp, groups = st.session_state.duplicates
        count = sum(len(group.ids) - 1 for group in groups)
        st.subheader(
            f"Near-duplicates with scores from {found_threshold:.3f}: {count:,}, in "
            f"{len(groups):,} {'group' if len(groups) == 1 else 'groups'}",
            anchor=False,
        )
        if found_stamp != stamp:
            st.caption("The gallery has changed since then: find them again.")
        show_groups(gallery, groups)


def show_groups(gallery: Gallery, groups: list[DuplicateGroup]) -> None:
    """One page of groups, two in a row."""
    pages = max(1, -(-len(groups) // GROUPS_PER_PAGE))
    page = min(number_in_address("page", default=1), pages)
    first = (page - 1) * GROUPS_PER_PAGE
    shown = list(enumerate(groups[first : first + GROUPS_PER_PAGE], start=first + 1))
    for row in (shown[i : i + 2] for i in range(0, len(shown), 2)):
        for column, (number, group) in zip(st.columns(2), row, strict=False):
            with column, st.container(border=True, height="stretch"):
                tiles = group_tiles(gallery, group)
                image_grid(f"group-{number}", f"Group {number}", tiles, open_image, "rows")
    if pages > 1:
        page_buttons(page, pages)


def group_tiles(gallery: Gallery, group: DuplicateGroup) -> list[Tile]:
    """The images of a group that are still in the gallery, the one to keep first."""
    gone = set(gallery.missing(group.ids))
    kept = [(int(i), float(score)) for i, score in zip(*group, strict=True) if int(i) not in gone]
    tiles = []
    for image, (_, score) in zip(gallery.images(i for i, _ in kept), kept, strict=True):
        is_first = image.id == group.ids[0]
        paths = gallery.paths(image.id)
        size = f"{image.width:,} x {image.height:,}"
        facts = [size, *([f"{len(paths)} equal files"] if len(paths) > 1 else [])]
        lines = [
            Line("largest" if is_first else f"{score:.4f}", "strong"),
            Line(name_of(image)),
            Line(" · ".join(facts)),
            Line(image.source, "faint"),
        ]
        name = f"{name_of(image)}, {size}, score {score:.4f}"
        tiles.append(photo_tile(image, paths, name, lines))
    return tiles
