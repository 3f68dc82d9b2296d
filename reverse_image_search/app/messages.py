"""What the page says when something is wrong."""

from __future__ import annotations

import re

import streamlit as st

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~$:-])")
_COMMAND = re.compile(r"(reverse_image_search/bin/\S+\.sh)")


def show_problem(problem: Exception) -> None:
    """Show the message of `problem`, with its command as code."""
    with st.container(key="problem"):
        st.error(plain(str(problem)), icon=":material/error:")


def plain(text: str) -> str:
    """`text` as Markdown that shows it literally, and our own commands as code."""
    pieces = _COMMAND.split(text)  # commands at odd positions
    pieces[::2] = [_MARKUP.sub(r"\\\1", piece) for piece in pieces[::2]]
    pieces[1::2] = [f"`{command}`" for command in pieces[1::2]]
    return "".join(pieces)
