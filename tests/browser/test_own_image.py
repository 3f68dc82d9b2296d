"""Images of one's own, uploaded or taken: valid, odd and damaged ones."""

import contextlib

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Error, expect

from reverse_image_search.app.query_image import to_query
from reverse_image_search.image_file import read_image
from tests.browser.app_page import PATIENCE
from tests.image_corpus import data_of, encoded
from tests.running import wait_until

VALID = [
    "png_RGB.png", "png_alpha.png", "png_16_bit_gray.png", "jpeg_CMYK.jpg", "exif_6.jpg",
    "webp_animated.webp", "gif_animated.gif", "bmp_P.bmp", "1x1.png", "png_and_zip.png",
    "avif.avif", "motion_photo.jpg", "text_over_1_MB.png", "jpeg.jfif", "jpeg_without_ending",
]  # fmt: skip
REFUSED = {
    "text.png": "not a PNG, JPEG, WebP, GIF, BMP or AVIF image",
    "photoshop.png": "not a PNG, JPEG, WebP, GIF, BMP or AVIF image",
    "20000x20000.png": "has 400 megapixels; the limit is 25",
    "truncated_50.jpg": "damaged or cut short",
    "10000_scans.jpg": "more than 64 scans",
    "heic.jpg": "HEIC is not supported. Save the image as JPEG or PNG",
}


@pytest.fixture
def on_disk(tmp_path):
    """``on_disk(name, data=...)``: path of a file, by default the corpus's of that name."""

    def write(name, data=None):
        if data is None:
            data = data_of(name)
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def _photo_of(image, size=300):
    """A gallery image as a photo might show it: large, tinted, dark on light, off center."""
    large = Image.fromarray(255 - np.asarray(image)).resize((size, size), Image.Resampling.BICUBIC)
    photo = Image.new("RGB", (800, 600), (242, 240, 236))
    tinted = np.asarray(large.convert("RGB")) * (242 / 255, 240 / 255, 236 / 255)
    photo.paste(Image.fromarray(tinted.astype(np.uint8)), (60, 120))
    return photo


def test_photo_is_made_like_the_gallery_and_finds_its_own_image(
    open_page, gallery, gallery_pixels, found_by_server, on_disk
):
    data = encoded(_photo_of(gallery_pixels[11]), "PNG")
    page = open_page()
    page.upload(on_disk("coat.png", data))
    page.wait_for_query("coat.png")

    pixels = to_query(read_image(data).pixels, crop=True, invert=True)
    ids, scores = found_by_server(pixels)
    assert [tile.id for tile in page.results] == ids
    assert [tile.score for tile in page.results] == pytest.approx(scores, abs=6e-5)
    for title in ("Your image", "As the encoder sees it"):
        expect(page.card.get_by_text(title)).to_be_visible()
    labels = [tile.label for tile in page.results]
    assert labels.count(gallery.images([11])[0].label) > len(labels) / 2


def test_inversion_is_automatic_visible_and_reversible_and_back_keeps_it(
    open_page, gallery_pixels, found_by_server, on_disk
):
    data = encoded(_photo_of(gallery_pixels[11]), "PNG")
    page = open_page()
    page.upload(on_disk("coat.png", data))
    page.wait_for_query("coat.png")
    toggle = page.page.get_by_role("switch", name="Invert")
    expect(toggle).to_be_checked()
    before = page.card.inner_html()

    page.page.get_by_text("Invert: light background to black").click()

    expect(toggle).not_to_be_checked(timeout=PATIENCE)
    page.page.wait_for_function(
        "before => document.querySelector('[data-testid=query-card]')?.innerHTML !== before",
        arg=before,
    )
    pixels = to_query(read_image(data).pixels, crop=True, invert=False)
    expected = found_by_server(pixels)[0]
    assert [tile.id for tile in page.results] == expected

    page.pick("result", page.results[3].value)
    page.page.go_back()

    page.wait_for_query("coat.png")
    expect(toggle).not_to_be_checked(timeout=PATIENCE)
    assert [tile.id for tile in page.results] == expected


def test_exact_copy_of_a_gallery_image_is_marked(open_page, gallery_pixels, on_disk):
    page = open_page()
    framed = np.pad(gallery_pixels[11], 40)  # cropping has something to do
    page.upload(on_disk("framed.png", encoded(Image.fromarray(framed), "PNG")))
    page.wait_for_query("framed.png")
    page.upload(on_disk("copy.png", encoded(Image.fromarray(gallery_pixels[11]), "PNG")))
    page.wait_for_query("copy.png")
    page.page.get_by_text("Crop to the object").click()

    expect(page.page.get_by_text("same image")).to_be_visible(timeout=PATIENCE)
    assert [tile.id for tile in page.results if tile.badge] == [11]


def test_image_from_the_camera(open_page):
    page = open_page(permissions=["camera"])
    page.choose_source("Camera")
    page.page.wait_for_function(
        "document.querySelector('video')?.readyState >= 2"
    )  # it has a frame
    take, clear = (page.page.get_by_role("button", name=name) for name in ("Take", "Clear photo"))

    def is_taken() -> bool:
        # A camera that starts anew, as it does when the layout changes, takes none.
        if take.is_visible():
            with contextlib.suppress(Error):  # gone since
                take.click(timeout=1000)
        return clear.is_visible()

    wait_until(is_taken, "a photo", 30)
    page.wait_for_query(".jpg")
    assert len(page.results) == 20


def test_files_of_every_kind(open_page, on_disk, figure):
    """One after the other in one session, as somebody would who tries to break it."""
    page = open_page()
    for name in VALID:
        page.upload(on_disk(name))
        page.wait_for_query(name)
        assert len(page.results) == 20, name
    for name, reason in REFUSED.items():
        page.upload(on_disk(name))
        page.wait_for_problem(name)
        page.wait_for_problem(reason)
    page.choose_source("Test images")
    page.pick("query", "test-4")
    figure(f"page: {len(VALID)} odd files searched for, {len(REFUSED)} refused with a reason")


def test_file_that_is_too_large_is_refused_before_it_is_sent(open_page, on_disk):
    page = open_page()
    page.upload(on_disk("21_megabytes.png"))

    expect(page.page.get_by_text("File must be 20.0MB or smaller")).to_be_visible(timeout=PATIENCE)


def test_link_cannot_carry_an_uploaded_image(open_page):
    page = open_page("?query=photo")

    page.wait_for_problem("A link cannot carry an uploaded image. Upload it again.")
