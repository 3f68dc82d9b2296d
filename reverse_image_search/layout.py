"""Where the files of a build are, and the commands that make and serve them.

    OUTPUT_DIR/
        model_repo/image_encoder/config.pbtxt, 1/model.pt       for Triton
        model_repo/vector_similarity/config.pbtxt, 1/model.pt   2/, ... after updates
        ensemble_repo/image_search/config.pbtxt                 for Triton, with --ensemble
        gallery/gallery.sqlite                                  for the app
        gallery/SHA256SUMS                                      of all of the above

A model's ``config.pbtxt`` names the version that is served.

Standard library only: the start scripts use it without the packages of a build.
"""

import re
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent

_BIN = "reverse_image_search/bin"
BUILD_COMMAND = f"{_BIN}/build_models.sh"
START_COMMAND = f"{_BIN}/start_inference_server_cpu.sh"
STOP_COMMAND = f"{START_COMMAND} --stop"

MODEL_REPO = "model_repo"
ENSEMBLE_REPO = "ensemble_repo"
GALLERY = "gallery"
PARTS = (MODEL_REPO, ENSEMBLE_REPO, GALLERY)  # folders of OUTPUT_DIR that a build replaces
CHECKSUMS = f"{GALLERY}/SHA256SUMS"
WORK = ".build"  # folder of OUTPUT_DIR for what is written before it is published
PREVIOUS = "previous"  # folder of WORK, see `previous_build`

FIRST_VERSION = 1
MODEL_FILENAME = "model.pt"  # Triton's default for TorchScript


def gallery_file(output_dir: Path) -> Path:
    """The gallery's database."""
    return output_dir / GALLERY / "gallery.sqlite"


def previous_build(output_dir: Path) -> Path:
    """The build that was published before, laid out as the published one."""
    return output_dir / WORK / PREVIOUS


def version_policy(version: int) -> str:
    """The line of ``config.pbtxt`` that names the served version."""
    return f"version_policy {{ specific {{ versions: {version} }} }}"


def served_version(model_repo: Path, model_name: str) -> int:
    """The version that ``config.pbtxt`` names; the first one while there is no such file."""
    config = config_file(model_repo, model_name)
    if not config.exists():
        return FIRST_VERSION
    pattern = re.escape(version_policy(0)).replace("0", r"(\d+)")
    match = re.search(pattern, config.read_text())
    return int(match[1]) if match else FIRST_VERSION


def versions(model_repo: Path, model_name: str) -> list[int]:
    """All versions of a model that have a folder, ascending."""
    folders = (model_repo / model_name).glob("*")
    return sorted(int(each.name) for each in folders if each.name.isdecimal() and each.is_dir())


def version_folder(model_repo: Path, model_name: str, version: int | None = None) -> Path:
    """Folder of a version of a model: by default, of the served one."""
    if version is None:
        version = served_version(model_repo, model_name)
    return model_repo / model_name / str(version)


def model_file(model_repo: Path, model_name: str) -> Path:
    """TorchScript file of the served version of a model."""
    return version_folder(model_repo, model_name) / MODEL_FILENAME


def config_file(model_repo: Path, model_name: str) -> Path:
    """Triton's configuration of a model."""
    return model_repo / model_name / "config.pbtxt"
