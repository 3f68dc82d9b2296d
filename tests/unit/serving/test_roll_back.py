import pytest

from reverse_image_search import layout
from reverse_image_search.serving.checksums import verify
from reverse_image_search.serving.file_system import PublishingError
from reverse_image_search.serving.roll_back import roll_back
from tests.unit.serving.text_builds import add_version, build_of, publish, published, served_index


def test_rolling_back_an_update_and_back_again(tmp_path):
    publish(tmp_path, "old")
    add_version(tmp_path, "second")
    add_version(tmp_path, "third", gallery="rows of all three")

    for expected in ("second", "third", "second"):
        roll_back(tmp_path)
        assert served_index(tmp_path) == expected
        verify(tmp_path)

    assert layout.served_version(tmp_path / "model_repo", "vector_similarity") == 6
    assert (tmp_path / "gallery" / "gallery.sqlite").read_text() == "rows of all three"


def test_rolling_back_a_build_and_back_again(tmp_path):
    publish(tmp_path, "old")
    add_version(tmp_path, "old", gallery="more rows")
    publish(tmp_path, "new")

    roll_back(tmp_path)
    assert published(tmp_path) == build_of("old") | {"gallery/gallery.sqlite": "more rows"}
    verify(tmp_path)

    roll_back(tmp_path)
    assert published(tmp_path) == build_of("new")
    verify(tmp_path)


def test_rolling_back_needs_an_earlier_version_that_is_whole(tmp_path):
    publish(tmp_path, "old")
    with pytest.raises(PublishingError, match="There is no earlier version"):
        roll_back(tmp_path)
    publish(tmp_path, "new")
    (tmp_path / ".build" / "previous" / "gallery" / "gallery.sqlite").write_text("else")

    with pytest.raises(PublishingError, match=r"gallery.sqlite is damaged"):
        roll_back(tmp_path)

    assert published(tmp_path) == build_of("new")
