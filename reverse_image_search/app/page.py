"""The page: pick or upload a picture, see the most similar ones of the gallery.

    python -m reverse_image_search.app

Reads two environment variables, which ``start_app.sh`` sets: `TRITON_URL`, the server, and
`OUTPUT_DIR`, the folder that holds ``gallery/``. The page's address holds its whole state, except
for uploaded pictures: a link shows the same page, and the browser's back button goes back.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st

from reverse_image_search.app.image_grid import Line, Tile, image_grid, png_data_uri
from reverse_image_search.app.messages import plain, show_problem
from reverse_image_search.app.query_card import query_card
from reverse_image_search.app.query_image import as_encoder_sees, has_light_background, to_query
from reverse_image_search.app.results import majority, results_csv, same_picture
from reverse_image_search.app.server_panel import show_how_it_works
from reverse_image_search.client import Client, TritonError
from reverse_image_search.client.image_file import MAX_BYTES, ImageFileError, Photo, read_image
from reverse_image_search.client.search import Answer, WrongAnswerError, search_gallery
from reverse_image_search.gallery import Gallery, GalleryError, open_gallery

TRITON_URL = os.environ.get("TRITON_URL") or "http://127.0.0.1:8000"
OUTPUT_DIR = Path(os.environ.get("OUTPUT_DIR") or Path(__file__).resolve().parent.parent)

FIRST_QUERY = "test-0"
DEFAULT_RESULTS = 20
QUERIES_PER_PAGE = 20
ALL_CLASSES = "All classes"
REQUEST_TIMEOUT = 5.0  # seconds, for one request of a search
WATCH_TIMEOUT = 2.0  # seconds, for one request of the watch and the side panel
WATCH_INTERVAL = 2.0  # seconds

_STYLE = """<style>
.stMainBlockContainer { padding-top: 3.6rem; padding-bottom: 2rem; }
.stMainBlockContainer h1 { padding: 0; font-size: 2.1rem; }
[data-testid="stExpandSidebarButton"]::after { content: "How it works"; padding-left: .4rem; }
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
        menu_items={"About": "Reverse image search, served by NVIDIA Triton."},
    )
    st.html(_STYLE)
    st.session_state.seen = observe(TRITON_URL, OUTPUT_DIR)
    st.title("Reverse image search", anchor=False)
    show_how_it_works(connect(TRITON_URL, WATCH_TIMEOUT), st.session_state.seen)
    # No fragment: one that is interrupted leaves Streamlit's page in pieces when a grid of it was
    # shown before ("Bad delta path index": what is known to the browser escapes the clean-up).
    show_search(started)
    st.session_state.just_drawn = True
    watch()


def show_search(started: float) -> None:
    """Queries on the left, results on the right."""
    try:
        gallery = current_gallery(OUTPUT_DIR)
    except GalleryError as error:
        show_problem(error)
        return
    st.caption(
        f"{plain(gallery.dataset)} · {len(gallery):,} images · "
        "click a picture to find the ones most like it"
    )
    queries, results = st.columns([4, 7], gap="large")
    with queries:
        choose_query(gallery)
    with results:
        show_results(connect(TRITON_URL, REQUEST_TIMEOUT), gallery, started)


def choose_query(gallery: Gallery) -> None:
    """Test images, or a picture of one's own."""
    source = st.segmented_control(
        "Search with",
        ["Test images", "Upload", "Camera"],
        default="Test images",
        key="source",
        required=True,
        width="stretch",
    )
    if source == "Upload":
        st.file_uploader(
            f"An image of your own, at most {MAX_BYTES // 2**20} MB",
            key="upload",
            on_change=take_photo,
            args=("upload",),
        )
    elif source == "Camera":
        st.camera_input(
            "A piece of clothing before a plain background",
            key="camera",
            on_change=take_photo,
            args=("camera",),
        )
    else:
        choose_test_image(gallery)


