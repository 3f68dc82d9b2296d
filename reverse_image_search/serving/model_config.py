"""Triton's ``config.pbtxt`` of the served models.

The libtorch backend cannot complete a configuration, so every tensor of the contract is listed
(https://github.com/triton-inference-server/pytorch_backend). No device is named: the same
repository runs on CPU and GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reverse_image_search import contract, layout
from reverse_image_search.gallery import GalleryMetadata
from reverse_image_search.indexes import IndexSpec

_ENSEMBLE = 'platform: "ensemble"'


@dataclass(frozen=True)
class ServerSettings:
    """Settings that may differ between servers of the same model."""

    instance_count: int | None = None  # copies that run in parallel; None is Triton's default, one
    intra_op_threads: int = 1  # of one call; with two models on a few cores, more would compete
    dynamic_batching: bool = True  # waiting requests share a call
    max_queue_delay: int = 0  # microseconds that a request waits for others


def model_config(
    model: contract.ModelSpec,
    *,
    embedding_dim: int,
    top_k: int,
    example_dims: tuple[int, ...] | None,
    parameters: Mapping[str, str],
    backend: str = contract.LIBTORCH_BACKEND,
    settings: ServerSettings | None = None,
) -> str:
    """Text of ``config.pbtxt`` for one model of the contract.

    Parameters
    ----------
    embedding_dim, top_k : D and K of this build
    example_dims : shape of a warm-up input without the batch dimension; Triton runs random ones in
        several batch sizes before the model is READY; None is no warm-up
    parameters : identity of the model, see `contract`
    backend : the line that names what serves the model's files
    """
    settings = settings or ServerSettings()
    sections = _tensors(model, backend, embedding_dim, top_k)
    sections.append(layout.version_policy(layout.FIRST_VERSION))
    if settings.dynamic_batching:
        delay = settings.max_queue_delay
        setting = f"max_queue_delay_microseconds: {delay} " if delay else ""
        sections.append(f"dynamic_batching {{ {setting}}}")
    if settings.instance_count:
        sections.append(f"instance_group {{ count: {settings.instance_count} }}")
    threads = {"INTRA_OP_THREAD_COUNT": str(settings.intra_op_threads)}
    sections += _parameters({**threads, **parameters})
    if example_dims:
        (spec,) = model.inputs
        random = f"data_type: TYPE_{spec.datatype} dims: {list(example_dims)} random_data: true"
        sections += [
            f'model_warmup {{\n  name: "batch of {size}"\n  batch_size: {size}\n'
            f'  inputs {{ key: "{spec.name}" value {{ {random} }} }}\n}}'
            for size in _warmup_sizes()
        ]
    return "\n".join(sections) + "\n"


def ensemble_config(embedding_dim: int, top_k: int, parameters: Mapping[str, str]) -> str:
    """Text of ``config.pbtxt`` for `image_search`: image in, ids and scores out, in one call.

    Triton passes the embeddings on internally ("Ensemble Models" in its user guide).
    """
    outputs = "\n".join(
        f'    output_map {{ key: "{output.name}" value: "{output.name}" }}'
        for output in contract.VECTOR_SIMILARITY.outputs
    )
    steps = f"""ensemble_scheduling {{
  step {{
    model_name: "{contract.IMAGE_ENCODER.name}"
    model_version: -1
    input_map {{ key: "{contract.IMAGES.name}" value: "{contract.IMAGES.name}" }}
    output_map {{ key: "{contract.EMBEDDINGS.name}" value: "embeddings" }}
  }}
  step {{
    model_name: "{contract.VECTOR_SIMILARITY.name}"
    model_version: -1
    input_map {{ key: "{contract.QUERY_EMBEDDINGS.name}" value: "embeddings" }}
{outputs}
  }}
}}"""
    sections = _tensors(contract.IMAGE_SEARCH, _ENSEMBLE, embedding_dim, top_k)
    return "\n".join([*sections, steps, *_parameters(parameters)]) + "\n"


def _tensors(model: contract.ModelSpec, backend: str, embedding_dim: int, top_k: int) -> list[str]:
    """Name, backend and tensors: what every configuration starts with."""
    sizes = {contract.EMBEDDING_DIM: embedding_dim, contract.TOP_K: top_k}
    sections = [
        f'name: "{model.name}"',
        backend,
        f"max_batch_size: {contract.MAX_BATCH_SIZE}",
    ]
    tensors = [("input", spec) for spec in model.inputs]
    tensors += [("output", spec) for spec in model.outputs]
    for kind, spec in tensors:
        dims = list(spec.dims(**sizes))
        text = f'name: "{spec.name}" data_type: TYPE_{spec.datatype} dims: {dims}'
        if kind == "input" and backend != _ENSEMBLE:
            # Protects a batch from requests whose batch dimension is 0, see serving/export.py.
            text += f" reshape {{ shape: {[1, *dims]} }}"
        sections.append(f"{kind} [\n  {{ {text} }}\n]")
    return sections


def _parameters(parameters: Mapping[str, str]) -> list[str]:
    return [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    ]


def _warmup_sizes() -> list[int]:
    """1, 2, 4, ... and the largest batch."""
    powers = (2**i for i in range(contract.MAX_BATCH_SIZE.bit_length()))
    return sorted({*powers, contract.MAX_BATCH_SIZE})


def write_configs(
    folder: Path,
    metadata: GalleryMetadata,
    embedding_dim: int,
    top_k: int,
    index: IndexSpec,
    index_name: str = "",
    encoder_threads: int = 1,
) -> None:
    """Write the configurations of a build into its model repositories, which are in `folder`.

    Where both models share a process, as in Triton's libtorch backend, one of their two numbers of
    threads holds for it; either is right.
    """
    encoder_id = {contract.ENCODER_ID_PARAMETER: metadata.encoder_id}
    identity = {**encoder_id, contract.GALLERY_ID_PARAMETER: metadata.gallery_id}
    image_dims = (3, metadata.encoder_height, metadata.encoder_width)
    config_of = partial(model_config, embedding_dim=embedding_dim, top_k=top_k)
    texts = {
        contract.IMAGE_ENCODER: config_of(
            contract.IMAGE_ENCODER,
            example_dims=image_dims,
            parameters=encoder_id,
            settings=ServerSettings(intra_op_threads=encoder_threads),
        ),
        contract.VECTOR_SIMILARITY: config_of(
            contract.VECTOR_SIMILARITY,
            example_dims=None if index.warms_up_itself else (embedding_dim,),
            parameters={**identity, **index.parameters(index_name)},
            backend=index.backend,
        ),
    }
    for model, text in texts.items():
        layout.config_file(folder / layout.MODEL_REPO, model.name).write_text(text)
    ensemble_repo = folder / layout.ENSEMBLE_REPO
    # Triton requires a version folder, although it stays empty.
    layout.version_folder(ensemble_repo, contract.IMAGE_SEARCH.name).mkdir(parents=True)
    config = layout.config_file(ensemble_repo, contract.IMAGE_SEARCH.name)
    config.write_text(ensemble_config(embedding_dim, top_k, identity))
