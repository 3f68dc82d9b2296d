"""How fast the page repaints, for one visitor and for ten at once."""

import random
import statistics

import pytest

CLICKS, SESSIONS, ROUNDS = 15, 10, 3
MAX_REPAINT = 300  # milliseconds, for one visitor on an idle machine


@pytest.fixture
def query_of(gallery, query_pixels, found_by_server):
    """``query_of(index)``: name and result ids of a test image, found without the app."""

    def look_up(index):
        label = gallery.queries([index])[0].label
        return f"Test image {index}, {label}", found_by_server(query_pixels[index])[0]

    return look_up


def test_repaint_after_a_click(open_page, query_of, figure):
    page = open_page(viewport={"width": 1280, "height": 900})
    times = []
    for index in range(1, CLICKS + 1):
        name, ids = query_of(index)
        page.start_click("query", f"test-{index}", name, ids)
        times.append(page.end_click())
    figure(
        f"repaint after a click: fastest {min(times):.0f} ms, median "
        f"{statistics.median(times):.0f} ms, slowest {max(times):.0f} ms of {CLICKS}"
    )
    # The fastest of many says what the page costs; the others, what else the machine is doing.
    assert min(times) < MAX_REPAINT


def test_clicks_that_overtake_each_other_end_at_the_last(open_page, query_of):
    """Every click interrupts the drawing of the one before, at another place each time."""
    page = open_page()
    for pause in (0, 10, 30, 60, 100, 150):  # milliseconds
        for index in (1, 2, 3, 4, 0):
            page.start_click("query", f"test-{index}", *query_of(index))
            page.page.wait_for_timeout(pause)
        page.end_click()


def test_a_click_before_the_browser_knows_the_new_address_does_not_undo_the_one_before(
    open_page, query_of
):
    """The address that comes with the second click still names the image before the first one."""
    page = open_page()
    switch = page.page.get_by_role("switch", name="Ids and sources").element_handle()
    for index, pause in enumerate((0, 3, 5, 10, 20, 40, 80), start=1):  # milliseconds
        page.start_click("query", f"test-{index}", *query_of(index))
        page.page.evaluate(
            "([element, pause]) => setTimeout(() => element.click(), pause)", [switch, pause]
        )
        page.page.wait_for_timeout(pause)
        page.end_click()
        page.wait_until_idle()
        assert f"query=test-{index}&" in page.page.url
        assert page.card.locator(".name").text_content() == query_of(index)[0]
        assert [tile.id for tile in page.results] == query_of(index)[1]
        assert all(len(tile.lines) == 2 + index % 2 for tile in page.results)  # the switch, too


def test_ten_sessions_at_once_see_only_their_own_results(open_page, query_of, figure):
    pages = [open_page() for _ in range(SESSIONS)]
    choice = random.Random(0)
    times = []
    for _ in range(ROUNDS):
        indices = choice.sample(range(1, 20), SESSIONS)
        expected = [query_of(index) for index in indices]
        for page, index, (name, ids) in zip(pages, indices, expected, strict=True):
            page.start_click("query", f"test-{index}", name, ids)
        times += [page.end_click() for page in pages]
        for page, (_, ids) in zip(pages, expected, strict=True):
            assert [tile.id for tile in page.results] == ids
    figure(
        f"{SESSIONS} sessions, {len(times)} clicks at the same time: none mixed up; "
        f"median {statistics.median(times):.0f} ms, slowest {max(times):.0f} ms"
    )
