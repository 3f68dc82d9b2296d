"""Where the files of a build are, and the commands that make and serve them.

    OUTPUT_DIR/
        model_repo/image_encoder/config.pbtxt, 1/model.pt       for Triton
        model_repo/vector_similarity/config.pbtxt, 1/model.pt
        ensemble_repo/image_search/config.pbtxt                 for Triton, with --ensemble
        gallery/gallery.sqlite                                  for the app
        gallery/SHA256SUMS                                      of all of the above

Standard library only: the start scripts use it without the packages of a build.
"""

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

FIRST_VERSION = "1"
MODEL_FILENAME = "model.pt"  # Triton's default for TorchScript


def gallery_file(output_dir: Path) -> Path:
    """The gallery's database."""
    return output_dir / GALLERY / "gallery.sqlite"


def version_folder(model_repo: Path, model_name: str) -> Path:
    """Folder of the served version of a model."""
    return model_repo / model_name / FIRST_VERSION


def model_file(model_repo: Path, model_name: str) -> Path:
    """TorchScript file of the served version of a model."""
    return version_folder(model_repo, model_name) / MODEL_FILENAME


def config_file(model_repo: Path, model_name: str) -> Path:
    """Triton's configuration of a model."""
    return model_repo / model_name / "config.pbtxt"
