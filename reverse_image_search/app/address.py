"""What the page's address keeps besides the widgets that are bound to it: ``?query=test-7&page=2``.

A browser sends its address with every click, but learns of a change only from the answer. A second
click before that brings the address of before the first one, which would undo it. So the session
remembers what it put there; the browser's address counts when the page is opened, and after Back
and Forward.
"""

from __future__ import annotations

import re

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

KEYS = ("query", "gallery", "region", "page", "shuffle")


def restore_address() -> None:
    """Undo what an outdated address would undo. For the start of each run, before all else here."""
    run = get_script_run_ctx()
    if "address" not in st.session_state or (run and run.is_history_navigation):
        st.session_state.address = {key: st.query_params.get(key) for key in KEYS}
    put_in_address()


def put_in_address(**values: str | None) -> None:
    """Change parameters of the address, those in `KEYS`; None takes one out.

    Streamlit may end a callback here, to start the next run: call it last.
    """
    st.session_state.address |= values
    address = st.session_state.address
    for key, value in address.items():
        if value is None and key in st.query_params:
            del st.query_params[key]
    changed = {key: value for key, value in address.items() if value != st.query_params.get(key)}
    if changed:
        st.query_params.update(changed)


def number_in_address(key: str, default: int = 0) -> int:
    """A positive number in the page's address, else `default`."""
    text = st.query_params.get(key, "")
    return int(text) if re.fullmatch(r"[1-9]\d{0,8}", text) else default
