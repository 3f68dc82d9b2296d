"""Whole searches through a real Triton, against a plain NumPy search of the same embeddings."""

import json
import multiprocessing
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from reverse_image_search.client import Client
from reverse_image_search.client.search import (
    IndexIdentity,
    ServedIdentity,
    WrongAnswerError,
    check_identity,
    search_gallery,
    served_identity,
)
from reverse_image_search.gallery import Gallery
from reverse_image_search.gallery_writer import write_gallery
from tests.running import open_url

QUERIES = 1000
# Scores closer than this are ties: float32 sums in another order may rank them either way.
TIE = 1e-6


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def query_embeddings(client, query_pixels) -> np.ndarray:
    return client.embed(query_pixels[:QUERIES])


@pytest.fixture(scope="module")
def cosines(query_embeddings, gallery_embeddings) -> np.ndarray:
    """(queries, gallery) float32 cosine similarity of every pair."""
    return unit(query_embeddings) @ unit(gallery_embeddings).T


def test_thousand_queries_equal_a_numpy_search(client, query_embeddings, cosines, figure):
    neighbors = client.find_similar(query_embeddings)

    k = neighbors.ids.shape[1]
    expected_ids = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    expected = np.take_along_axis(cosines, expected_ids, axis=1)
    difference = np.abs(neighbors.scores - expected).max()
    swapped = neighbors.ids != expected_ids
    # Where the ids differ, the oracle must call it a tie.
    of_answer = np.take_along_axis(cosines, neighbors.ids, axis=1)
    largest_tie = np.abs(of_answer - expected)[swapped].max(initial=0)
    figure(
        f"{QUERIES} queries, top {k} of {cosines.shape[1]}: largest score difference "
        f"{difference:.1e}, {swapped.sum()} of {swapped.size} ids differ, all ties "
        f"within {largest_tie:.1e}"
    )

    assert k == 100
    assert difference <= 1e-5
    assert largest_tie <= TIE
    assert swapped.mean() < 0.01
    assert (np.diff(neighbors.scores, axis=1) <= 0).all(), "best first"
    assert all(len(set(row)) == k for row in neighbors.ids), "no id twice"


def test_scores_belong_to_the_ids(client, query_embeddings, cosines):
    """The fault of this tutorial's first version: scores of other images than those shown."""
    neighbors = client.find_similar(query_embeddings)

    of_these_ids = np.take_along_axis(cosines, neighbors.ids, axis=1)
    assert np.abs(neighbors.scores - of_these_ids).max() <= 1e-5


def test_every_neighbor_has_a_score_of_its_own(client, query_pixels):
    """Another fault of it: all images of a row wore the score of the last one."""
    neighbors = client.search(query_pixels[:10])

    assert all(len(set(row[:20])) > 15 for row in neighbors.scores)


def test_a_gallery_image_finds_itself(client, gallery_pixels):
    ids = [0, 1, 42, len(gallery_pixels) - 1]

    neighbors = client.search(gallery_pixels[ids])

    np.testing.assert_allclose(neighbors.scores[:, 0], 1, atol=1e-5)
    # Fashion-MNIST has a few exact duplicates: the image found is the same one.
    for found, wanted in zip(neighbors.ids[:, 0], ids, strict=True):
        np.testing.assert_array_equal(gallery_pixels[found], gallery_pixels[wanted])


def test_neighbors_are_mostly_of_the_same_class(client, gallery, query_pixels):
    """Even one pass over 3,000 images beats the 10 % of chance by far."""
    neighbors = client.search(query_pixels[:500])

    found = gallery.images(neighbors.ids[:, 0])
    queries = gallery.queries(range(500))
    same = [image.label == query.label for image, query in zip(found, queries, strict=True)]
    assert np.mean(same) > 0.5


def test_embeddings_have_unit_length(query_embeddings, gallery_embeddings):
    for embeddings in (query_embeddings, gallery_embeddings):
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_length_of_a_query_embedding_does_not_matter(client, query_embeddings):
    once = client.find_similar(query_embeddings[:5])
    tripled = client.find_similar(3 * query_embeddings[:5])

    np.testing.assert_allclose(once.scores, tripled.scores, atol=1e-5)


def test_forms_of_one_image_get_one_answer(client, query_pixels):
    gray = query_pixels[0]
    rgb = np.stack([gray] * 3, axis=-1)
    pixels = (rgb.transpose(2, 0, 1) / 255).astype(np.float32)

    answers = [client.embed([form]) for form in (gray, rgb, pixels, Image.fromarray(gray))] + [
        client.embed(array[None]) for array in (gray, rgb, pixels)
    ]

    for answer in answers:
        np.testing.assert_allclose(answer, answers[0], rtol=0, atol=1e-6)


