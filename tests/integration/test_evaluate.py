"""The evaluation of a real server, small, checked against what the client sees."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from reverse_image_search.evaluation.copies import KINDS
from tests.running import BIN, Triton

QUERIES, COPIES = 200, 50


@pytest.fixture(scope="module")
def report(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, Path]:
    """What ``evaluate.sh`` wrote, what it printed, and the folder of its figures."""
    folder = tmp_path_factory.mktemp("evaluation")
    command = [BIN / "evaluate.sh", "--queries", str(QUERIES), "--copies", str(COPIES)]
    result = subprocess.run(
        [*command, "--json", folder / "report.json", "--figures", folder],
        env={**os.environ, **triton.environment, "TRITON_URL": triton.url},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads((folder / "report.json").read_text()), result.stdout, folder


def test_report_has_the_stated_keys(report, gallery):
    numbers, _, _ = report
    category_level = {"precision_at_1", "precision_at_20", "map", "map_at_r"}
    others = {"per_class", "copies", "baselines", "gallery_id", "encoder_id"}
    assert set(numbers) == category_level | others
    assert numbers["gallery_id"] == gallery.gallery_id
    assert numbers["encoder_id"] == gallery.encoder_id
    assert set(numbers["per_class"]) == set(gallery.metadata.class_names)
    assert set(numbers["copies"]) == set(KINDS)
    assert set(numbers["baselines"]) == {
        "raw pixels",
        "perceptual hash",
        "PCA-64",
        "untrained encoder",
    }
    for recalls in numbers["copies"].values():
        assert 0 <= recalls["recall_at_1"] <= recalls["recall_at_20"] <= 1


def test_precision_is_that_of_a_plain_loop_over_served_ids(report, client, gallery, query_pixels):
    numbers, _, _ = report
    ids, _ = client.search(query_pixels[:QUERIES])
    labels = gallery.labels()
    query_labels = [query.label for query in gallery.queries(range(QUERIES))]
    first = [labels[row[0]] == label for row, label in zip(ids, query_labels, strict=True)]
    top = [
        sum(labels[i] == label for i in row[:20]) / 20
        for row, label in zip(ids, query_labels, strict=True)
    ]
    assert numbers["precision_at_1"] == pytest.approx(np.mean(first))
    assert numbers["precision_at_20"] == pytest.approx(np.mean(top))


def test_a_mirrored_image_is_found_again(report):
    # Flip test-time augmentation: a mirror image is the image itself, duplicates aside.
    numbers, _, _ = report
    assert numbers["copies"]["mirror"]["recall_at_1"] >= 0.95


def test_table_and_figures_are_there(report):
    _, printed, folder = report
    for word in ("P@1", "MAP@R", "copies R@1", "raw pixels", "occlusion", "Ankle boot"):
        assert word in printed
    figures = {path.name for path in folder.glob("*.png")}
    assert figures == {"precision_per_class.png", "recall_per_copy.png", "example_queries.png"}
