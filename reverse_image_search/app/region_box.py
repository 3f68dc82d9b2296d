"""A box that a visitor draws on an image, to search for what is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import streamlit as st

from reverse_image_search.gallery import data_uri

_component = st.components.v2.component(
    "region_box",
    html='<div class="frame" tabindex="0" role="group"><img><div class="box"></div></div>',
    css=Path(__file__).with_name("region_box.css").read_text(),
    js=Path(__file__).with_name("region_box.js").read_text(),
)


class Region(NamedTuple):
    """Part of an image, in percent of its width (left, right) and height (top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int

    def __str__(self) -> str:
        return "-".join(map(str, self))

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """That part of (height, width[, 3]); at least one pixel."""
        height, width = pixels.shape[:2]
        left, top = self.left * width // 100, self.top * height // 100
        right, bottom = -(-self.right * width // 100), -(-self.bottom * height // 100)
        return pixels[top:bottom, left:right]


def parse_region(text: str) -> Region | None:
    """The region that ``str(region)`` gave `text`; None if there is none in it, or all of it."""
    sides = [int(side) for side in text.split("-") if side.isdecimal() and len(side) <= 3]
    return _region(sides)


def region_box(
    key: str, label: str, image_file: bytes, region: Region | None, on_draw: Callable[[str], None]
) -> None:
    """Show an image with a box on it; a new box calls ``on_draw(str(region))`` before the next run.

    Without a box, or with one around the whole image, the text is empty.
    """

    def drawn() -> None:
        match st.session_state[key].drawn:
            case {"box": [int(), int(), int(), int()] as sides}:
                on_draw(str(_region(sides) or ""))

    data = {"label": label, "source": data_uri(image_file), "box": region and list(region)}
    _component(key=key, data=data, on_drawn_change=drawn)


def _region(sides: list[int]) -> Region | None:
    if len(sides) != 4 or sides == [0, 0, 100, 100]:
        return None
    left, top, right, bottom = sides
    if not (0 <= left < right <= 100 and 0 <= top < bottom <= 100):
        return None
    return Region(*sides)
