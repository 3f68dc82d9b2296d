"""Searching on the page: what is picked, what comes back, and that it is the right thing."""

import csv
import io
import re

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.app_page import PATIENCE
from tests.running import wait_until


def _assert_right_results(page, gallery, ids, scores):
    """The results on the page are these gallery images, pixel by pixel, each with its own score."""
    results = page.results
    assert [tile.id for tile in results] == ids
    assert [tile.score for tile in results] == pytest.approx(scores, abs=6e-5)
    for tile, image in zip(results, gallery.images(ids), strict=True):
        assert tile.label == image.label
        assert (tile.pixels == image.pixels).all()


def test_neighbors_on_the_page_are_those_of_a_numpy_search(
    open_page, gallery, gallery_embeddings, gallery_pixels, query_pixels, client
):
    page = open_page()
    page.pick("query", "test-3")

    results = page.results
    (query,) = client.embed([query_pixels[3]])
    similarity = gallery_embeddings @ query  # (N,)
    best = np.sort(similarity)[::-1][:20]
    assert len(results) == 20
    expect(page.heading).to_have_text(f"Top 20 similar images out of {len(gallery):,}")
    assert [tile.score for tile in results] == pytest.approx(best.tolist(), abs=1e-4)
    for tile in results:
        assert tile.score == pytest.approx(similarity[tile.id], abs=1e-4)
        assert tile.label == gallery.images([tile.id])[0].label
        assert (tile.pixels == gallery_pixels[tile.id]).all()
    assert [tile.value for tile in page.queries if tile.picked] == ["test-3"]
    assert (page.queries[3].pixels == query_pixels[3]).all()


def test_first_page_searches_for_the_first_test_image(
    open_page, gallery, query_pixels, found_by_server
):
    page = open_page()

    _assert_right_results(page, gallery, *found_by_server(query_pixels[0]))
    expect(page.page).to_have_title("Reverse image search")


def test_majority_and_times_are_shown(open_page):
    page = open_page("?query=test-1")
    page.wait_for_query("Test image 1,")

    labels = [tile.label for tile in page.results]
    name = max(labels, key=labels.count)
    text = page.card.get_by_test_id("agreement").inner_text()
    count, label = re.fullmatch(r"(\d+) of 20 are (.+)", text).groups()
    assert int(count) == labels.count(name) == labels.count(label)
    timing = page.card.get_by_test_id("timing").inner_text()
    assert re.fullmatch(r"encoder [\d.]+ ms · search [\d.]+ ms · all with page \d+ ms", timing), (
        timing
    )
    assert page.card.get_by_role("img", name="Histogram of the scores").is_visible()


def test_result_becomes_the_next_query_and_back_goes_back(
    open_page, gallery, gallery_pixels, query_pixels, found_by_server
):
    page = open_page("?query=test-2")
    page.wait_for_query("Test image 2,")
    chosen = page.results[4]

    page.pick("result", chosen.value)

    _assert_right_results(page, gallery, *found_by_server(gallery_pixels[chosen.id]))
    own_copy = [tile for tile in page.results if tile.badge]
    assert [(tile.id, tile.badge) for tile in own_copy] == [(chosen.id, "same image")]
    assert f"query={chosen.value}" in page.page.url

    page.page.go_back()
    page.wait_for_query("Test image 2,")
    _assert_right_results(page, gallery, *found_by_server(query_pixels[2]))
    page.page.go_forward()
    page.wait_for_query(f"Gallery image {chosen.id},")


def test_link_shows_the_same_page_to_somebody_else(
    open_page, gallery, query_pixels, found_by_server
):
    first = open_page("?class=Sneaker&k=7")
    sneaker = first.queries[2]
    first.pick("query", sneaker.value)

    second = open_page(first.page.url.partition("/?")[2].join(["?", ""]))

    second.wait_for_query(f"Test image {sneaker.id}, Sneaker")
    _assert_right_results(second, gallery, *found_by_server(query_pixels[sneaker.id], 7))
    assert [tile.value for tile in second.queries] == [tile.value for tile in first.queries]
    assert [tile.value for tile in second.queries if tile.picked] == [sneaker.value]