def choose_test_image(gallery: Gallery) -> None:
    """A page of the test images, by class, in order or shuffled."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        class_name = st.selectbox(
            "Class",
            [ALL_CLASSES, *gallery.class_names],
            key="class",
            bind="query-params",
            on_change=lambda: st.query_params.pop("page", None),
        )
        st.button("Shuffle", icon=":material/shuffle:", on_click=shuffle)
    indices = test_images_of(gallery, class_name, _number_in_address("shuffle"))
    pages = max(1, -(-len(indices) // QUERIES_PER_PAGE))
    page = min(_number_in_address("page", default=1), pages)
    shown = indices[(page - 1) * QUERIES_PER_PAGE : page * QUERIES_PER_PAGE]
    picked = st.query_params.get("query", FIRST_QUERY)
    image_grid(
        "query",
        "Test images to search with",
        [
            Tile(
                value=f"test-{index}",
                name=f"Test image {index}, {gallery.class_names[gallery.query_labels[index]]}",
                source=png_data_uri(gallery.query_images[index]),
                picked=picked == f"test-{index}",
            )
            for index in shown
        ],
        on_pick=search_with(gallery),
        adaptive=False,
    )
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="center"):
        turn_to = st.query_params.update
        st.button(
            "Previous",
            icon=":material/chevron_left:",
            disabled=page <= 1,
            on_click=turn_to,
            args=({"page": str(page - 1)},),
        )
        st.markdown(f"{page:,} / {pages:,}", width="content")
        st.button(
            "Next",
            icon=":material/chevron_right:",
            icon_position="right",
            disabled=page >= pages,
            on_click=turn_to,
            args=({"page": str(page + 1)},),
        )


def test_images_of(gallery: Gallery, class_name: str, shuffle_seed: int) -> np.ndarray:
    """Indices of the test images of a class, shuffled unless the seed is 0."""
    if class_name == ALL_CLASSES:
        indices = np.arange(len(gallery.query_labels))
    else:
        label = gallery.class_names.index(class_name)
        indices = np.flatnonzero(np.asarray(gallery.query_labels) == label)
    return np.random.default_rng(shuffle_seed).permutation(indices) if shuffle_seed else indices


def shuffle() -> None:
    """Show other test images."""
    st.query_params.pop("page", None)
    st.query_params["shuffle"] = str(np.random.default_rng().integers(1, 10_000))


def search_with(gallery: Gallery) -> Callable[[str], None]:
    """What a click on a picture of `gallery` does."""

    def pick(value: str) -> None:
        # The build belongs to the address: an id may be another picture in another gallery.
        st.query_params.update({"query": value, "build": gallery.build_id})

    return pick


def take_photo(widget: str) -> None:
    """Read the picture that was uploaded or taken; what is wrong with it appears as a problem."""
    file = st.session_state[widget]
    st.session_state.pop("photo", None)
    st.session_state.pop("photo_problem", None)
    if file is None:  # taken back
        if st.query_params.get("query") == "photo":
            del st.query_params["query"]
        return
    st.query_params["query"] = "photo"
    try:
        photo = read_image(file.getvalue())
    except ImageFileError as error:
        st.session_state.photo_problem = f"{file.name}: {error}"
        return
    st.session_state.photo = photo
    st.session_state.photo_name = file.name
    st.session_state.crop = True
    st.session_state.invert = has_light_background(photo.pixels)


@dataclass(frozen=True)
class Query:
    """A picture to search with; `pixels` (height, width[, 3]) uint8 are what is sent."""

    name: str
    pixels: np.ndarray
    photo: Photo | None = None


def current_query(gallery: Gallery) -> Query:
    """The query that the page's address names.

    Raises
    ------
    LookupError : there is none, or it cannot be read
    """
    value = st.query_params.get("query", FIRST_QUERY)
    if value == "photo":
        return _current_photo()
    match = re.fullmatch(r"(test|gallery)-(\d{1,12})", value)
    if match:
        index = int(match[2])
        if match[1] == "test" and index < len(gallery.query_images):
            label = gallery.class_names[gallery.query_labels[index]]
            return Query(f"Test image {index}, {label}", gallery.query_images[index])
        if match[1] == "gallery" and index < len(gallery):
            name = f"Gallery image {index}, {gallery.label_name(index)}"
            return Query(name, gallery.images[index])
    raise LookupError("The address names a picture that this gallery does not have. Pick another.")


def _current_photo() -> Query:
    if "photo_problem" in st.session_state:
        raise LookupError(st.session_state.photo_problem)
    if "photo" not in st.session_state:
        raise LookupError("A link cannot carry an uploaded picture. Upload it again.")
    photo = st.session_state.photo
    pixels = to_query(photo.pixels, st.session_state.crop, st.session_state.invert)
    return Query(st.session_state.photo_name, pixels, photo)


def show_results(client: Client, gallery: Gallery, started: float) -> None:
    """The query and its most similar gallery images, or why there are none."""
    try:
        query = current_query(gallery)
        answer = search_gallery(client, gallery, query.pixels)
    except (LookupError, TritonError, WrongAnswerError) as error:
        if isinstance(error, TritonError):
            # What the search met counts: the server may be back before the watch sees it gone.
            st.session_state.seen = _state(type(error).__name__, OUTPUT_DIR)
        show_problem(error)
        return
    warn_of_other_build(gallery)
    card = st.container()  # drawn last, as it shows the time that all took
    if query.photo:
        show_photo_settings(query.photo)
    count, details = show_controls(gallery, answer)
    tiles = result_tiles(gallery, query, answer, count, details)
    st.subheader(f"Top {count} similar images out of {len(gallery):,}", anchor=False)
    image_grid("result", "Similar images, best first", tiles, on_pick=search_with(gallery))

    pictures = {"Query": query.pixels}
    if query.photo:
        seen = as_encoder_sees(query.pixels, gallery.images.shape[1:3])
        pictures = {"Your picture": query.photo.pixels, "As the encoder sees it": seen}
    names, counts = majority(gallery, answer.ids[:count])
    whole_ms = 1e3 * (time.perf_counter() - started)
    timing = (
        f"encoder {answer.embed_ms:.1f} ms · search {answer.find_ms:.1f} ms · "
        f"all with page {whole_ms:.0f} ms"
    )
    with card:
        query_card(query.name, pictures, (counts[0], names[0]), answer.scores[:count], timing)


def show_photo_settings(photo: Photo) -> None:
    """What was done to a photo, and switches to undo what is done to make it like the gallery."""
    for note in photo.notes:
        st.caption(note)
    with st.container(horizontal=True):
        st.toggle("Crop to the object", key="crop", persist_state="session")
        st.toggle("Invert: light ground to black", key="invert", persist_state="session")


def show_controls(gallery: Gallery, answer: Answer) -> tuple[int, bool]:
    """How many results to show, whether with ids and sources, and the results as a file."""
    served = len(answer.ids)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        count = served
        if served > 1:
            count = st.slider(
                "Results", 1, served, min(DEFAULT_RESULTS, served), key="k", bind="query-params"
            )
        details = st.toggle("Ids and sources", key="details")
        st.download_button(
            "CSV",
            lambda: results_csv(gallery, answer.ids[:count], answer.scores[:count]),
            file_name="similar_images.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
        )
    return count, details


def result_tiles(
    gallery: Gallery, query: Query, answer: Answer, count: int, details: bool
) -> list[Tile]:
    """A tile for each of the first `count` results, with its own score and label."""
    common = majority(gallery, answer.ids[:count])[0][0]
    tiles = []
    for rank in range(1, count + 1):
        gallery_id, score = int(answer.ids[rank - 1]), float(answer.scores[rank - 1])
        label, pixels = gallery.label_name(gallery_id), gallery.images[gallery_id]
        lines = [Line(f"{score:.4f}", "strong"), Line(label, "" if label == common else "odd")]
        if details:
            lines.append(Line(f"id {gallery_id} · {gallery.source_name(gallery_id)}", "faint"))
        tiles.append(
            Tile(
                value=f"gallery-{gallery_id}",
                name=f"Result {rank}: {label}, score {score:.4f}. Search with it.",
                source=png_data_uri(pixels),
                lines=tuple(lines),
                badge="same picture" if same_picture(pixels, query.pixels) else "",
            )
        )
    return tiles


def warn_of_other_build(gallery: Gallery) -> None:
    """Say so when the address was made for another gallery."""
    build_id = st.query_params.get("build", gallery.build_id)
    if st.query_params.get("query") != "photo" and build_id != gallery.build_id:
        st.warning(
            f"This address was made for build {plain(build_id)}, the gallery is of build "
            f"{gallery.build_id}: the query may be another picture than it was.",
            icon=":material/warning:",
        )


@st.cache_resource(show_spinner=False)
def connect(url: str, timeout: float) -> Client:
    """The client, shared by all sessions."""
    return Client(url, timeout)


def current_gallery(output_dir: Path) -> Gallery:
    """The gallery on disk, opened once for all sessions, and anew when a build replaced it.

    Raises
    ------
    GalleryError : it is missing or damaged
    """
    return _opened_gallery(output_dir / "gallery", _gallery_stamp(output_dir))


@st.cache_resource(max_entries=2, show_spinner=False)
def _opened_gallery(folder: Path, stamp: tuple[int, ...]) -> Gallery:
    return open_gallery(folder)


def _gallery_stamp(output_dir: Path) -> tuple[int, ...]:
    """Changes whenever a build puts another gallery there."""
    try:
        status = (output_dir / "gallery" / "manifest.json").stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


@st.cache_data(ttl=1, max_entries=4, show_spinner=False)
def observe(url: str, output_dir: Path) -> str:
    """Which builds the server serves, or what is wrong with it, and which gallery is there."""
    try:
        server = str(connect(url, WATCH_TIMEOUT).build_ids())
    except TritonError as error:
        server = type(error).__name__
    return _state(server, output_dir)


def _state(server: str, output_dir: Path) -> str:
    return f"{server} {_gallery_stamp(output_dir)}"


@st.fragment(run_every=WATCH_INTERVAL)
def watch() -> None:
    """Draw the page again as soon as the server or the gallery is another than it was."""
    if st.session_state.pop("just_drawn", False):
        return  # called by `main`, not by the clock: at once would be in a circle
    if observe(TRITON_URL, OUTPUT_DIR) != st.session_state.seen:
        st.rerun()


def _number_in_address(key: str, default: int = 0) -> int:
    text = st.query_params.get(key, "")
    return int(text) if re.fullmatch(r"[1-9]\d{0,8}", text) else default


if __name__ == "__main__":
    main()
