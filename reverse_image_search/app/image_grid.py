"""A grid of clickable images; Streamlit's own images cannot be clicked.

A whole grid is one element of the page: twenty results made of Streamlit's own elements would be a
hundred elements and take several times as long to repaint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import streamlit as st

_component = st.components.v2.component(
    "image_grid",
    html='<div class="grid"><ul></ul></div>',
    css=Path(__file__).with_name("image_grid.css").read_text(),
    js=Path(__file__).with_name("image_grid.js").read_text(),
)

# "squares" are rows of five, "squares adaptive" rows of three on narrow screens; in "rows", each
# image has its own aspect ratio.
Look = Literal["squares", "squares adaptive", "rows", "rows compact"]


@dataclass(frozen=True)
class Line:
    """One line of text below an image."""

    text: str
    look: str = ""  # "", "strong", "odd" or "faint"


@dataclass(frozen=True)
class Tile:
    """One image of a grid."""

    value: str  # what a click on it sends
    name: str  # what it shows, for screen readers and as a tooltip
    source: str  # data URI of the image
    lines: tuple[Line, ...] = ()  # text below the image
    badge: str = ""  # short text across the image
    picked: bool | None = False  # whether it was clicked last; None if a click opens a dialog
    ratio: float = 1.0  # width by height
    path: str = ""  # what the image's copy button copies; without it, there is no button


def image_grid(
    key: str,
    label: str,
    tiles: list[Tile],
    on_pick: Callable[[str], None],
    look: Look = "squares adaptive",
) -> None:
    """Show `tiles`; a click (or Enter) on one calls ``on_pick(tile.value)`` before the next run.

    `label` is for screen readers.
    """

    def picked() -> None:
        match st.session_state[key].pick:
            case {"value": str(value)}:  # it comes from a browser, and may be anything
                on_pick(value)

    shown = [asdict(tile) for tile in tiles]
    data = {"label": label, "testId": key, "look": look, "tiles": shown}
    _component(key=key, data=data, on_pick_change=picked)
