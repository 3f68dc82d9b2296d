"""The exported files in C++ libtorch, as the Triton container loads them: without Python."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from reverse_image_search.indexes import INDEXES, IndexOptions
from reverse_image_search.layout import MODEL_FILENAME, model_file
from reverse_image_search.serving.export import load_torchscript, write_model_files
from tests.running import skip_or_fail

SOURCE = Path(__file__).with_name("load_torchscript.cpp")
TORCH = Path(torch.__file__).parent


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """load_torchscript.cpp, compiled against the libtorch inside the installed torch package."""
    if not shutil.which("g++"):
        skip_or_fail("g++ is missing: apt-get install g++")
    binary = tmp_path_factory.mktemp("libtorch") / "load_torchscript"
    command = [
        "g++", "-std=c++20", "-O0", SOURCE, "-o", binary,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        "-isystem", TORCH / "include", "-isystem", TORCH / "include/torch/csrc/api/include",
        # The CUDA builds of torch link the CUDA libraries, which a CPU program does not call.
        f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-Wl,--allow-shlib-undefined",
        "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10",
    ]  # fmt: skip
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    return binary


@pytest.fixture(scope="module")
def ivf_file(gallery, tmp_path_factory) -> Path:
    """An inverted file of the small build's embeddings."""
    ids, embeddings = map(torch.from_numpy, gallery.embeddings())
    index = INDEXES["ivf"].build(embeddings, ids, IndexOptions(top_k=100)).eval()
    folder = tmp_path_factory.mktemp("ivf") / "1"
    write_model_files(INDEXES["ivf"].files(index), folder, input_ndim=2)
    return folder / MODEL_FILENAME


@pytest.mark.parametrize("index", ["exact", "ivf"])
@pytest.mark.parametrize("shape", [(5, 3, 28, 28), (2, 3, 40, 23)])
def test_both_files_give_the_same_numbers_in_cpp(program, small_build, ivf_file, shape, index):
    images = np.random.default_rng(0).random(shape, np.float32)
    model_repo = small_build / "model_repo"
    files = [
        model_file(model_repo, "image_encoder"),
        ivf_file if index == "ivf" else model_file(model_repo, "vector_similarity"),
    ]

    result = subprocess.run(
        [program, *files, *(str(size) for size in (shape[0], *shape[2:]))],
        input=images.tobytes(),
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr.decode()
    lines = [line.split() for line in result.stdout.decode().splitlines()]
    in_cpp = {
        name: np.array([float(number) for n, number in lines if n == name]).reshape(shape[0], -1)
        for name in ("embeddings", "ids", "scores")
    }

    encoder, similarity = map(load_torchscript, files)
    with torch.inference_mode():
        embeddings = encoder(torch.from_numpy(images))
        ids, scores = similarity(embeddings)
    np.testing.assert_allclose(in_cpp["embeddings"], embeddings, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(in_cpp["ids"], ids)
    np.testing.assert_allclose(in_cpp["scores"], scores, rtol=0, atol=1e-6)
