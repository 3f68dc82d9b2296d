"""Builds whose files hold one text each, for tests of publishing."""

from reverse_image_search import layout
from reverse_image_search.serving.publishing import publish_index_version, staging

INDEX = "model_repo/vector_similarity"


def write_build(folder, content: str) -> None:
    """Files as a build writes them, each with `content`."""
    for model in ("image_encoder", "vector_similarity"):
        version = layout.version_folder(folder / "model_repo", model)
        version.mkdir(parents=True)
        (version / "model.pt").write_text(content)
        config = f"{layout.version_policy(1)}\n# {content}\n"
        layout.config_file(folder / "model_repo", model).write_text(config)
    (folder / "gallery").mkdir(exist_ok=True)
    (folder / "gallery" / "gallery.sqlite").write_text(content)


def published(output_dir) -> dict[str, str]:
    """Content of what is served: a text for each model, and the gallery's files."""
    served = {
        path.relative_to(output_dir).as_posix(): path.read_text()
        for path in (output_dir / "gallery").glob("*")
        if path.name != "SHA256SUMS"
    }
    for folder in (output_dir / "model_repo").glob("*"):
        served[folder.name] = layout.model_file(folder.parent, folder.name).read_text()
        config = layout.config_file(folder.parent, folder.name).read_text()
        assert config.endswith(f"# {served[folder.name]}\n"), "a configuration of another build"
    return served


def build_of(content: str) -> dict[str, str]:
    return dict.fromkeys(("image_encoder", "vector_similarity", "gallery/gallery.sqlite"), content)


def publish(output_dir, content: str) -> None:
    with staging(output_dir) as folder:
        write_build(folder, content)


def add_version(output_dir, content: str, gallery: str = "") -> int:
    """Publish a version of the index, and a gallery with it."""

    def write_files(folder) -> None:
        version = layout.version_folder(folder / "model_repo", "vector_similarity")
        version.mkdir()
        (version / "model.pt").write_text(content)
        if gallery:
            (folder / "gallery").mkdir()
            (folder / "gallery" / "gallery.sqlite").write_text(gallery)

    return publish_index_version(output_dir, write_files)


def served_index(output_dir) -> str:
    return layout.model_file(output_dir / "model_repo", "vector_similarity").read_text()
