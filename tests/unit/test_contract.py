from reverse_image_search import contract


def test_names_types_and_shapes_are_the_published_ones():
    """Clients in other languages depend on these names; they must not change."""
    table = {
        model.name: [
            (tensor.name, tensor.datatype, tensor.shape)
            for tensor in (*model.inputs, *model.outputs)
        ]
        for model in contract.MODELS
    }

    assert table == {
        "image_encoder": [("INPUT__0", "FP32", (3, -1, -1)), ("OUTPUT__0", "FP32", ("D",))],
        "vector_similarity": [
            ("INPUT__0", "FP32", ("D",)),
            ("OUTPUT__0", "INT64", ("K",)),
            ("OUTPUT__1", "FP32", ("K",)),
        ],
    }


def test_dims_replaces_the_placeholders():
    assert contract.IMAGES.dims(D=128, K=20) == (3, -1, -1)
    assert contract.EMBEDDINGS.dims(D=128, K=20) == (128,)
    assert contract.NEIGHBOR_IDS.dims(D=128, K=20) == (20,)
