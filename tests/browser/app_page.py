"""The app as a visitor meets it: what a test reads and does on the page."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Error, Locator, Page, expect

PATIENCE = 30_000  # milliseconds; a bound against hanging, as the machine may be busy

_READ_TILES = """tiles => tiles.map(tile => ({
    value: tile.dataset.value,
    name: tile.getAttribute("aria-label"),
    picked: tile.getAttribute("aria-pressed") === "true",
    lines: [...tile.querySelectorAll(".caption span")].map(line => line.textContent),
    badge: tile.querySelector(".badge").textContent,
    source: tile.querySelector("img").src,
    alt: tile.querySelector("img").alt,
}))"""

# Clicks an image and resolves to the milliseconds until card and results of it are painted.
_CLICK_AND_MEASURE = """([testId, value, name, ids]) => new Promise((resolve, reject) => {
    const grids = () => [...document.querySelectorAll('[data-testid="stBidiComponentIsolated"]')];
    const tiles = (kind) => grids().flatMap(
        (grid) => [...grid.shadowRoot.querySelectorAll(`[data-testid=${kind}]`)]);
    const start = performance.now();
    tiles(testId).find((tile) => tile.dataset.value === value).click();
    const check = () => {
        const card = document.querySelector('[data-testid="query-card"] .name');
        const shown = tiles("result").map((tile) => tile.dataset.value);
        if (card?.textContent === name && shown.join() === ids.join()) {
            // The next frame starts once this one is painted.
            requestAnimationFrame(() => resolve(performance.now() - start));
        } else if (performance.now() - start > 30000) {
            reject(new Error(`not painted: ${name}; shown: ${card?.textContent} ${shown}`));
        } else {
            requestAnimationFrame(check);
        }
    };
    check();
})"""


@dataclass
class Tile:
    """One image of a grid, as the browser shows it."""

    value: str
    name: str
    picked: bool
    lines: list[str]
    badge: str
    source: str
    alt: str

    @property
    def id(self) -> int:
        """Gallery id, or number of the test image."""
        return int(self.value.partition("-")[2])

    @property
    def score(self) -> float:
        return float(self.lines[0])

    @property
    def label(self) -> str:
        return self.lines[1]

    @property
    def pixels(self) -> np.ndarray:
        """(height, width[, 3]) uint8 that the browser was given."""
        kind, _, data = self.source.partition(",")
        assert kind == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


class AppPage:
    """One open page of the app."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []  # of the page's own scripts
        page.on("pageerror", lambda error: self._note(str(error)))
        page.on("console", lambda message: message.type == "error" and self._note(message.text))

    def _note(self, error: str) -> None:
        # A connection that breaks is not the page's fault, and some tests break it.
        if not re.search("Failed to (load|fetch)|[Ww]eb ?[Ss]ocket|disconnected|ERR_", error):
            self.errors.append(error)

    @property
    def results(self) -> list[Tile]:
        return self._tiles("result")

    @property
    def queries(self) -> list[Tile]:
        return self._tiles("query")

    @property
    def card(self) -> Locator:
        return self.page.get_by_test_id("query-card")

    @property
    def problem(self) -> Locator:
        return self.page.locator(".st-key-problem")

    @property
    def heading(self) -> Locator:
        return self.page.get_by_role("heading", level=3)

    def pick(self, kind: str, value: str) -> None:
        """Click the image `value` of grid `kind` ("query" or "result") and see it searched."""
        tile = self.tile(kind, value)
        name = tile.get_attribute("aria-label")
        tile.click()
        if kind == "query":
            self.wait_for_query(name)
        else:
            self.wait_for_query(f"Gallery image {value.partition('-')[2]}, ")

    def tile(self, kind: str, value: str) -> Locator:
        return self.page.locator(f'[data-testid={kind}][data-value="{value}"]')

    def wait_for_query(self, name: str, timeout: float = PATIENCE) -> None:
        """Wait until the query called `name` is searched for and its results are there."""
        expect(self.card.locator(".name")).to_contain_text(name, timeout=timeout)
        self.page.get_by_test_id("result").first.wait_for(timeout=PATIENCE)

    def wait_until_idle(self) -> None:
        """Wait until the page's script has run to its end and what it opened has unfolded."""
        app = self.page.get_by_test_id("stApp")
        expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=PATIENCE)
        self.page.wait_for_function(
            "() => document.getAnimations().every(({ playState }) => playState !== 'running')",
            timeout=PATIENCE,
        )

    def wait_for_problem(self, text: str) -> None:
        """Wait until the page says `text`, and shows no results."""
        expect(self.problem).to_contain_text(text, timeout=PATIENCE)
        expect(self.page.get_by_test_id("result")).to_have_count(0, timeout=PATIENCE)

    def start_click(self, kind: str, value: str, name: str, ids: list[int]) -> None:
        """Click without waiting; `end_click` tells how long the repaint took."""
        arguments = [kind, value, name, [f"gallery-{i}" for i in ids]]
        self.page.evaluate(
            f"arguments => {{ window.repaint = ({_CLICK_AND_MEASURE})(arguments);"
            " window.repaint.catch(() => null); }",
            arguments,
        )

    def end_click(self) -> float:
        """Milliseconds from the last click until everything that belongs to it was painted."""
        return self.page.evaluate("window.repaint")

    def upload(self, path: Path) -> None:
        """Choose a file of one's own."""
        self.choose_source("Upload")
        self.page.locator("input[type=file]").set_input_files(path)

    def choose_source(self, source: str) -> None:
        self.page.get_by_role("radio", name=source).click()

    def _tiles(self, kind: str) -> list[Tile]:
        found = self.page.get_by_test_id(kind).evaluate_all(_READ_TILES)
        return [Tile(**tile) for tile in found]


def open_app(browser: Browser, url: str, **context_options) -> AppPage:
    """Open the app in a browser session of its own and wait until it shows something."""
    page = browser.new_context(**context_options).new_page()
    app_page = AppPage(page)
    for attempt in range(5):
        try:
            page.goto(url, timeout=PATIENCE)
            page.locator("[data-testid=result], .st-key-problem").first.wait_for(
                timeout=PATIENCE / 3
            )
            break
        except Error:
            # Chromium drops what it is loading whenever the machine's network interfaces change,
            # as they do when a container starts beside.
            if attempt == 4:
                raise
    return app_page
