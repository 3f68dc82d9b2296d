"""Start the page: python -m reverse_image_search.app [options of `streamlit run`]."""

import sys
from importlib import import_module
from pathlib import Path

from streamlit import net_util
from streamlit.web import cli

# Streamlit imports these for the first visitor, who would wait for them.
_SLOW_IMPORTS = ("pandas", "streamlit.emojis", "reverse_image_search.client")

if __name__ == "__main__":
    for name in _SLOW_IMPORTS:
        import_module(name)
    # For a WebSocket of a foreign origin Streamlit asks checkip.amazonaws.com for the public
    # address of this machine, and all sessions wait for the answer. No setting prevents that.
    net_util.get_external_ip = lambda: None
    cli.main(["run", str(Path(__file__).with_name("page.py")), *sys.argv[1:]])
