"""The evaluation of a real server, small, checked against what the client sees."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from reverse_image_search.client import Neighbors
from reverse_image_search.evaluation.copies import KINDS
from reverse_image_search.evaluation.evaluate import EvaluationError, check_ranking
from tests.running import BIN, Triton

QUERIES, COPIES = 200, 50


@pytest.fixture(scope="module")
def report(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, Path]:
    """What ``evaluate.sh`` wrote, what it printed, and the folder of its pictures."""
    folder = tmp_path_factory.mktemp("evaluation")
    command = [BIN / "evaluate.sh", "--queries", str(QUERIES), "--copies", str(COPIES)]
    result = subprocess.run(
        [*command, "--json", folder / "report.json", "--pictures", folder],
        env={**os.environ, **triton.environment, "TRITON_URL": triton.url},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads((folder / "report.json").read_text()), result.stdout, folder


def test_report_has_the_stated_keys(report, gallery):
    numbers, _, _ = report
    same_kind = {"precision_at_1", "precision_at_20", "map", "map_at_r"}
    assert set(numbers) == same_kind | {"per_class", "copies", "baselines", "build_id"}
    assert numbers["build_id"] == gallery.build_id
    assert set(numbers["per_class"]) == set(gallery.class_names)
    assert set(numbers["copies"]) == set(KINDS)
    assert set(numbers["baselines"]) == {"raw pixels", "PCA-64", "untrained encoder"}
    for recalls in numbers["copies"].values():
        assert 0 <= recalls["recall_at_1"] <= recalls["recall_at_20"] <= 1


def test_precision_is_that_of_a_plain_loop_over_served_ids(report, client, gallery):
    numbers, _, _ = report
    ids, _ = client.search(gallery.query_images[:QUERIES])
    labels = gallery.query_labels[:QUERIES]
    first = [gallery.labels[row[0]] == label for row, label in zip(ids, labels, strict=True)]
    top = [
        sum(gallery.labels[i] == label for i in row[:20]) / 20
        for row, label in zip(ids, labels, strict=True)
    ]
    assert numbers["precision_at_1"] == pytest.approx(np.mean(first))
    assert numbers["precision_at_20"] == pytest.approx(np.mean(top))


def test_a_mirrored_image_is_found_again(report):
    # The encoder looks both ways, so a mirror image is the image itself, duplicates aside.
    numbers, _, _ = report
    assert numbers["copies"]["mirror"]["recall_at_1"] >= 0.95


def test_table_and_pictures_are_there(report):
    _, printed, folder = report
    for word in ("P@1", "MAP@R", "copies R@1", "raw pixels", "occlusion", "Ankle boot"):
        assert word in printed
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {"precision_per_class.png", "recall_per_copy.png", "example_queries.png"}


def test_neighbours_that_are_not_the_nearest_are_refused():
    gallery_embeddings = np.eye(3, dtype=np.float32)
    query = np.array([[1, 0, 0]], dtype=np.float32)
    right = Neighbors(np.array([[0, 1]]), np.array([[1.0, 0.0]], dtype=np.float32))
    check_ranking(query, gallery_embeddings, right)
    check_ranking(query, gallery_embeddings, right._replace(ids=np.array([[0, 2]])))  # a tie
    with pytest.raises(EvaluationError, match="2 of 2 served neighbours"):
        check_ranking(query, gallery_embeddings, right._replace(ids=np.array([[1, 0]])))
    with pytest.raises(EvaluationError, match="scores"):
        check_ranking(query, gallery_embeddings, right._replace(scores=right.scores / 2))
