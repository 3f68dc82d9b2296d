"""Images pasted from the clipboard: handed to the file uploader, which Streamlit gives none."""

from __future__ import annotations

import streamlit as st

_component = st.components.v2.component(
    "paste",
    html="<span></span>",
    js="""
    export default function () {
      const paste = (event) => {
        const [file] = event.clipboardData?.files ?? [];
        const input = document.querySelector("[data-testid=stFileUploader] input[type=file]");
        if (!file || !input) return;
        const files = new DataTransfer();
        files.items.add(file);
        input.files = files.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
        event.preventDefault();
      };
      document.addEventListener("paste", paste);
      return () => document.removeEventListener("paste", paste);
    }
    """,
)


def accept_pasted_images() -> None:
    """Whatever image is pasted into the page goes into its file uploader."""
    _component(key="paste")
