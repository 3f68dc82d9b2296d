"""The code of doc/own_encoder.md, registered as the page says, builds a gallery."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from reverse_image_search import build_models, layout
from reverse_image_search.encoders import ENCODERS
from reverse_image_search.gallery import Gallery
from tests.running import REPO_ROOT


def test_code_of_the_page_builds_a_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (REPO_ROOT / "doc" / "own_encoder.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 36
    module: dict = {}
    exec(code, module)
    monkeypatch.setitem(ENCODERS, "mobilenet", module["MOBILENET"])
    weights_file = tmp_path / "mobilenet.pth"
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), weights_file)
    (tmp_path / "photos").mkdir()
    for i, color in enumerate(["red", "green", "blue"]):
        Image.new("RGB", (40 + i, 30), color).save(tmp_path / "photos" / f"{color}.png")

    arguments = ["--images", str(tmp_path / "photos"), "--output-dir", str(tmp_path / "out")]
    arguments += ["--encoder", "mobilenet", "--weights", str(weights_file)]
    assert build_models.main(arguments) == 0

    gallery = Gallery(layout.gallery_file(tmp_path / "out"))
    _ids, embeddings = gallery.embeddings()
    assert embeddings.shape == (3, 1024)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
