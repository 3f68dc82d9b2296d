"""The ensemble `image_search`, and the client's use of it."""

import numpy as np
import pytest

from reverse_image_search.client import Client


@pytest.fixture(scope="module")
def expected(client, query_pixels):
    return client.search(query_pixels[:70])


def test_one_call_answers_as_two_do(small_build, start_triton, query_pixels, expected):
    server = start_triton(small_build, "--ensemble")
    client = Client(server.url, timeout=60, one_call=True)
    assert client.model_metadata("image_search")["platform"] == "ensemble"

    neighbors = client.search(query_pixels[:70])

    np.testing.assert_allclose(neighbors.scores, expected.scores, rtol=0, atol=1e-5)
    assert (neighbors.ids == expected.ids).mean() > 0.99  # except for ties within rounding


def test_without_the_ensemble_one_call_is_two_and_says_so(triton, query_pixels, expected):
    client = Client(triton.url, timeout=60, one_call=True)

    with pytest.warns(UserWarning, match="does not serve image_search.*--ensemble"):
        neighbors = client.search(query_pixels[:70])

    np.testing.assert_array_equal(neighbors.ids, expected.ids)
