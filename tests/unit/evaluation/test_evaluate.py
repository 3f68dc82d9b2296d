"""The evaluation on galleries of a few images, with a stand-in for the server."""

import json
import os
import sqlite3

import numpy as np
import pytest
from PIL import Image

from reverse_image_search.client import Neighbors
from reverse_image_search.evaluation import evaluate
from reverse_image_search.evaluation.baselines import make_baselines, pixels_of_one_size
from reverse_image_search.evaluation.evaluate import EvaluationError, check_ranking
from reverse_image_search.evaluation.examples import Examples
from reverse_image_search.evaluation.originals import Originals
from reverse_image_search.evaluation.photo_copies import PHOTO_KINDS
from reverse_image_search.gallery import Gallery, GalleryImage, GalleryMetadata, make_thumbnail
from reverse_image_search.gallery_writer import write_gallery
from reverse_image_search.layout import gallery_file

IDS = np.arange(3, 93, 3)  # with gaps, as after removals


class StubClient:
    """Embeds an image as the shares of its brightness in 16 squares, and searches exactly."""

    url = "http://stub"

    def __init__(self, gallery: Gallery, top_k: int) -> None:
        self._ids, self._embeddings = gallery.embeddings()
        self._parameters = {"encoder_id": gallery.encoder_id}
        self._gallery_id = gallery.gallery_id
        self._top_k = top_k

    def model_config(self, name):
        ids = self._parameters | (
            {"gallery_id": self._gallery_id} if name == "vector_similarity" else {}
        )
        return {"parameters": {key: {"string_value": value} for key, value in ids.items()}}

    def embed(self, images):
        return np.stack([embed(image) for image in images])

    def find_similar(self, embeddings):
        similarity = embeddings @ self._embeddings.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, : self._top_k]
        padding = ((0, 0), (0, max(0, self._top_k - len(self._ids))))
        scores = np.take_along_axis(similarity, order, axis=1)
        return Neighbors(
            np.pad(self._ids[order], padding, constant_values=-1),
            np.pad(scores, padding, constant_values=-3e38),
        )

    def search(self, images):
        return self.find_similar(self.embed(images))


def embed(image: np.ndarray) -> np.ndarray:
    gray = image.mean(axis=2) if image.ndim == 3 else image
    cells = [part.mean() for row in np.array_split(gray, 4) for part in np.array_split(row, 4, 1)]
    return (np.array(cells) / np.linalg.norm(cells)).astype(np.float32)