def test_images_of_mixed_sizes_come_back_in_order(client, query_pixels):
    """Three sizes, interleaved: each answer equals that of the image alone."""
    images = []
    for i in range(30):
        image = Image.fromarray(query_pixels[i])
        images.append(image.resize(((28, 56, 45)[i % 3], (28, 56, 60)[i % 3])))

    together = client.embed(images)
    alone = np.concatenate([client.embed([image]) for image in images])

    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    assert client.search(images).ids.shape == (30, 100)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200])
def test_batches_around_the_limit(client, query_pixels, query_embeddings, count):
    embeddings = client.embed(query_pixels[:count])

    np.testing.assert_allclose(embeddings, query_embeddings[:count], rtol=0, atol=1e-5)
    assert client.find_similar(embeddings).ids.shape == (count, 100)


def test_one_client_serves_many_threads(client, query_pixels, query_embeddings):
    expected = client.find_similar(query_embeddings[:64])
    start = threading.Barrier(16)

    def search(thread: int) -> None:
        start.wait()
        for i in range(thread, 64, 16):
            answer = client.search(query_pixels[i : i + 1])
            np.testing.assert_allclose(answer.scores[0], expected.scores[i], rtol=0, atol=1e-5)
            assert answer.ids[0, 0] == expected.ids[i, 0] or (
                abs(expected.scores[i, 0] - expected.scores[i, 1]) <= 1e-5
            )

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(search, range(16)))


def infer_with_json(url: str, model: str, tensor: list, shape: list[int]) -> dict[str, np.ndarray]:
    """What a client without tritonclient does: plain JSON in, plain JSON out."""
    body = {"inputs": [{"name": "INPUT__0", "datatype": "FP32", "shape": shape, "data": tensor}]}
    request = urllib.request.Request(
        f"{url}/v2/models/{model}/infer",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with open_url(request, timeout=60) as response:
        answer = json.load(response)
    return {
        output["name"]: np.array(output["data"]).reshape(output["shape"])
        for output in answer["outputs"]
    }


def test_plain_json_gets_the_same_answer(triton, client, query_pixels):
    image = query_pixels[7]
    expected_embedding = client.embed([image])
    expected = client.find_similar(expected_embedding)
    pixels = np.stack([image] * 3) / 255

    embedding = infer_with_json(
        triton.url, "image_encoder", pixels.ravel().tolist(), [1, 3, 28, 28]
    )["OUTPUT__0"]
    answer = infer_with_json(
        triton.url, "vector_similarity", embedding.ravel().tolist(), list(embedding.shape)
    )

    np.testing.assert_allclose(embedding, expected_embedding, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(answer["OUTPUT__0"], expected.ids)
    np.testing.assert_allclose(answer["OUTPUT__1"], expected.scores, rtol=0, atol=1e-6)


def test_search_of_one_build_answers(client, gallery, query_pixels):
    answer = search_gallery(client, gallery, query_pixels[0])

    expected = client.search(query_pixels[:1])
    np.testing.assert_array_equal(answer.ids, expected.ids[0])
    assert answer.embed_ms > 0
    assert answer.find_ms > 0


@pytest.mark.parametrize("key", ["gallery_id", "encoder_id"])
def test_gallery_of_another_build_is_refused(client, gallery, query_pixels, tmp_path, key):
    """Its ids mean other images: showing them would be silently wrong."""
    path = tmp_path / "gallery.sqlite"
    metadata = replace(gallery.metadata, **{key: "0123456789ab"})
    write_gallery(path, metadata, gallery.images(gallery.ids()))

    with pytest.raises(WrongAnswerError, match=f"0123456789ab.*{getattr(gallery, key)}"):
        search_gallery(client, Gallery(path), query_pixels[0])


def test_the_server_tells_what_it_is(client, gallery):
    check_identity(client, gallery)

    assert served_identity(client) == ServedIdentity(
        gallery.encoder_id, IndexIdentity(gallery.encoder_id, gallery.gallery_id)
    )


def test_forked_processes_get_their_own_answers(client, query_pixels):
    """A client that was used before, in four children at once."""
    expected = client.search(query_pixels[:200]).ids[:, 0].tolist()

    with multiprocessing.get_context("fork").Pool(4, set_client, (client,)) as pool:
        answers = pool.map(first_id, query_pixels[:200], chunksize=1)

    assert answers == expected


_client_of_the_parent: list[Client] = []


def set_client(client: Client) -> None:
    _client_of_the_parent.append(client)


def first_id(pixels: np.ndarray) -> int:
    return int(_client_of_the_parent[0].search([pixels]).ids[0, 0])


def test_client_of_a_short_address_works(triton):
    assert Client(f"localhost:{triton.http_port}", timeout=60).is_ready()
