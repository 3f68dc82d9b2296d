"""Pictures in a grid, each of them a button: Streamlit's own images cannot be clicked.

A whole grid is one element of the page. Twenty results made of Streamlit's own elements would be
a hundred of them, and take several times as long to repaint.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import streamlit as st
from PIL import Image

_FOLDER = Path(__file__).parent

_component = st.components.v2.component(
    "image_grid",
    html='<div class="grid"><ul></ul></div>',
    css=(_FOLDER / "image_grid.css").read_text(),
    js=(_FOLDER / "image_grid.js").read_text(),
)


@dataclass(frozen=True)
class Line:
    """One line of text below a picture; `look` is "", "strong", "odd" or "faint"."""

    text: str
    look: str = ""


@dataclass(frozen=True)
class Tile:
    """One picture of a grid.

    Attributes
    ----------
    value : what a click on it sends
    name : what it shows, for screen readers and as a tooltip
    source : data URI of the picture
    lines : what stands below the picture
    badge : short text across the picture
    picked : whether it is the one that was clicked last
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
    columns : pictures in a row; on narrow screens three, where `adaptive`
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


def png_data_uri(pixels: np.ndarray) -> str:
    """(height, width[, 3]) uint8, grey or RGB, as a PNG within a ``data:`` URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
