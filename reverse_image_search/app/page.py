"""The page: pick or upload an image and see the most similar ones of the gallery.

    python -m reverse_image_search.app

Its address holds its whole state, except for uploaded images: a link shows the same page, and the
browser's back button goes back.
"""

from __future__ import annotations

import time

import streamlit as st

from reverse_image_search.app.address import put_in_address, restore_address
from reverse_image_search.app.duplicates import show_duplicates
from reverse_image_search.app.image_dialog import show_opened_image
from reverse_image_search.app.messages import plain, show_problem
from reverse_image_search.app.search_view import show_search
from reverse_image_search.app.served import (
    REQUEST_TIMEOUT,
    WATCH_TIMEOUT,
    connect,
    gallery_news,
    gallery_stamp,
    observe,
    open_gallery,
)
from reverse_image_search.app.server_panel import show_how_it_works
from reverse_image_search.client import TritonError
from reverse_image_search.client.search import WrongAnswerError
from reverse_image_search.gallery import GalleryError

VIEWS = ("Search", "Near-duplicates")
WATCH_INTERVAL = 2.0  # seconds

_STYLE = """<style>
.stMainBlockContainer { padding-top: 3.6rem; padding-bottom: 2rem; }
.stMainBlockContainer h1 { padding: 0; font-size: 2.1rem; }
[data-testid="stExpandSidebarButton"]::after { content: "How it works"; padding-left: .4rem; }
[data-testid="stLayoutWrapper"]:has(> .st-key-news):not(:has(p)) { display: none; }
.served { margin: 0; font-size: .72rem; line-height: 1.5; overflow-x: auto; }
</style>"""


def main() -> None:
    """Draw the page."""
    started = time.perf_counter()
    st.set_page_config(
        page_title="Reverse image search",
        page_icon="🔎",
        layout="wide",
        initial_sidebar_state="collapsed",
    )
    st.html(_STYLE)
    restore_address()
    st.session_state.seen = observe()
    st.session_state.pop("version", None)
    st.title("Reverse image search", anchor=False)
    news = st.container(key="news")
    show_how_it_works(connect(WATCH_TIMEOUT), st.session_state.seen.server)
    # Not a fragment: interrupting a fragment that has shown a grid before breaks Streamlit's page
    # ("Bad delta path index").
    show_gallery(started)
    st.session_state.just_drawn = True
    with news:
        watch()


def show_gallery(started: float) -> None:
    """Search the gallery or, if it is one of photos, look through its near-duplicates."""
    try:
        version = st.session_state.version = open_gallery(gallery_stamp())
        gallery, view = version.gallery, VIEWS[0]
        facts = f"{plain(gallery.metadata.dataset)} · {len(gallery):,} images"
        if gallery.metadata.is_photos:
            st.caption(facts)
            view = choose_view()
        else:
            st.caption(f"{facts} · click an image to find the ones most like it")
        if view == VIEWS[0]:
            show_search(gallery, started)
        else:
            show_duplicates(connect(REQUEST_TIMEOUT), gallery, version.stamp)
        show_opened_image(gallery)
    except (GalleryError, TritonError, WrongAnswerError) as error:
        show_problem(error)


def choose_view() -> str:
    """Search or near-duplicates."""
    return st.segmented_control(
        "View",
        VIEWS,
        default=VIEWS[0],
        key="view",
        required=True,
        bind="query-params",
        label_visibility="collapsed",
        on_change=put_in_address,
        kwargs={"page": "1"},
    )


@st.fragment(run_every=WATCH_INTERVAL)
def watch() -> None:
    """Draw the page again as soon as the server or the gallery has changed.

    If images were added to the gallery or removed, say so instead, once the server finds them: what
    the visitor looks at stays until the next click.
    """
    if st.session_state.pop("just_drawn", False):
        return  # `main` made this call, not the timer: a rerun here would never end
    seen, now = st.session_state.seen, observe()
    if seen.server == now.server and (seen.stamp == now.stamp or now.is_switching):
        return
    version = st.session_state.get("version")
    news = gallery_news(version, now.stamp) if version and seen.server == now.server else None
    if news is None:
        st.rerun()
    st.caption(f"{news}. Your next click searches the gallery as it is now.")


if __name__ == "__main__":
    main()
