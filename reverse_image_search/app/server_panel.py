"""The side panel: how a search works, and what the server serves right now."""

from __future__ import annotations

import html

import streamlit as st

from reverse_image_search import contract
from reverse_image_search.app.messages import plain
from reverse_image_search.client import Client, TritonError


def show_how_it_works(client: Client, seen: str) -> None:
    """The two calls, their tensors, the models' versions and the server's state.

    Parameters
    ----------
    seen : names the server's present state; another one has it described anew
    """
    with st.sidebar:
        st.header("How it works", anchor=False)
        st.markdown(
            "A picture goes to **image_encoder**, which makes a vector of it; the vector goes to "
            "**vector_similarity**, which finds the nearest vectors of the gallery. Triton serves "
            "both. In the shapes below, `*` stands for any size; the first one is the batch."
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
    """Server, models and their tensors as HTML."""
    lines = [f"Triton {_client.server_metadata()['version']}", _client.url]
    build_ids = _client.build_ids()
    for model in contract.MODELS:
        metadata = _client.model_metadata(model.name)
        lines += [
            "",
            f"{model.name}  version {', '.join(metadata.get('versions', []))}",
            f"build {build_ids[model.name] or 'unknown'}",
            *(f"→ {_tensor(tensor)}" for tensor in metadata["inputs"]),
            *(f"← {_tensor(tensor)}" for tensor in metadata["outputs"]),
        ]
    return f'<pre class="served" data-testid="served">{html.escape(chr(10).join(lines))}</pre>'


def _tensor(tensor: dict) -> str:
    sizes = ", ".join("*" if int(size) < 0 else str(size) for size in tensor["shape"])
    return f"{tensor['name']} {tensor['datatype']} [{sizes}]"