def random_blocks(
    output_dir,
    ids=IDS,
    labeled=True,
    shape=(28, 28),
    side=28,
    queries=8,
    is_photos=False,
    build_options=None,
) -> Gallery:
    """Random blocks: class A is bright on the left, class B on the right."""
    random = np.random.default_rng(0)

    def images(numbers):
        for number in numbers:
            label = "AB"[number % 2]
            pixels = random.integers(0, 100, shape, np.uint8)
            half = shape[1] // 2
            pixels[:, :half] += np.uint8(150 * (label == "A"))
            pixels[:, half:] += np.uint8(150 * (label == "B"))
            yield GalleryImage(
                number,
                str(number),
                label if labeled else None,
                *shape[1::-1],
                b"",
                make_thumbnail(pixels),
            )

    gallery_images = list(images(map(int, ids)))
    metadata = GalleryMetadata(
        gallery_id="gallery1",
        encoder_id="encoder1",
        dataset="Blocks",
        class_names=["A", "B"] if labeled else [],
        encoder_height=side,
        encoder_width=side,
        encoder_is_grayscale=len(shape) == 2,
        shows_objects_on_black=False,
        is_photos=is_photos,
        build_options=build_options or {},
    )
    embeddings = np.stack([embed(image.pixels) for image in gallery_images])
    write_gallery(
        gallery_file(output_dir), metadata, gallery_images, images(range(queries)), embeddings
    )
    return Gallery(gallery_file(output_dir))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``run(gallery, top_k=20)``: exit code, JSON report, names of the figures, and output."""

    def evaluate_with(gallery, top_k=20):
        monkeypatch.setattr(evaluate, "Client", lambda url, timeout: StubClient(gallery, top_k))
        report, figures = tmp_path / "report.json", tmp_path / "figures"
        code = evaluate.main(
            ["--output-dir", str(tmp_path), "--json", str(report), "--figures", str(figures),
             "--copies", "10"]
        )  # fmt: skip
        written = json.loads(report.read_text()) if report.exists() else None
        return code, written, {path.name for path in figures.glob("*")}, capsys.readouterr()

    return evaluate_with


def test_labels_of_sparse_ids(tmp_path, run):
    code, report, figures, _ = run(random_blocks(tmp_path))

    assert code == 0
    assert report["precision_at_1"] == 1  # left and right are easy to tell apart
    assert report["map_at_r"] == 1
    assert report["per_class"]["A"]["precision_at_1"] == 1
    assert report["copies"]["noise"]["recall_at_1"] == 1
    assert report["gallery_id"] == "gallery1"
    assert len(figures) == 3


def test_without_labels_only_the_copies_are_measured(tmp_path, run):
    code, report, figures, (printed, _) = run(random_blocks(tmp_path, labeled=False))

    assert code == 0
    assert set(report) == {"per_class", "copies", "baselines", "gallery_id", "encoder_id"}
    assert report["per_class"] == {}
    assert set(report["baselines"]["raw pixels"]) == {"copies"}
    assert figures == {"recall_per_copy.png", "example_queries.png"}
    assert "P@1" not in printed
    assert "copies R@1" in printed


@pytest.mark.parametrize("labeled", [True, False])
def test_recall_of_an_approximate_index_against_exact_search(tmp_path, capsys, labeled):
    """One that misses the fourth, so 19 of the 20 nearest and 24 of the 25 are found."""

    class ApproximateClient(StubClient):
        def find_similar(self, embeddings):
            found = super().find_similar(embeddings)
            return Neighbors(*(np.delete(each, 3, axis=1) for each in found))

    gallery = random_blocks(tmp_path, labeled=labeled, build_options={"is_exact": False})
    examples = Examples(gallery, None, 10)

    served, _ = evaluate.score_served(ApproximateClient(gallery, 26), examples)
    evaluate.print_report(examples, served, {})
    report, printed = evaluate.as_json(examples, served, {}), capsys.readouterr().out

    # A query may have a tie for the 20th place.
    assert report["index"] == pytest.approx({"recall_at_20": 0.95, "recall_at_25": 0.96}, abs=0.01)
    assert "96.00% of the 25 nearest" in printed


def test_without_queries_gallery_images_are_left_out_of_their_own_results(tmp_path, run):
    code, report, _, (printed, _) = run(random_blocks(tmp_path, queries=0))

    assert code == 0
    assert report["precision_at_1"] == report["map"] == 1
    # Of the 20 that are served, 19 are left; the other 14 of its class come first.
    assert report["precision_at_20"] == pytest.approx(14 / 19)
    assert "30 queries (images of the gallery, each left out)" in printed


def test_photos_and_fewer_than_k(tmp_path, run):
    gallery = random_blocks(tmp_path, ids=[1, 2, 5, 6], shape=(90, 70, 3), side=12, is_photos=True)

    code, report, figures, _ = run(gallery)

    assert code == 0
    assert tuple(report["copies"]) == PHOTO_KINDS
    assert set(report["baselines"]) == {"raw pixels", "perceptual hash"}
    assert report["copies"]["jpeg"]["recall_at_1"] == 1
    assert len(figures) == 3


def test_server_of_another_gallery_is_refused(tmp_path, run, monkeypatch):
    gallery = random_blocks(tmp_path)
    monkeypatch.setattr(StubClient, "model_config", lambda self, name: {"parameters": {}})

    code, report, _, (_, errors) = run(gallery)

    assert code == 1
    assert report is None
    assert "gallery1" in errors


def test_too_few_neighbors_for_recall_at_20(tmp_path, run):
    code, _, _, (_, errors) = run(random_blocks(tmp_path), top_k=19)

    assert code == 1
    assert "--top-k 20" in errors


def test_ids_become_rows_and_labels(tmp_path):
    examples = Examples(random_blocks(tmp_path), None, 5)

    assert examples.rows_of(np.array([[3, 90], [4, -1]])).tolist() == [[0, 29], [-1, -1]]
    assert examples.labels_of(np.array([3, 6, -1, 91])).tolist() == [1, 0, -2, -2]


def test_neighbors_that_are_not_the_nearest_are_refused():
    gallery_embeddings = np.eye(3, dtype=np.float32)
    query = np.array([[1, 0, 0]], dtype=np.float32)

    def check(rows, scores=(1, 0)):
        scores = np.array([scores], np.float32)
        check_ranking(
            query, gallery_embeddings, np.array([rows]), Neighbors(np.array([rows]), scores)
        )

    check([0, 1])
    check([0, 2])  # a tie
    check([0, 1, 2, -1], [1, 0, 0, -3e38])  # padding
    with pytest.raises(EvaluationError, match="2 of 2 served neighbors"):
        check([1, 0])
    with pytest.raises(EvaluationError, match="1 of 2 served neighbors"):
        check([0, -1])
    with pytest.raises(EvaluationError, match="scores"):
        check([0, 1], [0.5, 0])


def test_an_approximate_index_may_miss_a_few_neighbors():
    angles = np.linspace(0, 1.5, 40, dtype=np.float32)
    gallery_embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    query = np.array([[1, 0]], dtype=np.float32)

    def check(rows):
        scores = gallery_embeddings[rows, 0][None]
        neighbors = Neighbors(np.array([rows]), scores)
        return check_ranking(query, gallery_embeddings, np.array([rows]), neighbors, is_exact=False)

    assert check([*range(20)]) == {"recall_at_20": 1}
    assert check([*range(19), 20]) == {"recall_at_20": 0.95}
    # 4 and 25 are missing: of the first 20 that are returned, 19 are of the 20 nearest.
    found = [*range(4), *range(5, 25), *range(26, 32)]
    assert check(found) == {"recall_at_20": 0.95, "recall_at_30": pytest.approx(28 / 30)}
    with pytest.raises(EvaluationError, match="twice"):
        check([*range(19), 18])
    with pytest.raises(EvaluationError, match="3 of 20 served neighbors"):
        check([*range(17), 20, 21, 22])


def test_pixels_of_one_size_are_those_of_small_grayscale_images(tmp_path):
    metadata = random_blocks(tmp_path).metadata
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)

    assert (pixels_of_one_size(images, metadata) == images).all()


def test_the_perceptual_hash_of_a_negative_is_the_opposite():
    image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    embed = make_baselines(np.stack([image, image]), is_photos=True)["perceptual hash"]

    first, same, negative = embed(np.stack([image, image, 255 - image]))

    assert first @ same == pytest.approx(1)
    assert first @ negative == pytest.approx(-1, abs=0.1)  # the mean brightness has a bit as well


def test_originals_are_read_from_their_files_where_these_can_be_read(tmp_path):
    gallery = random_blocks(tmp_path, ids=[1, 2, 3])
    photo = np.zeros((400, 300, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    with sqlite3.connect(gallery_file(tmp_path)) as database:
        for image_id, name in ((1, "gone.png"), (2, "gone too.png"), (2, "photo.png")):
            row = os.fsencode(tmp_path / name), image_id, 1, 1
            database.execute("INSERT INTO files VALUES (?, ?, ?, ?)", row)

    sizes = [pixels.shape for pixels in Originals(gallery)]

    assert sizes == [(28, 28), (400, 300, 3), (28, 28)]
