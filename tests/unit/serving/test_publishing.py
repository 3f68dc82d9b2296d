import subprocess

import pytest

from reverse_image_search.serving.publishing import (
    PublishingError,
    finish_publishing,
    staging,
    verify,
)


def write_build(folder, content: str) -> None:
    """Files as a build writes them, each with `content`."""
    for name in ("model_repo/image_encoder/1/model.pt", "gallery/gallery.sqlite"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def published(output_dir) -> dict[str, str]:
    """Content of every published file but the checksums."""
    return {
        path.relative_to(output_dir).as_posix(): path.read_text()
        for part in ("model_repo", "gallery", "ensemble_repo")
        for path in (output_dir / part).rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }


def build_of(content: str) -> dict[str, str]:
    return {"model_repo/image_encoder/1/model.pt": content, "gallery/gallery.sqlite": content}


def publish(output_dir, content: str) -> None:
    with staging(output_dir) as folder:
        write_build(folder, content)


def test_a_build_appears_when_it_is_complete(tmp_path):
    with staging(tmp_path) as folder:
        write_build(folder, "new")
        assert published(tmp_path) == {}

    assert published(tmp_path) == build_of("new")
    assert sorted(path.name for path in (tmp_path / ".build").iterdir()) == [
        "build.lock",
        "publish.lock",
    ]
    verify(tmp_path)


def test_a_new_build_replaces_all_of_the_old_one(tmp_path):
    with staging(tmp_path) as folder:
        write_build(folder, "old")
        (folder / "gallery" / "only_in_old").write_text("old")

    publish(tmp_path, "new")

    assert published(tmp_path) == build_of("new")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_build_that_fails_leaves_the_old_one_whole(tmp_path, error):
    publish(tmp_path, "old")

    def build_half() -> None:
        with staging(tmp_path) as folder:
            write_build(folder, "half")
            raise error

    with pytest.raises(error):
        build_half()

    assert published(tmp_path) == build_of("old")
    assert not (tmp_path / ".build" / "staging").exists()
    verify(tmp_path)


def test_what_a_killed_build_left_is_not_part_of_the_next(tmp_path):
    left = tmp_path / ".build" / "staging" / "gallery"
    left.mkdir(parents=True)
    (left / "left").write_text("half")

    publish(tmp_path, "new")

    assert published(tmp_path) == build_of("new")


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_publishing_that_was_killed_between_its_moves_is_finished(tmp_path, moved):
    """`ready` holds a complete build, of which the first `moved` folders are in place."""
    publish(tmp_path / "other", "new")
    publish(tmp_path, "old")
    ready, replaced = tmp_path / ".build" / "ready", tmp_path / ".build" / "replaced"
    ready.mkdir()
    replaced.mkdir()
    for position, part in enumerate(("model_repo", "gallery")):
        if position < moved:
            (tmp_path / part).rename(replaced / part)
            (tmp_path / "other" / part).rename(tmp_path / part)
        else:
            (tmp_path / "other" / part).rename(ready / part)

    finish_publishing(tmp_path)

    assert published(tmp_path) == build_of("new")
    assert not ready.exists()
    assert not replaced.exists()
    verify(tmp_path)


def test_two_builds_do_not_write_to_one_folder(tmp_path):
    with staging(tmp_path) as folder:
        with pytest.raises(PublishingError, match="Another build is writing"):
            publish(tmp_path, "second")
        write_build(folder, "first")

    assert published(tmp_path) == build_of("first")


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
@pytest.mark.parametrize("name", build_of(""))
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
