"""A grid of clickable images; Streamlit's own images cannot be clicked.

A whole grid is one element of the page: twenty results made of Streamlit's own elements would be a
hundred elements and take several times as long to repaint.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import streamlit as st

_FOLDER = Path(__file__).parent

_component = st.components.v2.component(
    "image_grid",
    html='<div class="grid"><ul></ul></div>',
    css=(_FOLDER / "image_grid.css").read_text(),
    js=(_FOLDER / "image_grid.js").read_text(),
)


@dataclass(frozen=True)
class Line:
    """One line of text below an image; `look` is "", "strong", "odd" or "faint"."""

    text: str
    look: str = ""


@dataclass(frozen=True)
class Tile:
    """One image of a grid.

    Attributes
    ----------
    value : what a click on it sends
    name : what it shows, for screen readers and as a tooltip
    source : data URI of the image
    lines : text below the image
    badge : short text across the image
    picked : whether it was clicked last
    """

    value: str
    name: str
    source: str
    lines: tuple[Line, ...] = ()
    badge: str = ""
    picked: bool = False


def image_grid(
    key: str,
    label: str,
    tiles: list[Tile],
    on_pick: Callable[[str], None],
    columns: int = 5,
    adaptive: bool = True,
) -> None:
    """Show `tiles`; a click (or Enter) on one calls ``on_pick(tile.value)`` before the next run.

    Parameters
    ----------
    key : names the grid in the session state; each tile's ``data-testid``
    label : what the grid shows, for screen readers
    columns : images in a row
    adaptive : three in a row on narrow screens
    """

    def picked() -> None:
        match st.session_state[key].pick:
            case {"value": str(value)}:  # it comes from a browser, and may be anything
                on_pick(value)

    _component(
        key=key,
        data={
            "label": label,
            "testId": key,
            "columns": columns,
            "adaptive": adaptive,
            "tiles": [asdict(tile) for tile in tiles],
        },
        on_pick_change=picked,
    )


def data_uri(image_file: bytes) -> str:
    """A PNG, JPEG or WebP file as a ``data:`` URI."""
    starts = {b"\x89PNG": "png", b"RIFF": "webp"}
    kind = starts.get(image_file[:4], "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(image_file).decode()}"
