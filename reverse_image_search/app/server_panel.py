"""The side panel: how a search works, and what the server serves."""

from __future__ import annotations

import html

import streamlit as st

from reverse_image_search import contract
from reverse_image_search.app.messages import plain
from reverse_image_search.client import Client, TritonError
from reverse_image_search.client.search import served_identity

COURSE = "http://localhost:8503/doc/tutorial"  # as bin/docs.sh serves it


def show_how_it_works(client: Client, seen: str) -> None:
    """The two calls, their tensors, the models' versions and ids, and the server's state `seen`."""
    with st.sidebar:
        st.header("How it works", anchor=False)
        st.markdown(
            "An image goes to **image_encoder**, which turns it into a vector; the vector goes to "
            "**vector_similarity**, which finds the nearest vectors of the gallery. Triton serves "
            "both. In the shapes below, `*` stands for any size; the first one is the batch."
        )
        st.caption(
            f"The course explains [how Triton serves a model]({COURSE}/1_model_repository/) and "
            f"[why a search is two models]({COURSE}/3_two_models/). `docs.sh` serves these pages; "
            "as files, they are in `doc/tutorial`."
        )
        try:
            description = _describe(client, seen)
        except TritonError as error:
            st.badge("Server not ready", icon=":material/error:", color="red")
            st.caption(plain(str(error)))
        else:
            st.badge("Server ready", icon=":material/check_circle:", color="green")
            st.html(description)


@st.cache_data(ttl=30, max_entries=4, show_spinner=False)
def _describe(_client: Client, seen: str) -> str:
    """Server, models and their tensors, as HTML."""
    lines = [f"Triton {_client.server_metadata()['version']}", _client.url]
    identity = served_identity(_client)
    ids = {"encoder_id": identity.encoder_id}, identity.index._asdict()
    for model, model_ids in zip(contract.MODELS, ids, strict=True):
        metadata = _client.model_metadata(model.name)
        lines += [
            "",
            f"{model.name}  version {', '.join(metadata.get('versions', []))}",
            *(f"{key} {value}" for key, value in model_ids.items()),
            *(f"→ {_tensor(tensor)}" for tensor in metadata["inputs"]),
            *(f"← {_tensor(tensor)}" for tensor in metadata["outputs"]),
        ]
    return f'<pre class="served" data-testid="served">{html.escape(chr(10).join(lines))}</pre>'


def _tensor(tensor: dict) -> str:
    sizes = ", ".join("*" if int(size) < 0 else str(size) for size in tensor["shape"])
    return f"{tensor['name']} {tensor['datatype']} [{sizes}]"
