"""What find_duplicates.sh says before it asks the server for anything."""

from reverse_image_search.gallery import GalleryImage, GalleryMetadata
from reverse_image_search.gallery_writer import write_gallery
from reverse_image_search.layout import gallery_file
from reverse_image_search.terminal import duplicates


def test_without_opencv_cropped_copies_are_not_left_out_in_silence(tmp_path, monkeypatch, capsys):
    scale = {"perturbed_copies": [0.7] * 7}
    metadata = GalleryMetadata("", "", "photos", [], 224, 224, False, False, True, scale, 0.936)
    write_gallery(gallery_file(tmp_path), metadata, [GalleryImage(0, "", None, 1, 1, b"", b"")])
    monkeypatch.setattr(duplicates, "is_installed", lambda: False)

    code = duplicates.main(["--url", "http://127.0.0.1:9", "--output-dir", str(tmp_path)])

    assert code == 2
    error = capsys.readouterr().err
    assert "OpenCV is not installed" in error
    assert "--threshold 0.936" in error
