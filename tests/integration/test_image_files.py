"""Untrusted image files, through the client, to the real server."""

import time

import numpy as np

from reverse_image_search.app.query_image import has_light_background, to_query
from reverse_image_search.image_file import ImageFileError, read_image
from tests.image_corpus import corpus


def test_every_file_is_searched_for_or_refused(client, gallery, figure):
    searched, refused, slowest = 0, 0, 0.0
    for file in corpus():
        start = time.process_time()
        try:
            photo = read_image(file.data)
        except ImageFileError:
            refused += 1
            continue
        neighbors = client.search(
            [to_query(photo.pixels, crop=True, invert=has_light_background(photo.pixels))]
        )
        slowest = max(slowest, time.process_time() - start)
        searched += 1
        assert np.isfinite(neighbors.scores).all(), file.name
        assert (np.diff(neighbors.scores[0]) <= 0).all(), file.name
        assert len(set(neighbors.ids[0].tolist())) == neighbors.ids.shape[1], file.name
        assert neighbors.ids.min() >= 0
        assert neighbors.ids.max() < len(gallery)
    figure(
        f"client: {searched} files searched for, {refused} refused with a reason, 0 lost; "
        f"slowest {slowest:.2f} s of CPU on the client's side"
    )
    assert searched >= 50
    assert refused >= 50
    assert client.is_ready()
