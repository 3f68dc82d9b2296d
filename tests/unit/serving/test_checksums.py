import subprocess

import pytest

from reverse_image_search.serving.checksums import verify
from reverse_image_search.serving.file_system import PublishingError
from tests.unit.serving.text_builds import INDEX, publish


def test_nothing_built_names_the_build_command(tmp_path):
    with pytest.raises(PublishingError, match=r"There are no models.*bin/build_models\.sh"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_text("ne"), "is damaged"),
        (lambda path: path.write_text("nex"), "is damaged"),
    ],
    ids=["missing", "cut short", "one byte changed"],
)
@pytest.mark.parametrize(
    "name",
    ["model_repo/image_encoder/1/model.pt", f"{INDEX}/config.pbtxt", "gallery/gallery.sqlite"],
)
def test_a_damaged_file_is_named(tmp_path, name, damage, message):
    publish(tmp_path, "new")
    damage(tmp_path / name)

    with pytest.raises(PublishingError, match=f"{name} {message}.*bin/build_models.sh"):
        verify(tmp_path)


def test_empty_checksums_pass_for_no_build(tmp_path):
    publish(tmp_path, "new")
    (tmp_path / "gallery" / "SHA256SUMS").write_text("")

    with pytest.raises(PublishingError, match="SHA256SUMS is empty"):
        verify(tmp_path)


def test_checksums_are_those_of_sha256sum(tmp_path):
    publish(tmp_path, "new")

    check = ["sha256sum", "--check", "--strict", "gallery/SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 0
