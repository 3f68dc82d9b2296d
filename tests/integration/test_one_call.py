"""The ensemble `image_search`, the client's use of it, and many queries at a time."""

import asyncio

import numpy as np
import pytest
from reverse_image_search.async_client import AsyncClient

from reverse_image_search.client.client import Client


@pytest.fixture(scope="module")
def expected(client, query_pixels):
    return client.search(query_pixels[:70])


def test_one_call_answers_as_two_do(small_build, start_triton, query_pixels, expected):
    server = start_triton(small_build, "--ensemble")
    client = Client(server.url, timeout=60, one_call=True)
    assert client.model_metadata("image_search")["platform"] == "ensemble"

    neighbors = client.search(query_pixels[:70])

    np.testing.assert_allclose(neighbors.scores, expected.scores, rtol=0, atol=1e-5)
    assert (neighbors.ids == expected.ids).mean() > 0.99  # but for ties within rounding


def test_one_call_becomes_two_where_the_server_has_no_ensemble(triton, query_pixels, expected):
    neighbors = Client(triton.url, timeout=60, one_call=True).search(query_pixels[:70])
    np.testing.assert_array_equal(neighbors.ids, expected.ids)


def test_many_queries_at_a_time(triton, query_pixels, expected):
    async def search_all():
        async with AsyncClient(triton.url, timeout=60) as client:
            images = query_pixels[:70]
            return await asyncio.gather(*(client.search([image]) for image in images))

    answers = asyncio.run(search_all())

    scores = np.concatenate([answer.scores for answer in answers])
    np.testing.assert_allclose(scores, expected.scores, rtol=0, atol=1e-5)