def test_number_of_results_goes_up_to_what_is_served(
    open_page, gallery, query_pixels, found_by_server
):
    page = open_page("?query=test-1")
    slider = page.page.get_by_role("slider")
    expect(slider).to_have_attribute("max", "100")
    slider.focus()
    page.page.keyboard.press("End")

    expect(page.heading).to_have_text(
        f"Top 100 similar images out of {len(gallery):,}", timeout=PATIENCE
    )
    expect(page.page.get_by_test_id("result")).to_have_count(100, timeout=PATIENCE)
    _assert_right_results(page, gallery, *found_by_server(query_pixels[1], 100))
    assert "k=100" in page.page.url


def test_class_pages_and_shuffle(open_page, gallery):
    page = open_page()
    bags = gallery.query_ids("Bag")

    page.page.get_by_role("combobox", name="Class").click()
    page.page.get_by_role("option", name="Bag").click()
    # Not the first bag, which is on the first page of all classes as well.
    page.tile("query", f"test-{bags[19]}").wait_for(timeout=PATIENCE)
    assert [tile.id for tile in page.queries] == bags[:20].tolist()

    page.page.get_by_role("button", name="Next").click()
    page.tile("query", f"test-{bags[20]}").wait_for(timeout=PATIENCE)
    second_page = bags[20:40].tolist()
    assert [tile.id for tile in page.queries] == second_page

    page.page.get_by_role("button", name="Shuffle").click()
    wait_until(lambda: [tile.id for tile in page.queries] != second_page, "shuffled", 30)
    shuffled = [tile.id for tile in page.queries]
    assert set(shuffled) <= set(bags.tolist())
    assert shuffled != sorted(shuffled)


def test_ids_and_sources_on_demand(open_page, gallery):
    page = open_page("?query=test-1&k=3")
    assert len(page.results[0].lines) == 2
    page.page.get_by_text("Ids and sources").click()

    best = page.results[0]
    source = page.tile("result", best.value).get_by_text(gallery.images([best.id])[0].source)
    expect(source).to_contain_text(f"id {best.id}", timeout=PATIENCE)


def test_results_as_csv(open_page):
    page = open_page("?query=test-1&k=12")
    page.wait_for_query("Test image 1,")
    with page.page.expect_download(timeout=PATIENCE) as download:
        page.page.get_by_role("button", name="CSV").click()

    assert download.value.suggested_filename == "similar_images.csv"
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [int(row["rank"]) for row in rows] == list(range(1, 13))
    for row, tile in zip(rows, page.results, strict=True):
        assert int(row["gallery_id"]) == tile.id
        assert row["label"] == tile.label
        assert float(row["score"]) == pytest.approx(tile.score, abs=6e-5)
        assert row["source"].endswith(f"#{tile.id}")


def test_side_panel_tells_what_is_served(open_page, client, gallery):
    page = open_page()
    page.page.get_by_test_id("stExpandSidebarButton").click()
    served = page.page.get_by_test_id("served")
    expect(served).to_be_visible(timeout=PATIENCE)

    text = served.inner_text()
    assert client.server_metadata()["version"] in text
    for expected in (
        "image_encoder  version 1",
        "→ INPUT__0 FP32 [*, 3, *, *]",
        "vector_similarity  version 1",
        "← OUTPUT__0 INT64 [*, 100]",
        "← OUTPUT__1 FP32 [*, 100]",
    ):
        assert expected in text
    assert text.count(f"encoder_id {gallery.encoder_id}") == 2
    assert text.count(f"gallery_id {gallery.gallery_id}") == 1
    expect(page.page.get_by_text("Server ready")).to_be_visible()
