"""How the page looks and sounds: themes, widths, keyboard, screen reader, and what it fetches."""

import urllib.error
import urllib.request

import pytest
from playwright.sync_api import expect

from tests.browser.app_page import PATIENCE
from tests.running import open_url

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def _luminance(page, selector, attribute):
    """Relative luminance, 0 to 1, of a CSS color (WCAG 2.2)."""
    channels = page.page.evaluate(
        """([selector, attribute]) => {
            const canvas = new OffscreenCanvas(1, 1).getContext("2d");
            canvas.fillStyle = getComputedStyle(document.querySelector(selector))[attribute];
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
        }""",
        [selector, attribute],
    )
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in channels[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_follows_the_visitors_color_scheme_with_enough_contrast(open_page, scheme):
    page = open_page(color_scheme=scheme)
    background = _luminance(page, "[data-testid=stApp]", "backgroundColor")
    text = _luminance(page, "[data-testid=query-card] .name", "color")

    assert (background > 0.5) == (scheme == "light")
    contrast = (max(background, text) + 0.05) / (min(background, text) + 0.05)
    assert contrast >= 7  # WCAG AAA


@pytest.mark.parametrize(("viewport", "columns"), [(DESKTOP, 5), (PHONE, 3)])
def test_rows_of_five_and_on_a_phone_of_three(open_page, viewport, columns):
    page = open_page(viewport=viewport)

    tops = page.page.get_by_test_id("result").evaluate_all(
        "tiles => tiles.map(tile => Math.round(tile.getBoundingClientRect().top))"
    )
    assert tops.count(tops[0]) == columns
    main = page.page.get_by_test_id("stMain")
    assert main.evaluate("main => main.scrollWidth - main.clientWidth") == 0


def test_tiny_images_are_enlarged_without_blur(open_page):
    page = open_page()

    for image in (
        page.page.get_by_test_id("result").first.locator("img"),
        page.page.get_by_test_id("query").first.locator("img"),
        page.card.locator("img").first,
    ):
        assert image.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
        assert image.evaluate("image => image.naturalWidth") == 28
        assert image.evaluate("image => image.width") > 50


def test_everything_has_a_name_for_screen_readers(open_page):
    page = open_page()
    tiles = page.results + page.queries

    assert len(tiles) == 40
    assert all(tile.alt and tile.name for tile in tiles)
    assert (
        tiles[0].name == f"Result 1: {tiles[0].label}, score {tiles[0].lines[0]}. Search with it."
    )
    for role, name in (
        ("list", "Similar images, best first"),
        ("list", "Test images to search with"),
        ("slider", "Results"),
        ("combobox", "Class"),
        ("radio", "Upload"),
        ("heading", "Reverse image search"),
    ):
        expect(page.page.get_by_role(role, name=name)).to_be_visible()
    unnamed = page.page.locator("button:visible").evaluate_all(
        "buttons => buttons.filter(b => !(b.ariaLabel || b.title || b.textContent.trim()))"
        ".map(b => b.outerHTML)"
    )
    assert unnamed == []


def test_works_from_the_keyboard(open_page):
    page = open_page()
    page.tile("query", "test-0").focus()
    page.page.keyboard.press("Tab")
    page.page.keyboard.press("Enter")

    page.wait_for_query("Test image 1,")
    focused = page.page.evaluate("document.activeElement.shadowRoot?.activeElement?.dataset.value")
    assert focused == "test-1"  # the focus stays where it was


def test_asks_nobody_else_for_anything(open_page, app):
    """No fonts, scripts or telemetry from elsewhere: the page works in a closed network."""
    page = open_page()
    asked = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.page.reload()
    page.wait_for_query("Test image 0,")
    page.choose_source("Upload")
    expect(page.page.locator("input[type=file]")).to_be_attached(timeout=PATIENCE)

    assert len(asked) > 10
    foreign = [url for url in asked if not url.startswith((app.url, "data:", "blob:"))]
    assert foreign == []


def test_no_developer_chrome(open_page):
    page = open_page()

    for text in ("Deploy", "Made with Streamlit", "Manage app"):
        expect(page.page.get_by_text(text)).to_have_count(0)


def test_upload_from_another_site_is_refused(app):
    """XSRF protection: a page elsewhere cannot send files in a visitor's name."""
    request = urllib.request.Request(
        f"{app.url}_stcore/upload_file/session/file", data=b"x", method="PUT"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        open_url(request, timeout=10)

    assert refused.value.code == 403
