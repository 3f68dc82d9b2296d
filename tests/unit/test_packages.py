from pathlib import Path

import pytest

from reverse_image_search.packages import PackageError, install_requirements


def test_a_package_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reverse_image_search.packages.REPOSITORY_ROOT", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "requirements-mine.txt").write_text("# comment\nno-such-package==1.0\n")
    with pytest.raises(PackageError, match=r"requirements-mine\.txt could not be installed"):
        install_requirements("requirements-mine.txt")
