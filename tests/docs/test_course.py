"""The code of the course, run as a reader types it (doc/tutorial)."""

import re

import pytest

from tests.docs.conftest import COURSE
from tests.docs.pages import ALLOWED, difference
from tests.running import REPO_ROOT

INDEX = COURSE / "README.md"
CHAPTERS = sorted(path for path in COURSE.glob("*.md") if path.name != "README.md")
LANGUAGES = {"bash", "python", "text", "json", "protobuf", ""}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_code_of_the_chapter_prints_what_the_page_shows(path, run_page):
    run_page(path)


@pytest.mark.parametrize(
    "path",
    [REPO_ROOT / "README.md", INDEX, *CHAPTERS],
    ids=lambda path: str(path.relative_to(REPO_ROOT)),
)
def test_every_block_is_of_a_language_that_is_run_or_compared(path):
    fences = re.findall(r"^ *```(.*)$", path.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_answer_of_the_exercise_has_code(path):
    _, _, answer = path.read_text().partition("<summary>Answer</summary>")
    code, _, _ = answer.partition("</details>")
    assert re.search(r"^```(bash|python)$", code, re.MULTILINE)


def test_chapters_are_of_a_length_that_is_read_at_once():
    lengths = {path.name: len(path.read_text().splitlines()) for path in CHAPTERS}
    assert {name: lines for name, lines in lengths.items() if not 100 <= lines <= 250} == {}


def test_every_chapter_is_in_the_index():
    text = INDEX.read_text()
    assert [path.name for path in CHAPTERS if f"]({path.name})" not in text] == []


@pytest.mark.parametrize(
    ("shown", "printed", "figures", "fits"),
    [
        ("READY", "READY\n", None, True),
        ("a ... z", "a b\nc z", None, True),
        ("a ... z", "a b c", None, False),
        ("batch 8", "batch 9", None, False),
        ("OUTPUT__0 2.5 ms", "OUTPUT__0 24 ms", "within a factor of 10", True),
        ("OUTPUT__0 2.5 ms", "OUTPUT__0 26 ms", "within a factor of 10", False),
        ("OUTPUT__0 2.5 ms", "OUTPUT__1 2.5 ms", "within a factor of 10", False),
        ("id 12", "id 0", "any", True),
        ("12 times", "3 times", "2 to 20", True),
        ("12 times", "1.9 times", "2 to 20", False),
    ],
)
def test_a_page_shows_what_was_printed(shown, printed, figures, fits):
    allowed = ALLOWED.fullmatch(figures) if figures else None
    assert (difference(shown, printed, allowed) is None) == fits
