"""The page of a gallery of one's own photos: tiles, originals, regions, duplicates, growth."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import expect
from torch import nn

from reverse_image_search import build_models, layout
from reverse_image_search.encoders import ENCODERS, EncoderSpec
from reverse_image_search.gallery import Gallery
from reverse_image_search.serving.live import wait_until_served
from tests.browser.app_page import PATIENCE
from tests.browser.conftest import App, running_app
from tests.image_corpus import encoded
from tests.running import start_server, stop_server

RED, YELLOW, GREEN, BLUE = (220, 30, 30), (230, 220, 40), (30, 170, 60), (30, 60, 210)


class NineColors(nn.Module):
    """Mean colors of 3 x 3 parts of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        colors = nn.functional.adaptive_avg_pool2d(images, [3, 3])
        return nn.functional.normalize(colors.flatten(1))


@dataclass
class Photos:
    """A folder of photos, its build, and the app before a server of it."""

    folder: Path
    app: App

    @property
    def gallery(self) -> Gallery:
        return Gallery(layout.gallery_file(self.app.output_dir))

    def id_of(self, name: str) -> int:
        (found,) = self.gallery.ids_matching(name)
        return int(found)

    def add(self, name: str, size: tuple[int, int], *colors: tuple[int, int, int], **options):
        """Write a photo of vertical stripes."""
        image = Image.new("RGB", (len(colors), 1))
        image.putdata(colors)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {"png": "PNG", "jpg": "JPEG"}[name[-3:]]
        stripes = image.resize(size, Image.Resampling.NEAREST)
        path.write_bytes(encoded(stripes, kind, **options))

    def build(self) -> None:
        """Build or update the gallery."""
        arguments = ["--images", self.folder, "--encoder", "nine_colors", "--no-floor"]
        arguments += ["--output-dir", self.app.output_dir]
        with pytest.MonkeyPatch.context() as patch:
            spec = EncoderSpec(lambda *_: NineColors(), (3, 3), False, "CC0-1.0")
            patch.setitem(ENCODERS, "nine_colors", spec)
            assert build_models.main([*map(str, arguments)]) == 0


@pytest.fixture(scope="module")
def photos(tmp_path_factory, figure) -> Iterator[Photos]:
    """Photos of one color each in warm/ and cold/, and one of two colors."""
    folder = tmp_path_factory.mktemp("photos")
    photos = Photos(folder / "album", App("", folder / "build", None, folder))
    camera = Image.Exif()
    camera[0x010F] = "SECRET CAMERA"
    camera[0x0112] = 6  # to be turned upright
    photos.add("warm/red.png", (90, 60), RED)
    photos.add("warm/small red.jpg", (30, 45), RED, exif=camera)
    photos.add("warm/yellow.png", (60, 90), YELLOW)
    photos.add("cold/green.png", (90, 60), GREEN)
    photos.add("cold/blue.png", (90, 60), BLUE)
    photos.add("red and blue.png", (300, 100), RED, BLUE)
    photos.build()
    triton = start_server(photos.app.output_dir)
    with running_app(triton, photos.app.output_dir, folder, figure) as photos.app:
        yield photos
    stop_server(triton)


@pytest.fixture
def open_photos(open_page, photos):
    """``open_photos(name, address="")``: the page that searches with that photo."""

    def open_it(name, address="", **options):
        address = f"?query=gallery-{photos.id_of(name)}{address}"
        return open_page(address, app=photos.app, **options)

    return open_it


def _names(page):
    return [tile.lines[1] for tile in page.results]


def test_tiles_have_their_photos_aspect_ratio_and_open_the_original(open_photos, photos):
    page = open_photos("warm/red.png")
    assert _names(page)[:2] == ["red.png", "small red.jpg"]
    assert page.results[0].badge == "same image"
    for name, ratio in (("red.png", 1.5), ("yellow.png", 2 / 3), ("red and blue.png", 2.5)):
        image = page.page.get_by_test_id("result").filter(has_text=name).first.locator("img")
        box = image.bounding_box()
        assert box["width"] / box["height"] == pytest.approx(ratio, rel=0.02), name

    small = page.page.get_by_test_id("result").nth(1)
    small.click()
    dialog = page.page.get_by_role("dialog", name="small red.jpg")
    original = dialog.get_by_test_id("original").get_attribute("src")
    image = Image.open(io.BytesIO(base64.b64decode(original.partition(",")[2])))
    assert image.size == (45, 30)  # upright
    assert b"SECRET" not in base64.b64decode(original.partition(",")[2])
    expect(dialog.get_by_text(str(photos.folder / "warm" / "small red.jpg"))).to_be_visible()

    dialog.get_by_role("button", name="Search for this image").click()
    expect(dialog).to_have_count(0, timeout=PATIENCE)
    page.wait_for_query("small red.jpg")
    assert page.results[0].badge == "same image"


def test_path_is_copied_from_the_tile(open_photos, photos):
    page = open_photos("warm/red.png", permissions=["clipboard-read", "clipboard-write"])
    path = str(photos.folder / "warm" / "yellow.png")
    page.page.get_by_role("button", name=f"Copy the path {path}").focus()
    page.page.keyboard.press("Enter")

    expect(page.page.get_by_text("Copied")).to_be_visible(timeout=PATIENCE)
    assert page.page.evaluate("navigator.clipboard.readText()") == path


def test_browsing_by_label_and_text(open_photos, photos):
    page = open_photos("warm/red.png")
    page.page.get_by_role("combobox", name="Label").click()
    page.page.get_by_role("option", name="cold (2)").click()
    expect(page.page.get_by_test_id("query")).to_have_count(2, timeout=PATIENCE)
    box = page.page.get_by_role("searchbox", name="Text in the path")
    box.fill("GREEN")
    box.press("Enter")
    expect(page.page.get_by_test_id("query")).to_have_count(1, timeout=PATIENCE)

    page.page.get_by_test_id("query").click()
    page.wait_for_query("green.png")


def _draw_box(page, frame):
    """Drag from 60 % to the right edge of a frame."""
    expect(frame.get_by_role("img")).to_have_js_property("complete", True)
    frame.hover()  # scrolls there
    box = frame.bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] - 5)
    page.mouse.up()


def test_part_of_an_image_is_searched_for(open_photos):
    """Two halves: the whole finds itself, its right half the image of that color."""
    page = open_photos("red and blue.png")
    assert _names(page)[0] == "red and blue.png"
    page.page.get_by_text("Search for a part of it").click()
    frame = page.page.get_by_role("group", name="Part of")
    frame.wait_for()
    page.wait_until_idle()
    _draw_box(page.page, frame)
    expect(page.card.get_by_text("Searched for")).to_be_visible(timeout=PATIENCE)
    assert _names(page)[0] == "blue.png"
    assert "region=60-" in page.page.url

    frame.press("Escape")
    expect(page.card.get_by_text("Searched for")).to_have_count(0, timeout=PATIENCE)
    assert _names(page)[0] == "red and blue.png"


def test_threshold_and_the_query_left_out(open_photos):
    page = open_photos("warm/red.png", "&lowest=0.9")
    names = _names(page)
    assert names[:2] == ["red.png", "small red.jpg"]
    assert all(tile.score >= 0.9 for tile in page.results)
    assert "blue.png" not in names

    page.page.get_by_text("Leave out the query").click()
    expect(page.tile("result", page.results[0].value)).to_have_count(0, timeout=PATIENCE)
    assert _names(page) == names[1:]


def test_pasted_image_is_searched_for(open_photos):
    page = open_photos("warm/red.png")
    page.choose_source("Upload")
    page.page.get_by_test_id("stFileUploader").wait_for()
    blue = base64.b64encode(encoded(Image.new("RGB", (40, 40), BLUE), "PNG")).decode()
    page.page.evaluate(
        """async (png) => {
            const clipboardData = new DataTransfer();
            const data = await (await fetch(`data:image/png;base64,${png}`)).blob();
            clipboardData.items.add(new File([data], "pasted.png", { type: "image/png" }));
            document.body.dispatchEvent(
                new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        blue,
    )

    page.wait_for_query("pasted.png")
    assert _names(page)[0] == "blue.png"


def test_near_duplicates_side_by_side(open_page, photos):
    page = open_page(app=photos.app)
    page.page.get_by_role("radio", name="Near-duplicates").click()
    page.page.get_by_role("button", name="Find near-duplicates").click()

    group = page.page.get_by_role("list", name="Group 1")
    expect(group.get_by_text("red.png").first).to_be_visible(timeout=PATIENCE)
    expect(group.get_by_role("img")).to_have_count(2)
    expect(group.locator("li").first).to_contain_text("largest")
    expect(group.locator("li").first).to_contain_text("90 x 60")


def test_file_that_is_gone_is_shown_by_its_thumbnail(open_photos, photos):
    path = photos.folder / "cold" / "green.png"
    content = path.read_bytes()
    path.unlink()
    try:
        page = open_photos("cold/green.png")
        assert page.results[0].badge == "file is gone"
        page.tile("result", page.results[0].value).click()
        dialog = page.page.get_by_role("dialog", name="green.png")
        expect(dialog).to_contain_text("The file is gone", timeout=PATIENCE)
        expect(dialog.get_by_test_id("original")).to_be_visible()
    finally:
        path.write_bytes(content)


def test_gallery_grows_under_an_open_page(open_photos, photos):
    page = open_photos("cold/blue.png")
    count, shown = len(photos.gallery), _names(page)
    page.page.evaluate("window.isTheSamePage = true")
    # Not of the hue of blue.png, which other tests find first.
    photos.add("new/dark blue.png", (90, 60), (20, 20, 140))
    photos.build()
    assert wait_until_served(photos.app.output_dir, photos.app.triton.url) is not None

    news = page.page.get_by_text("Images: 1 added")
    expect(news).to_be_visible(timeout=PATIENCE)
    assert _names(page) == shown
    page.wait_for_query("blue.png")

    page.page.get_by_text("Ids and sources").click()
    expect(page.heading).to_contain_text(f"out of {count + 1}", timeout=PATIENCE)
    expect(news).to_have_count(0)
    expect(page.page.get_by_test_id("result").filter(has_text="dark blue.png")).to_have_count(
        1, timeout=PATIENCE
    )
    assert page.page.evaluate("window.isTheSamePage")
    page.wait_for_query("blue.png")
